// Preempted = never preempted: in a pool too small for all, requests lose their blocks, wait, and
// replay what they had, and no text or number changes.
#include <gtest/gtest.h>

#include "tests/oracles/answers.h"

namespace tinyserve {
namespace {

struct Setup {
  const char* name;
  const char* kv;
  const char* selector;
  bool prefix_cache;
  std::vector<std::string> steps = {};  // step plugins
};

std::unique_ptr<Engine> Open(const Setup& setup, uint64_t kv_bytes) {
  EngineOptions options;
  options.model_path = TS_SOURCE_DIR "/tests/golden/tiny/llama.gguf";
  options.threads = 1;
  options.kv_memory_bytes = kv_bytes;
  options.sequences_max = 4;
  options.step_tokens_max = 32;
  options.context_tokens = 256;
  options.kv = setup.kv;
  options.selector = setup.selector;
  options.prefix_cache = setup.prefix_cache;
  options.step_plugins = setup.steps;
  auto engine = Engine::Open(options);
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return *std::move(engine);
}

std::vector<Request> Requests() {
  std::vector<Request> requests;
  for (uint32_t i = 0; i < 6; ++i) {
    Request request;
    for (uint32_t t = 0; t < 20 + 13 * i; ++t)
      request.prompt.push_back(static_cast<int32_t>((t * 7 + i * 13) % 200));
    request.max_tokens = 120;
    request.ignore_eos = true;
    request.top_logprobs = 0;
    request.prompt_logprobs = i == 2;
    request.sampling.temperature = i % 2 == 0 ? 0.0f : 0.9f;
    request.sampling.presence_penalty = 0.5f;
    request.sampling.seed = i;
    request.priority = static_cast<Priority>(i % 3);
    request.salt = i % 2 == 0 ? "" : "another client";
    requests.push_back(request);
  }
  return requests;
}

Request One() {
  Request request;
  request.prompt = {1, 2, 3};
  request.max_tokens = 1;
  return request;
}

class Preemption : public testing::TestWithParam<Setup> {};

TEST_P(Preemption, ChangesNothing) {
  auto large = Open(GetParam(), 8 << 20);
  const uint64_t token = large->info().kv_bytes_per_token;
  const uint64_t fixed =
      large->info().kv_pool_bytes - uint64_t{large->stats().blocks_total} * 32 * token;
  auto small = Open(GetParam(), fixed + 10 * 32 * token);
  ASSERT_EQ(small->stats().blocks_total, 10u);
  const std::vector<Request> requests = Requests();
  std::vector<Answer> expected(requests.size()), found(requests.size());
  for (const auto& [engine, answers] : {std::pair(large.get(), &expected), {small.get(), &found}}) {
    std::vector<RequestId> ids;
    // Who is there in which step decides who gives way: one more holds the engine up in its own
    // first step until all are there.
    std::latch submitted(1);
    Answer first;
    ids.push_back(*engine->Submit(One(), HoldUntil(&submitted, CollectInto(&first))));
    for (size_t i = 0; i < requests.size(); ++i)
      ids.push_back(*engine->Submit(requests[i], CollectInto(&(*answers)[i])));
    submitted.count_down();
    for (RequestId id : ids) engine->Wait(id);
  }
  EXPECT_EQ(large->stats().preemptions, 0u);
  EXPECT_GT(small->stats().preemptions, 0u);
  EXPECT_EQ(small->stats().generated_tokens, large->stats().generated_tokens);
  EXPECT_EQ(small->stats().blocks_used, 0u);
  for (const StepPluginStats& plugin : small->stats().step_plugins) {
    EXPECT_GT(plugin.effects, 0u);
    EXPECT_LT(plugin.effects, plugin.calls);
    // What is replayed is asked again; what is coded has few places where it is.
    EXPECT_GE(plugin.calls, large->stats().step_plugins[0].calls + (large->info().kv == "f16"));
  }
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(found[i].finish, FinishReason::kLength) << i;
    EXPECT_EQ(found[i].tokens, expected[i].tokens) << i;
    EXPECT_EQ(found[i].logprobs, expected[i].logprobs) << i;
    EXPECT_EQ(found[i].prompt_logprobs, expected[i].prompt_logprobs) << i;
    EXPECT_EQ(found[i].prefilled[static_cast<uint32_t>(requests[i].prompt.size())], 1) << i;
  }
}

constexpr char kBox[] = "box:ratio=0.3,min_tokens=0,min_context=0";
constexpr char kPruned[] = "token_pruning:keep=0.5,min_tokens=32,sink=0,recent=32,every=8";
INSTANTIATE_TEST_SUITE_P(
    Storages, Preemption,
    testing::Values(Setup{"f16", "f16", "full", true}, Setup{"cold", "f16", "full", false},
                    Setup{"box", "f16", kBox, true},
                    Setup{"early_exit", "f16", kBox, true, {"early_exit:layer=1,entropy=4"}},
                    Setup{"pruned", "f16", kBox, false, {kPruned}},
                    Setup{"pruned_planes", "planes", "full", false, {kPruned}},
                    Setup{"planes", "planes", "full", false}, Setup{"k8v4", "k8v4", "full", false},
                    Setup{"cascade", "planes", kTinyCascade, true}),
    [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace tinyserve
