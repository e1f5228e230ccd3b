// Conversations keep what the cache holds of them, while others come and go.
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "tests/oracles/answers.h"

namespace tinyserve {
namespace {

struct Limits {
  double ttl_seconds = 300;
  double share = 0.5;
  uint32_t sessions = 1024;
  bool exact_reuse = false;
};

// A pool of 24 blocks of 32 tokens.
std::unique_ptr<Engine> Open(const Limits& limits) {
  EngineOptions options;
  options.model_path = TS_SOURCE_DIR "/tests/golden/tiny/llama.gguf";
  options.threads = 1;
  options.sequences_max = 4;
  options.step_tokens_max = 128;
  options.context_tokens = 256;
  options.kv_memory_bytes = 8 << 20;
  const auto large = Engine::Open(options);
  const ModelInfo& info = (*large)->info();
  options.kv_memory_bytes = info.kv_pool_bytes - ((*large)->stats().blocks_total - 24) *
                                                     uint64_t{32} * info.kv_bytes_per_token;
  options.session_ttl_seconds = limits.ttl_seconds;
  options.session_share = limits.share;
  options.sessions_max = limits.sessions;
  options.exact_reuse = limits.exact_reuse;
  auto engine = Engine::Open(options);
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  EXPECT_EQ((*engine)->stats().blocks_total, 24u);
  return *std::move(engine);
}

Request Turn(const std::string& session, int32_t seed, uint32_t tokens) {
  Request request;
  for (uint32_t t = 0; t < tokens; ++t)
    request.prompt.push_back((seed * 31 + static_cast<int32_t>(t) * 7) % 200);
  request.max_tokens = 4;
  request.ignore_eos = true;
  request.session = session;
  return request;
}

// What the second turn of a conversation finds, after `others` prompts of 192 tokens each.
uint32_t CachedAfter(Engine* engine, const std::string& session, int others, int32_t seed = 1) {
  Ask(engine, Turn(session, seed, 160));
  for (int32_t i = 0; i < others; ++i) Ask(engine, Turn("", 100 + seed * 40 + i, 192));
  return Ask(engine, Turn(session, seed, 200)).usage.cached_tokens;
}

TEST(Session, ItsNextTurnIsCheapWhateverOthersAsk) {
  auto engine = Open({});
  EXPECT_GE(CachedAfter(engine.get(), "", 0, 1), 159u);
  EXPECT_LT(CachedAfter(engine.get(), "", 8, 2), 32u);  // they took all blocks
  EXPECT_GE(CachedAfter(engine.get(), "chat", 8, 3), 128u);
  EXPECT_GT(engine->stats().blocks_pinned, 0u);
  ASSERT_EQ(engine->sessions("").size(), 1u);
  const SessionInfo session = engine->sessions("")[0];
  EXPECT_EQ(session.session, "chat");
  EXPECT_EQ(session.requests, 2u);
  EXPECT_EQ(session.prompt_tokens, 360u);
  EXPECT_EQ(session.generated_tokens, 8u);
  EXPECT_EQ(session.running, 0u);
  EXPECT_TRUE(engine->sessions("other").empty());
  EXPECT_FALSE(engine->EndSession("other", "chat"));
  EXPECT_TRUE(engine->EndSession("", "chat"));
  EXPECT_TRUE(engine->sessions("").empty());
  Ask(engine.get(), Turn("", 5, 40));
  EXPECT_EQ(engine->stats().blocks_pinned, 0u);
  EXPECT_EQ(engine->stats().blocks_used, 0u);
}

TEST(Session, IsKeptWhereOnlyPrefillIsUsedAgain) {
  auto engine = Open({.exact_reuse = true});
  EXPECT_GE(CachedAfter(engine.get(), "chat", 8), 128u);
}

TEST(Session, EndsAfterItsTime) {
  auto engine = Open({.ttl_seconds = 0.05});
  Ask(engine.get(), Turn("chat", 1, 160));
  EXPECT_EQ(engine->sessions("").size(), 1u);
  std::this_thread::sleep_for(std::chrono::milliseconds(80));
  EXPECT_TRUE(engine->sessions("").empty());
  for (int32_t i = 0; i < 8; ++i) Ask(engine.get(), Turn("", 100 + i, 192));
  EXPECT_LT(Ask(engine.get(), Turn("chat", 1, 200)).usage.cached_tokens, 32u);
}

// Of many conversations the newest are kept, within their share; and whoever needs the whole pool
// gets it.
TEST(Session, TheirShareIsBounded) {
  auto engine = Open({.share = 0.5});
  for (int32_t i = 0; i < 6; ++i) {
    Ask(engine.get(), Turn("chat " + std::to_string(i), i, 160));
    EXPECT_LE(engine->stats().blocks_pinned, 12u);
  }
  EXPECT_GE(engine->stats().blocks_pinned, 8u);
  EXPECT_EQ(engine->sessions("").size(), 6u);
  for (int32_t i = 0; i < 8; ++i) Ask(engine.get(), Turn("", 100 + i, 192));
  EXPECT_GE(Ask(engine.get(), Turn("chat 5", 5, 200)).usage.cached_tokens, 128u);
  EXPECT_LT(Ask(engine.get(), Turn("chat 0", 0, 200)).usage.cached_tokens, 32u);
  std::vector<Answer> answers(4);
  std::vector<RequestId> ids;
  for (uint32_t i = 0; i < 4; ++i) {
    Request request = Turn("", 200 + static_cast<int32_t>(i), 180);
    request.max_tokens = 60;
    ids.push_back(*engine->Submit(request, CollectInto(&answers[i])));
  }
  for (const RequestId id : ids) engine->Wait(id);
  for (const Answer& answer : answers) EXPECT_EQ(answer.tokens.size(), 60u);
  auto narrow = Open({.share = 0.1});  // two blocks: the beginning of one conversation
  Ask(narrow.get(), Turn("chat", 1, 160));
  EXPECT_EQ(narrow->stats().blocks_pinned, 2u);
  auto few = Open({.sessions = 2});
  for (int32_t i = 0; i < 3; ++i) Ask(few.get(), Turn(std::to_string(i), i, 64));
  EXPECT_EQ(few->sessions("").size(), 2u);
}

}  // namespace
}  // namespace tinyserve
