// The engine on a device over its ways to store and to read: what no answer may depend on.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/simt/emulator.h"
#include "tests/simt/engine_testing.h"

namespace tinyserve {
namespace {

constexpr char kGpt2[] = "gpt2-wide";

struct Storage {
  const char *name, *kv, *selector, *model = "llama-q4_k";
};
class OnADevice : public testing::TestWithParam<Storage> {
 protected:
  std::unique_ptr<Engine> Open(uint32_t step_tokens = 64, bool cache = false) const {
    return OpenTiny([&](EngineOptions* o) {
      o->model_path = kFolder + GetParam().model + ".gguf";
      o->kv = GetParam().kv;
      o->selector = GetParam().selector;
      o->step_tokens_max = step_tokens;
      o->prefix_cache = cache;
    });
  }
};
INSTANTIATE_TEST_SUITE_P(All, OnADevice,
                         testing::Values(Storage{"F16Box", "f16", kTinyBox},
                                         Storage{"BF16Moments", "bf16", kTinyMoments},
                                         Storage{"Int4Box", "int4", kTinyBox},
                                         Storage{"Int8Moments", "int8", kTinyMoments},
                                         Storage{"Planes", "planes", "full"},
                                         Storage{"F16Hierarchical", "f16", kTinyHierarchical},
                                         Storage{"Int4Hierarchical", "int4", kTinyHierarchical},
                                         Storage{"Cascade", "planes", kSmallCascade},
                                         Storage{"Gpt2K8V4Box", "k8v4", kTinyBox, kGpt2},
                                         Storage{"Gpt2F16Moments", "f16", kTinyMoments, kGpt2},
                                         Storage{"Gpt2Int8Hierarchical", "int8", kTinyHierarchical,
                                                 kGpt2},
                                         Storage{"Gpt2Cascade", "planes", kSmallCascade, kGpt2}),
                         [](const auto& test) { return std::string(test.param.name); });

TEST_P(OnADevice, ChunksAndTheOrderOfThreadsChangeNothing) {
  const Request request = Prompt(75, 1);
  simt::SetSeed(1);
  const Answer whole = Ask(Open(80).get(), request);
  simt::SetSeed(2);
  ExpectSame(whole, Ask(Open(16).get(), request));
}

TEST_P(OnADevice, SameAnswersAloneAndInCompany) {
  auto engine = Open();
  ASSERT_NE(engine, nullptr);
  std::vector<Request> requests = {Prompt(9, 1), Prompt(70, 2, 2), Prompt(30, 3)};
  requests[2].sampling.temperature = 0.9f;
  requests[2].sampling.seed = 5;
  std::vector<Answer> together(requests.size());
  std::vector<RequestId> ids;
  for (size_t i = 0; i < requests.size(); ++i)
    ids.push_back(*engine->Submit(requests[i], CollectInto(&together[i])));
  for (const RequestId id : ids) engine->Wait(id);
  for (size_t i = 0; i < requests.size(); ++i)
    ExpectSame(together[i], Ask(engine.get(), requests[i]));
  EXPECT_EQ(engine->stats().blocks_used, 0u);
}

TEST_P(OnADevice, WhatIsFoundInTheCacheIsAsIfComputed) {
  auto engine = Open(64, true);
  ASSERT_NE(engine, nullptr);
  const Request longer = Prompt(90, 4);
  const Answer cold = Ask(engine.get(), longer);
  const Answer warm = Ask(engine.get(), longer);
  EXPECT_EQ(cold.usage.cached_tokens, 0u);
  EXPECT_GE(warm.usage.cached_tokens, 64u);
  ExpectSame(cold, warm);
}

}  // namespace
}  // namespace tinyserve
