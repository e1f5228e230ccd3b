#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <tuple>

namespace tinyserve {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

int32_t SampleOnce(const SamplingOptions& options, std::vector<float> logits, uint64_t position,
                   std::span<const int32_t> banned = {}) {
  Sampler sampler(options, static_cast<uint32_t>(logits.size()), {});
  return sampler.Sample(logits, position, banned);
}

// Share of each token over many positions.
std::map<int32_t, double> Shares(const SamplingOptions& options, const std::vector<float>& logits) {
  std::map<int32_t, double> shares;
  constexpr int kDraws = 20000;
  for (int i = 0; i < kDraws; ++i)
    shares[SampleOnce(options, logits, static_cast<uint64_t>(i))] += 1.0 / kDraws;
  return shares;
}

TEST(Argmax, LowestIndexAmongEqualsAndNeverNaN) {
  EXPECT_EQ(Argmax(std::vector<float>{1, 3, 3, 2}), 1);
  EXPECT_EQ(Argmax(std::vector<float>{kNaN, -5, kNaN}), 1);
  std::vector<float> many(1000, -1.0f);
  for (size_t at : {0u, 15u, 16u, 17u, 991u, 999u}) {
    many.assign(1000, -1.0f);
    many[at] = 2;
    EXPECT_EQ(Argmax(many), static_cast<int32_t>(at));
  }
}

TEST(Sampler, DrawsFromTheSoftmax) {
  SamplingOptions o;
  o.temperature = 1;
  o.seed = 7;
  auto shares = Shares(o, {std::log(0.5f), std::log(0.3f), std::log(0.2f)});
  EXPECT_NEAR(shares[0], 0.5, 0.015);
  EXPECT_NEAR(shares[1], 0.3, 0.015);
  EXPECT_NEAR(shares[2], 0.2, 0.015);
  o.temperature = 0.5;  // squares the odds
  shares = Shares(o, {std::log(0.5f), std::log(0.3f), std::log(0.2f)});
  EXPECT_NEAR(shares[0], 0.25 / 0.38, 0.015);
}

TEST(Sampler, TopKTopPMinP) {
  const std::vector<float> logits = {std::log(0.4f), std::log(0.3f), std::log(0.2f),
                                     std::log(0.1f)};
  SamplingOptions o;
  o.temperature = 1;
  o.top_k = 2;
  auto shares = Shares(o, logits);
  EXPECT_EQ(shares.size(), 2u);
  EXPECT_NEAR(shares[0], 4.0 / 7, 0.015);
  o.top_k = 0;
  o.top_p = 0.65f;  // 0.4 is not enough, 0.7 is
  EXPECT_EQ(Shares(o, logits).size(), 2u);
  o.top_p = 0.75f;
  EXPECT_EQ(Shares(o, logits).size(), 3u);
  o.top_p = 1e-6f;
  EXPECT_EQ(Shares(o, logits).size(), 1u);
  o.top_p = 1;
  o.min_p = 0.45f;  // of the best's 0.4: keeps 0.2 and above
  EXPECT_EQ(Shares(o, logits).size(), 3u);
}

TEST(Sampler, PenaltiesBiasAndBans) {
  SamplingOptions o;
  o.repetition_penalty = 2;
  std::vector<float> logits = {3, 2, -1};
  const std::vector<int32_t> prompt = {0};
  Sampler repeat(o, 3, prompt);
  EXPECT_EQ(repeat.Sample(logits, 0, {}), 1);
  EXPECT_FLOAT_EQ(logits[0], 1.5f);

  SamplingOptions counted;
  counted.presence_penalty = 0.5f;
  counted.frequency_penalty = 0.25f;
  Sampler count(counted, 3, prompt);
  count.Observe(1);
  count.Observe(1);
  logits = {3, 2, -1};
  EXPECT_EQ(count.Sample(logits, 0, {}), 0);
  EXPECT_FLOAT_EQ(logits[0], 3);  // prompt tokens are not counted
  EXPECT_FLOAT_EQ(logits[1], 1);

  SamplingOptions biased;
  biased.logit_bias = {{2, 100.0f}};
  EXPECT_EQ(SampleOnce(biased, {3, 2, -1}, 0), 2);
  const std::vector<int32_t> banned = {2, 0};
  EXPECT_EQ(SampleOnce(biased, {3, 2, -1}, 0, banned), 1);
}

TEST(Sampler, DependsOnSeedAndPositionAlone) {
  SamplingOptions o;
  o.temperature = 1;
  const std::vector<float> flat(100, 0.0f);
  o.seed = 1;
  const int32_t a = SampleOnce(o, flat, 5);
  EXPECT_EQ(a, SampleOnce(o, flat, 5));
  int differs = 0;
  for (uint64_t p = 6; p < 16; ++p) differs += SampleOnce(o, flat, p) != a;
  EXPECT_GE(differs, 8);
  o.seed = 2;
  differs = 0;
  for (uint64_t p = 0; p < 20; ++p) {
    SamplingOptions other = o;
    other.seed = 1;
    differs += SampleOnce(o, flat, p) != SampleOnce(other, flat, p);
  }
  EXPECT_GE(differs, 15);
}

// Against a plain reading of the definitions, over vocabularies in which likely and unlikely
// tokens, equals among them, lie in any order.
TEST(Sampler, KeepsWhatTheDefinitionsKeep) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (const float spread : {0.0f, 0.5f, 3.0f, 10.0f}) {
    for (const auto& [top_k, top_p, min_p] : {std::tuple{0u, 1.0f, 0.0f},
                                              {0u, 0.9f, 0.0f},
                                              {40u, 1.0f, 0.0f},
                                              {40u, 0.8f, 0.0f},
                                              {0u, 0.999f, 0.01f},
                                              {0u, 1.0f, 0.1f},
                                              {5000u, 0.5f, 0.0f},
                                              {700u, 1.0f, 0.0f}}) {
      SamplingOptions o;
      o.temperature = 0.8f;
      o.top_k = top_k;
      o.top_p = top_p;
      o.min_p = min_p;
      std::vector<float> logits(1000);
      for (float& x : logits) x = std::round(normal(random) * spread * 4) / 4;
      std::vector<size_t> order(logits.size());
      std::iota(order.begin(), order.end(), size_t{0});
      std::stable_sort(order.begin(), order.end(),
                       [&](size_t a, size_t b) { return logits[a] > logits[b]; });
      const auto weight = [&](size_t t) {
        return std::exp((double{logits[t]} - logits[order[0]]) / 0.8f);
      };
      if (top_k > 0) order.resize(std::min<size_t>(order.size(), top_k));
      double total = 0, mass = 0;
      for (size_t t : order) total += weight(t);
      std::map<int32_t, double> expected;
      for (size_t t : order) {
        if (mass >= top_p * total) break;
        mass += weight(t);
        if (weight(t) >= min_p) expected[static_cast<int32_t>(t)] = weight(t);
      }
      double kept = 0;
      for (const auto& [token, w] : expected) kept += w;
      std::map<int32_t, int> seen;
      constexpr int kDraws = 2000;
      for (int i = 0; i < kDraws; ++i) ++seen[SampleOnce(o, logits, static_cast<uint64_t>(i))];
      for (const auto& [token, times] : seen) {
        ASSERT_TRUE(expected.contains(token)) << spread << " " << top_k << " " << top_p;
        const double share = expected[token] / kept;
        // Six standard errors.
        EXPECT_NEAR(times, kDraws * share, 1 + 6 * std::sqrt(kDraws * share * (1 - share)));
      }
    }
  }
}

