// Tokens drawn on the emulated device are those that the engine's sampler draws.
#include "kernels/cuda/sample.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <vector>

#include "engine/sampler.h"
#include "kernels/testing.h"
#include "tests/simt/device_testing.h"
#include "tests/simt/emulator.h"

namespace tinyserve::cuda {
namespace {

struct Rows {
  uint32_t vocab;
  std::vector<float> logits, temperatures, min_ps;
  std::vector<uint64_t> seeds, positions;
  std::vector<uint32_t> allowed;

  Rows(uint32_t rows, uint32_t v, float temperature, float min_p)
      : vocab(v),
        logits(RandomRows(uint64_t{rows} * v, v + rows)),
        temperatures(rows, temperature),
        min_ps(rows, min_p),
        seeds(rows),
        positions(rows) {
    for (float& logit : logits) logit *= 8;
    for (uint32_t r = 0; r < rows; ++r) {
      seeds[r] = 1000003 * r + 7;
      positions[r] = 11 * r;
    }
  }
  uint32_t Words() const { return (vocab + 31) / 32; }

  std::vector<int32_t> Device() const {
    const auto rows = static_cast<uint32_t>(seeds.size());
    std::vector<float> weights(logits.size()), sums(uint64_t{rows} * ((vocab + 63) / 64));
    std::vector<int32_t> tokens(rows, -7);
    const Status status = Sample({.logits = ArrayOf(logits),
                                  .rows = rows,
                                  .vocab = vocab,
                                  .temperatures = ArrayOf(temperatures),
                                  .min_ps = ArrayOf(min_ps),
                                  .seeds = ArrayOf(seeds),
                                  .positions = ArrayOf(positions),
                                  .allowed = ArrayOf(allowed),
                                  .weights = ArrayOf(weights),
                                  .sums = ArrayOf(sums),
                                  .tokens = ArrayOf(tokens)},
                                 nullptr);
    EXPECT_TRUE(status.ok()) << status.message();
    return tokens;
  }
  std::vector<int32_t> Engine() const {
    std::vector<int32_t> tokens;
    for (size_t r = 0; r < seeds.size(); ++r) {
      const auto at = logits.begin() + static_cast<ptrdiff_t>(r * vocab);
      std::vector<float> row(at, at + vocab);
      if (!allowed.empty()) RuleOut({allowed.data() + r * Words(), Words()}, row);
      Sampler sampler({.temperature = temperatures[r], .min_p = min_ps[r], .seed = seeds[r]}, vocab,
                      {});
      tokens.push_back(sampler.Sample(row, positions[r], {}));
    }
    return tokens;
  }
};

TEST(DeviceSample, DrawsWhatTheEngineDraws) {
  for (const uint32_t vocab : {1u, 63u, 1000u, 4100u}) {
    for (const float temperature : {0.3f, 1.0f, 100.0f}) {
      for (const float min_p : {0.0f, 0.05f}) {
        simt::SetSeed(vocab);
        const Rows rows(12, vocab, temperature, min_p);
        EXPECT_EQ(rows.Device(), rows.Engine()) << vocab << " at " << temperature << ", " << min_p;
      }
    }
  }
}

TEST(DeviceSample, DrawsDependOnSeedAndPosition) {
  Rows rows(16, 1000, 100.0f, 0.0f);
  for (size_t r = 1; r < 16; ++r) {
    std::copy_n(rows.logits.begin(), 1000, rows.logits.begin() + static_cast<ptrdiff_t>(r * 1000));
  }
  const std::vector<int32_t> drawn = rows.Device();
  EXPECT_GE(std::set<int32_t>(drawn.begin(), drawn.end()).size(), 12u);
  rows.seeds.assign(16, 3);
  rows.positions.assign(16, 5);
  const std::vector<int32_t> same = rows.Device();
  EXPECT_EQ(std::set<int32_t>(same.begin(), same.end()).size(), 1u);
}

TEST(DeviceSample, WithoutTemperatureTheFirstOfTheLargestWins) {
  Rows rows(5, 300, 0.0f, 0.0f);
  rows.logits[0 * 300 + 299] = 99;
  rows.logits[1 * 300 + 17] = rows.logits[1 * 300 + 18] = rows.logits[1 * 300 + 290] = 99;
  for (uint32_t t = 0; t < 300; ++t) rows.logits[2 * 300 + t] = NAN;
  for (uint32_t t = 0; t < 300; ++t) rows.logits[3 * 300 + t] = t < 40 ? NAN : -INFINITY;
  rows.logits[4 * 300 + 123] = INFINITY;
  const std::vector<int32_t> tokens = rows.Device();
  EXPECT_EQ(tokens, rows.Engine());
  EXPECT_EQ(tokens[1], 17);
}

TEST(DeviceSample, WhatIsRuledOutIsNotDrawn) {
  for (const float temperature : {0.0f, 1.0f}) {
    Rows rows(8, 1000, temperature, 0.0f);
    testing::Random random(4);
    rows.allowed.resize(8 * rows.Words());
    for (uint32_t& word : rows.allowed) word = static_cast<uint32_t>(random.Next() & random.Next());
    const std::vector<int32_t> tokens = rows.Device();
    EXPECT_EQ(tokens, rows.Engine());
    for (size_t r = 0; r < 8; ++r) {
      const auto t = static_cast<uint32_t>(tokens[r]);
      EXPECT_TRUE(rows.allowed[r * rows.Words() + t / 32] >> t % 32 & 1);
    }
  }
}

}  // namespace
}  // namespace tinyserve::cuda
