// Tokens with little attention leave the cache: their units are those of least mass by a plain
// count; what is left is attended to as if the rest had never been there; texts are the same alone,
// in any batch and at any number of threads; blocks really become free; what would hand on a cache
// with holes is refused.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "tests/oracles/answers.h"
#include "tests/oracles/selection_rig.h"

namespace tinyserve {
namespace {

constexpr const char* kCodecs[] = {"f32", "f16", "planes", "int8", "k8v4"};

// Shares of the attention of the last position by unit: the mean of layers and heads.
std::vector<double> PlainMasses(SelectionRig* rig, const std::vector<float>& q) {
  const uint32_t unit = rig->cache()->share_tokens();
  std::vector<double> masses(kTokens / unit + 1);
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    for (uint32_t h = 0; h < kHeads; ++h) {
      const std::vector<float> keys = rig->Keys(layer, h / kGroup);
      std::vector<double> of_head(masses.size());
      double sum = 0;
      for (uint32_t t = 0; t < kTokens; ++t) {
        const double weight =
            std::exp(kScale * SelectionRig::Dot(&q[h * kHeadDim], &keys[t * kHeadDim]));
        of_head[t / unit] += weight;
        sum += weight;
      }
      for (size_t u = 0; u < masses.size(); ++u) masses[u] += of_head[u] / sum / (kLayers * kHeads);
    }
  }
  return masses;
}

// Runs one token at the last position in every layer, measured.
void MeasureLast(SelectionRig* rig, const std::vector<float>& q) {
  const SequenceRun run{.slot = rig->slot(),
                        .first_row = 0,
                        .rows = 1,
                        .first_position = kTokens - 1,
                        .token_class = TokenClass::kGenerated,
                        .measure_every = kTokens};
  rig->attention()->Plan({&run, 1});
  std::vector<float> out(q.size());
  for (uint32_t layer = 0; layer < kLayers; ++layer)
    rig->attention()->Run(layer, q.data(), q.size(), out.data(), out.size());
}

class Pruning : public testing::TestWithParam<const Kernels*> {};

TEST_P(Pruning, MassesEqualPlainSums) {
  for (const std::string codec : kCodecs) {
    SelectionRig rig(GetParam(), {}, 64, 2, codec.c_str());
    const auto first = Query(3), second = Query(4);
    const uint64_t plain_bytes = [&] {
      rig.Decode(0, first, 0);
      return rig.attention()->kv_bytes();
    }();
    MeasureLast(&rig, first);
    EXPECT_EQ(rig.attention()->kv_bytes(), 2 * plain_bytes);  // measuring reads everything again
    MeasureLast(&rig, second);
    const std::vector<double> a = PlainMasses(&rig, first), b = PlainMasses(&rig, second);
    const std::span<const float> found = rig.attention()->unit_masses(rig.slot());
    ASSERT_EQ(found.size(), kTokens / rig.cache()->share_tokens());
    for (size_t u = 0; u < found.size(); ++u)
      EXPECT_NEAR(found[u], (a[u] + b[u]) / 2, 0.01 * (a[u] + b[u])) << codec << " unit " << u;
  }
}

TEST_P(Pruning, WhatIsLeftIsAttendedToAsIfTheRestHadNeverBeen) {
  for (const std::string codec : kCodecs) {
    SelectionRig rig(GetParam(), {"box:ratio=1,min_context=0"}, 64, 2, codec.c_str());
    const auto q = Query(5);
    const uint32_t unit = rig.cache()->share_tokens();
    const std::vector<uint32_t> dropped = {0, 3, 4, 9};
    std::vector<float> expected(q.size());
    for (uint32_t h = 0; h < kHeads; ++h) {
      const std::vector<float> keys = rig.Keys(1, h / kGroup), values = rig.Values(1, h / kGroup);
      std::vector<double> o(kHeadDim);
      double d = 0;
      for (uint32_t t = 0; t < kTokens; ++t) {
        if (std::count(dropped.begin(), dropped.end(), t / unit) == 1) continue;
        const double weight =
            std::exp(kScale * SelectionRig::Dot(&q[h * kHeadDim], &keys[t * kHeadDim]));
        d += weight;
        for (uint32_t c = 0; c < kHeadDim; ++c) o[c] += weight * values[t * kHeadDim + c];
      }
      for (uint32_t c = 0; c < kHeadDim; ++c)
        expected[h * kHeadDim + c] = static_cast<float>(o[c] / d);
    }
    rig.cache()->Commit(rig.slot(), kTokens - 3);
    MeasureLast(&rig, q);
    const std::span<const float> known = rig.attention()->unit_masses(rig.slot());
    std::vector<float> masses(known.begin(), known.end());
    rig.cache()->Drop(rig.slot(), dropped);
    rig.attention()->DropUnits(rig.slot(), dropped);
    for (auto u = dropped.rbegin(); u != dropped.rend(); ++u) masses.erase(masses.begin() + *u);
    const std::span<const float> left = rig.attention()->unit_masses(rig.slot());
    EXPECT_EQ(std::vector<float>(left.begin(), left.end()), masses);
    const auto last = kTokens - 1 - static_cast<uint32_t>(dropped.size()) * unit;
    const bool exact = codec[0] == 'f' || codec == "planes";
    for (const uint32_t selector : {0u, 1u}) {
      const std::vector<float> found = rig.Decode(1, q, selector, last);
      double difference = 0, norm = 0;
      for (size_t i = 0; i < q.size(); ++i) {
        difference += std::pow(double{found[i]} - expected[i], 2);
        norm += std::pow(double{expected[i]}, 2);
      }
      EXPECT_LT(std::sqrt(difference / norm), exact ? 2e-3 : 0.03) << codec << selector;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, Pruning, testing::ValuesIn(AvailableTargets()),
                         [](const auto& test) {
                           std::string name = test.param->name;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// ---- through the engine -------------------------------------------------------------------------

constexpr char kPruned[] = "token_pruning:keep=0.4,min_tokens=32,sink=0,recent=32,every=8";

EngineOptions Options(const std::vector<std::string>& steps) {
  EngineOptions options;
  options.model_path = TS_SOURCE_DIR "/tests/golden/tiny/llama.gguf";
  options.threads = 1;
  options.sequences_max = 4;
  options.context_tokens = 256;
  options.prefix_cache = false;
  options.step_plugins = steps;
  return options;
}

Request Prompt(uint32_t tokens, uint32_t seed = 0) {
  Request request;
  for (uint32_t t = 0; t < tokens; ++t)
    request.prompt.push_back(static_cast<int32_t>((t * 7 + seed * 31) % 200));
  request.max_tokens = 100;
  request.ignore_eos = true;
  request.top_logprobs = 0;
  return request;
}

TEST(TokenPruning, ATextIsTheSameAloneAndInAnyBatch) {
  for (const char* kv : {"f16", "int8"}) {
    EngineOptions options = Options({kPruned});
    options.kv = kv;
    const auto alone = *Engine::Open(options);
    options.threads = 3;
    options.step_tokens_max = 23;
    const auto together = *Engine::Open(options);
    std::vector<Request> requests;
    for (uint32_t i = 0; i < 6; ++i) requests.push_back(Prompt(33 + 20 * i, i));
    std::vector<Answer> answers(requests.size());
    std::vector<RequestId> ids;
    for (size_t i = 0; i < requests.size(); ++i)
      ids.push_back(*together->Submit(requests[i], CollectInto(&answers[i])));
    for (const RequestId id : ids) together->Wait(id);
    for (size_t i = 0; i < requests.size(); ++i) {
      const Answer expected = Ask(alone.get(), requests[i]);
      EXPECT_EQ(answers[i].tokens, expected.tokens) << kv << i;
      EXPECT_EQ(answers[i].logprobs, expected.logprobs) << kv << i;
    }
    EXPECT_GT(alone->stats().dropped_tokens, 0u);
    EXPECT_EQ(alone->stats().dropped_tokens, together->stats().dropped_tokens);
    EXPECT_EQ(together->stats().blocks_used, 0u);
    // It changes texts, for it loses what it drops.
    Request plain = requests[5];
    plain.step_plugins.emplace();
    EXPECT_NE(Ask(alone.get(), plain).logprobs, answers[5].logprobs);
    plain.step_plugins = {"token_pruning:keep=1,min_tokens=0,every=8"};
    const Answer kept = Ask(alone.get(), plain);
    plain.step_plugins.emplace();
    EXPECT_EQ(kept.logprobs, Ask(alone.get(), plain).logprobs);
  }
}

// Three sequences come to need 21 blocks of 32 tokens and drop most of them: they fit in 13.
TEST(TokenPruning, BlocksAreFreedForOthers) {
  const auto preemptions = [](const std::vector<std::string>& steps) {
    EngineOptions options = Options(steps);
    options.kv_memory_bytes = 13 * 32 * Engine::Open(Options({}))->get()->info().kv_bytes_per_token;
    const auto engine = *Engine::Open(options);
    EXPECT_EQ(engine->stats().blocks_total, 13u);
    std::vector<Answer> answers(3);
    std::vector<RequestId> ids;
    for (uint32_t i = 0; i < 3; ++i)
      ids.push_back(*engine->Submit(Prompt(96 + i, i), CollectInto(&answers[i])));
    for (const RequestId id : ids) engine->Wait(id);
    for (const Answer& answer : answers) EXPECT_EQ(answer.tokens.size(), 100u);
    return engine->stats().preemptions;
  };
  EXPECT_GT(preemptions({}), 0u);
  EXPECT_EQ(preemptions({kPruned}), 0u);
}

TEST(TokenPruning, IsRefusedBesideThePrefixCache) {
  EngineOptions options = Options({kPruned});
  options.prefix_cache = true;
  const auto refused = [](const Status& status) {
    EXPECT_EQ(status.code(), Code::kInvalidArgument);
    EXPECT_NE(status.message().find("'token_pruning:keep=0.4"), std::string::npos);
    EXPECT_NE(status.message().find("prefix_cache"), std::string::npos) << status.message();
  };
  refused(Engine::Open(options).status());
  options.step_plugins.clear();
  const auto engine = *Engine::Open(options);
  Request request = Prompt(40);
  request.step_plugins = {kPruned};
  refused(engine->Submit(request, [](const TokenEvent&) {}).status());
}

}  // namespace
}  // namespace tinyserve