TEST(Sampler, SurvivesBrokenLogits) {
  SamplingOptions o;
  o.temperature = 1;
  o.top_p = 0.9f;
  const float inf = std::numeric_limits<float>::infinity();
  for (const std::vector<float>& logits :
       std::vector<std::vector<float>>{{kNaN, kNaN}, {-inf, -inf}, {inf, 0}, {kNaN, 1}}) {
    const int32_t token = SampleOnce(o, logits, 0);
    EXPECT_GE(token, 0);
    EXPECT_LT(token, 2);
  }
}

TEST(CheckSampling, NamesTheFieldAndTheRange) {
  const auto message = [](void (*change)(SamplingOptions*)) {
    SamplingOptions o;
    change(&o);
    return CheckSampling(o, 10).message();
  };
  EXPECT_EQ(message([](SamplingOptions*) {}), "");
  EXPECT_EQ(message([](SamplingOptions* o) { o->temperature = -1; }),
            "temperature is -1: allowed is [0, 100]");
  EXPECT_EQ(message([](SamplingOptions* o) { o->temperature = kNaN; }),
            "temperature is nan: allowed is [0, 100]");
  EXPECT_EQ(message([](SamplingOptions* o) { o->top_p = 0; }), "top_p is 0: allowed is (0, 1]");
  EXPECT_EQ(message([](SamplingOptions* o) { o->repetition_penalty = 0; }),
            "repetition_penalty is 0: allowed is (0, 100]");
  EXPECT_EQ(message([](SamplingOptions* o) {
              o->logit_bias = {{10, 1.0f}};
            }),
            "logit_bias names token 10: allowed are 0 to 9");
  EXPECT_EQ(message([](SamplingOptions* o) {
              o->logit_bias = {{1, 101.0f}};
            }),
            "logit_bias is 101: allowed is [-100, 100]");
}

}  // namespace
}  // namespace tinyserve
