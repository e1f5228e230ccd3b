// Cached = cold: an answer is the same, bit for bit, whether its prompt was computed or found in
// the cache, wherever prefill made what was found (docs/ARCHITECTURE.md, "Shared prefixes").
#include <gtest/gtest.h>

#include <mutex>
#include <random>

#include "kv/codec.h"
#include "tests/oracles/answers.h"

namespace tinyserve {
namespace {

Request Prompt(const std::vector<int32_t>& tokens, uint32_t max_tokens = 8) {
  Request request;
  request.prompt = tokens;
  request.max_tokens = max_tokens;
  request.ignore_eos = true;
  request.top_logprobs = 0;
  return request;
}

std::vector<int32_t> RandomTokens(uint32_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % 200);
  return tokens;
}

struct Setup {
  const char* name;
  const char* kv;
  const char* selector;
};

class PrefixCache : public testing::TestWithParam<Setup> {
 protected:
  std::unique_ptr<Engine> Open(uint32_t step_tokens, bool cache, uint64_t kv_bytes = 8 << 20,
                               bool exact = false) {
    EngineOptions options;
    options.model_path = TS_SOURCE_DIR "/tests/golden/tiny/llama.gguf";
    options.threads = 1;
    options.kv_memory_bytes = kv_bytes;
    options.sequences_max = 4;
    options.step_tokens_max = step_tokens;
    options.context_tokens = 256;
    options.kv = GetParam().kv;
    options.selector = GetParam().selector;
    options.prefix_cache = cache;
    options.exact_reuse = exact;
    auto engine = Engine::Open(options);
    EXPECT_TRUE(engine.ok()) << engine.status().message();
    return *std::move(engine);
  }
  // Tokens that blocks or windows are shared by.
  uint32_t unit() const { return (*FindCodec(GetParam().kv))->identity() ? 32 : 64; }
};

void ExpectSame(const Answer& a, const Answer& b) {
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.logprobs, b.logprobs);
  EXPECT_EQ(a.finish, b.finish);
}

TEST_P(PrefixCache, CachedEqualsColdHoweverItIsChunked) {
  auto cold = Open(32, false);
  const std::vector<int32_t> base = RandomTokens(200, 1);
  std::vector<Request> requests;
  for (const uint32_t keep : {200u, 199u, 192u, 129u, 100u, 65u, 64u, 33u, 7u}) {
    std::vector<int32_t> tokens = RandomTokens(200, keep);
    std::copy_n(base.begin(), keep, tokens.begin());
    requests.push_back(Prompt(tokens));
  }
  std::vector<Answer> expected;
  for (const Request& request : requests) expected.push_back(Ask(cold.get(), request));
  EXPECT_EQ(expected[0].usage.cached_tokens, 0u);
  EXPECT_EQ(cold->stats().prefix_queries, 0u);
  for (const uint32_t step_tokens : {8u, 37u, 256u}) {
    SCOPED_TRACE(step_tokens);
    auto engine = Open(step_tokens, true);
    ExpectSame(Ask(engine.get(), Prompt(base)), Ask(cold.get(), Prompt(base)));
    const auto cut = [&](uint32_t tokens) {
      return unit() == 64 ? tokens / 64 * 64 : tokens;  // raw pages are copied to the token
    };
    for (size_t i = 0; i < requests.size(); ++i) {
      const Answer found = Ask(engine.get(), requests[i]);
      ExpectSame(found, expected[i]);
      EXPECT_GE(found.usage.cached_tokens, i < 2 ? cut(192) : 0u) << i;
      EXPECT_LT(found.usage.cached_tokens, 200u);
    }
    EXPECT_GE(Ask(engine.get(), requests[4]).usage.cached_tokens, cut(199) - 31);
    EXPECT_EQ(engine->stats().blocks_used, 0u);
    EXPECT_GT(engine->stats().blocks_cached, 0u);
    EXPECT_GT(engine->stats().prefix_hits, 0u);
  }
}

TEST_P(PrefixCache, AConversationGoesOnFromItsOwnAnswer) {
  auto engine = Open(64, true), exact = Open(64, true, 8 << 20, true), cold = Open(64, false);
  std::vector<int32_t> tokens = RandomTokens(70, 3);
  const Answer first = Ask(engine.get(), Prompt(tokens, 70));
  Ask(exact.get(), Prompt(tokens, 70));
  tokens.insert(tokens.end(), first.tokens.begin(), first.tokens.end());
  const std::vector<int32_t> more = RandomTokens(20, 4);
  tokens.insert(tokens.end(), more.begin(), more.end());
  const Answer second = Ask(engine.get(), Prompt(tokens));
  // Of coded pages the raw tail, too: all but the last token, which was never computed.
  EXPECT_EQ(second.usage.cached_tokens, unit() == 64 ? 139u : 128u);
  // Without what was generated, it is the cold run's to the bit.
  const Answer anew = Ask(exact.get(), Prompt(tokens));
  EXPECT_EQ(anew.usage.cached_tokens, 64u);
  ExpectSame(anew, Ask(cold.get(), Prompt(tokens)));
  // Nor is it used under another selector.
  Request other = Prompt(tokens);
  other.selector = std::string(GetParam().selector) == "full" ? "" : "full";
  if (!other.selector.empty()) {
    EXPECT_EQ(Ask(engine.get(), other).usage.cached_tokens, 64u);
  }
}

