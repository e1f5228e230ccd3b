// Engines on a device, of tiny models whose heads it has kernels for.
#ifndef TINYSERVE_TESTS_SIMT_ENGINE_TESTING_H_
#define TINYSERVE_TESTS_SIMT_ENGINE_TESTING_H_

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>

#include "tests/oracles/answers.h"
#include "tinyserve/engine.h"

namespace tinyserve {

inline const std::string kFolder = TS_SOURCE_DIR "/tests/golden/tiny/";
inline constexpr char kTinyBox[] = "box:ratio=0.3,min_tokens=0,min_context=16,recent=1";
inline constexpr char kTinyMoments[] = "moments:ratio=0.3,min_tokens=0,min_context=16,recent=1";

inline constexpr char kTinyHierarchical[] =
    "hierarchical:ratio=0.4,min_tokens=0,min_context=16,recent=1,sub=4,reuse=4";
inline constexpr char kSmallCascade[] =
    "cascade:ratio=0.3,min_tokens=0,min_context=16,sink=0,recent=1,full=0.1,min_full=8,values=0.3,"
    "min_values=16,least_share=0.001";

using Change = std::function<void(EngineOptions*)>;

inline EngineOptions TinyOptions(const Change& change) {
  EngineOptions options;
  options.model_path = kFolder + "llama-q4_k.gguf";
  options.device = "cuda";
  options.threads = 1;
  options.kv_memory_bytes = 1 << 20;
  options.sequences_max = 4;
  options.step_tokens_max = 64;
  options.context_tokens = 160;
  if (change) change(&options);
  return options;
}

inline std::unique_ptr<Engine> OpenTiny(const Change& change = {}) {
  auto engine = Engine::Open(TinyOptions(change));
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return engine.ok() ? *std::move(engine) : nullptr;
}

inline Request Prompt(uint32_t tokens, uint32_t seed, uint32_t max_tokens = 3) {
  Request request;
  for (uint32_t t = 0; t < tokens; ++t)
    request.prompt.push_back(static_cast<int32_t>((t * 7 + seed * 13 + t * t) % 200));
  request.max_tokens = max_tokens;
  request.ignore_eos = true;
  request.top_logprobs = 0;
  return request;
}

inline void ExpectSame(const Answer& a, const Answer& b) {
  EXPECT_TRUE(a.status.ok()) << a.status.message();
  EXPECT_TRUE(b.status.ok()) << b.status.message();
  EXPECT_FALSE(a.tokens.empty());
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.logprobs, b.logprobs);
}

}  // namespace tinyserve

#endif  // TINYSERVE_TESTS_SIMT_ENGINE_TESTING_H_