TEST_P(PrefixCache, AnswersToOnePromptShareIt) {
  auto engine = Open(16, true), cold = Open(16, false);
  const std::vector<int32_t> tokens = RandomTokens(150, 5);
  std::vector<Answer> together(4);
  std::vector<RequestId> ids;
  for (uint32_t i = 0; i < 4; ++i) {
    Request request = Prompt(tokens);
    request.sampling = {.temperature = 1, .seed = i};
    ids.push_back(*engine->Submit(request, CollectInto(&together[i])));
  }
  for (RequestId id : ids) engine->Wait(id);
  uint32_t computed = 0;
  for (uint32_t i = 0; i < 4; ++i) {
    Request request = Prompt(tokens);
    request.sampling = {.temperature = 1, .seed = i};
    ExpectSame(together[i], Ask(cold.get(), request));
    computed += together[i].usage.cached_tokens == 0;
  }
  EXPECT_EQ(computed, 1u);
  // Who comes when another has ended finds the raw tail of coded pages, too.
  EXPECT_LE(engine->stats().prompt_tokens, 150u + 3 * (150 - 128));
  EXPECT_GE(engine->stats().prompt_tokens, 150u + 3 * (unit() == 64 ? 1 : 150 - 128));
}

TEST_P(PrefixCache, ASmallPoolTurnsOverAndChangesNothing) {
  // Three prompts' worth of blocks, by a block more than the least that is allowed.
  auto cold = Open(32, false);
  const uint64_t fixed = cold->info().kv_pool_bytes - uint64_t{cold->stats().blocks_total} * 32 *
                                                          cold->info().kv_bytes_per_token;
  auto engine = Open(32, true, fixed + uint64_t{20} * 32 * cold->info().kv_bytes_per_token);
  std::vector<Answer> expected(12), found(12);
  std::vector<Request> requests;
  for (uint32_t i = 0; i < 12; ++i) {
    std::vector<int32_t> tokens = RandomTokens(100 + 8 * i, i % 5);
    tokens.back() = static_cast<int32_t>(i);
    requests.push_back(Prompt(tokens, 20));
    requests.back().salt = i % 4 == 3 ? "other" : "";
    expected[i] = Ask(cold.get(), requests[i]);
  }
  for (int round = 0; round < 2; ++round) {
    found.assign(12, {});
    std::vector<RequestId> ids;
    for (uint32_t i = 0; i < 12; ++i)
      ids.push_back(*engine->Submit(requests[i], CollectInto(&found[i])));
    for (RequestId id : ids) engine->Wait(id);
    for (uint32_t i = 0; i < 12; ++i) ExpectSame(found[i], expected[i]);
    EXPECT_EQ(engine->stats().blocks_used, 0u);
    EXPECT_LE(engine->stats().blocks_cached, engine->stats().blocks_total);
  }
}

TEST_P(PrefixCache, SaltsAndScoredPromptsFindNothing) {
  auto engine = Open(64, true);
  Request request = Prompt(RandomTokens(130, 6));
  Ask(engine.get(), request);
  request.salt = "another";
  EXPECT_EQ(Ask(engine.get(), request).usage.cached_tokens, 0u);
  EXPECT_GE(Ask(engine.get(), request).usage.cached_tokens, 128u);
  request.prompt_logprobs = true;
  EXPECT_EQ(Ask(engine.get(), request).usage.cached_tokens, 0u);
  request.salt.assign(257, 'x');
  EXPECT_EQ(engine->Submit(request, [](const TokenEvent&) {}).status().code(),
            Code::kInvalidArgument);
}

INSTANTIATE_TEST_SUITE_P(
    Storages, PrefixCache,
    testing::Values(Setup{"f16", "f16", "full"}, Setup{"f32", "f32", "full"},
                    Setup{"box", "f16", "box:ratio=0.3,min_tokens=0,min_context=0"},
                    Setup{"planes", "planes", "full"}, Setup{"int4", "int4", "full"},
                    Setup{"cascade", "planes", kTinyCascade}),
    [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace tinyserve
