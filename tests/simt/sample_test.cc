// Tokens drawn on the emulated device are those that the engine's sampler draws.
#include "kernels/cuda/sample.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "engine/logprobs.h"
#include "engine/sampler.h"
#include "kernels/testing.h"
#include "tests/simt/device_testing.h"
#include "tests/simt/emulator.h"

namespace tinyserve::cuda {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// What one row is drawn by.
struct Wish {
  SamplingOptions options;
  std::vector<int32_t> prompt, generated, banned;
  bool last_is_own = false;  // the device alone knows the last token that was generated
  int32_t scored = -1;
};

struct Rows {
  uint32_t vocab;
  std::vector<float> logits;  // [rows][vocab]
  std::vector<Wish> wishes;
  std::vector<uint64_t> positions;
  std::vector<uint32_t> allowed;  // masks of all rows; empty: none has one
  // After Device().
  std::vector<float> tops;
  std::vector<TokenScores> scores;

  Rows(uint32_t rows, uint32_t v, const SamplingOptions& options)
      : vocab(v), logits(RandomRows(uint64_t{rows} * v, v + rows)), wishes(rows), positions(rows) {
    for (float& logit : logits) logit *= 8;
    for (uint32_t r = 0; r < rows; ++r) {
      wishes[r].options = options;
      wishes[r].options.seed = 1000003 * r + 7;
      positions[r] = 11 * r;
    }
  }
  uint32_t Words() const { return (vocab + 31) / 32; }
  uint32_t size() const { return static_cast<uint32_t>(wishes.size()); }
  std::vector<float> LogitsOf(size_t r) const {
    const auto at = logits.begin() + static_cast<ptrdiff_t>(r * vocab);
    return {at, at + vocab};
  }
  Sampler SamplerOf(size_t r, size_t left_out) const {
    const Wish& wish = wishes[r];
    Sampler sampler(wish.options, vocab, wish.prompt);
    for (size_t i = 0; i + left_out < wish.generated.size(); ++i)
      sampler.Observe(wish.generated[i]);
    return sampler;
  }

  std::vector<int32_t> Device();
  std::vector<int32_t> Engine() const {
    std::vector<int32_t> tokens;
    for (size_t r = 0; r < wishes.size(); ++r) {
      std::vector<float> row = LogitsOf(r);
      if (!allowed.empty()) RuleOut({allowed.data() + r * Words(), Words()}, row);
      tokens.push_back(SamplerOf(r, 0).Sample(row, positions[r], wishes[r].banned));
    }
    return tokens;
  }
};

// Rows as SampleArgs has them.
struct Uploads {
  std::vector<DrawScale> scales;
  std::vector<DrawPenalties> penalties;
  std::vector<DrawLists> lists;
  std::vector<DrawSeed> seeds;
  std::vector<uint32_t> words, rows_of;
  std::vector<int32_t> ids;

  explicit Uploads(const Rows& rows) {
    for (size_t r = 0; r < rows.wishes.size(); ++r) Add(rows, r);
  }
  void Add(const Rows& rows, size_t r) {
    const Wish& wish = rows.wishes[r];
    std::vector<tinyserve::LogitEdit> edits;
    const DrawRule rule = rows.SamplerOf(r, wish.last_is_own ? 1 : 0).RuleWith(wish.banned, &edits);
    scales.push_back({rule.temperature, rule.min_p, rule.top_p, rule.top_k});
    penalties.push_back(
        {rule.repetition, rule.presence, rule.frequency, wish.last_is_own ? 1u : 0u});
    words.resize((words.size() + 3) / 4 * 4);
    DrawLists list{.edits_at = static_cast<uint32_t>(words.size()),
                   .edits = rule.edits,
                   .mask_at = kNoMask,
                   .scored = wish.scored};
    for (const tinyserve::LogitEdit& edit : edits) {
      words.insert(words.end(),
                   {static_cast<uint32_t>(edit.token), std::bit_cast<uint32_t>(edit.bias),
                    edit.seen ? 1u : 0u, edit.generated});
    }
    if (!rows.allowed.empty()) {
      list.mask_at = static_cast<uint32_t>(words.size());
      const auto mask = rows.allowed.begin() + static_cast<ptrdiff_t>(r * rows.Words());
      words.insert(words.end(), mask, mask + rows.Words());
    }
    lists.push_back(list);
    seeds.push_back({rule.seed, rows.positions[r]});
    rows_of.push_back(static_cast<uint32_t>(rows.wishes.size() - 1 - r));  // in any order
    ids.insert(ids.begin(), wish.generated.empty() ? -1 : wish.generated.back());
  }
};

std::vector<int32_t> Rows::Device() {
  const Uploads up(*this);
  std::vector<float> weights(logits.size()), edited(uint64_t{size()} * (kEditsMax + 1));
  std::vector<double> sums(uint64_t{size()} * ((vocab + 63) / 64));
  std::vector<int32_t> tokens(size(), -7);
  const std::vector<float> before = logits;
  tops.assign(size(), 0);
  scores.assign(size(), {});
  const Status status = Sample({.logits = ArrayOf(logits),
                                .rows = size(),
                                .vocab = vocab,
                                .scales = ArrayOf(up.scales),
                                .penalties = ArrayOf(up.penalties),
                                .lists = ArrayOf(up.lists),
                                .seeds = ArrayOf(up.seeds),
                                .words = ArrayOf(up.words),
                                .rows_of = ArrayOf(up.rows_of),
                                .ids = ArrayOf(up.ids),
                                .weights = ArrayOf(weights),
                                .sums = ArrayOf(sums),
                                .edited = ArrayOf(edited),
                                .tokens = ArrayOf(tokens),
                                .tops = ArrayOf(tops),
                                .scores = ArrayOf(scores)},
                               nullptr);
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(std::memcmp(before.data(), logits.data(), logits.size() * sizeof(float)), 0);
  return tokens;
}

SamplingOptions At(float temperature, float min_p = 0, uint32_t top_k = 0, float top_p = 1) {
  SamplingOptions options;
  options.temperature = temperature;
  options.min_p = min_p;
  options.top_k = top_k;
  options.top_p = top_p;
  return options;
}

TEST(DeviceSample, DrawsWhatTheEngineDraws) {
  for (const uint32_t vocab : {1u, 63u, 1000u, 4100u}) {
    for (const float temperature : {0.3f, 1.0f, 100.0f}) {
      for (const float min_p : {0.0f, 0.05f}) {
        simt::SetSeed(vocab);
        Rows rows(12, vocab, At(temperature, min_p));
        EXPECT_EQ(rows.Device(), rows.Engine()) << vocab << " at " << temperature << ", " << min_p;
      }
    }
  }
}

TEST(DeviceSample, KeepsTheBestThatTheEngineKeeps) {
  for (const uint32_t vocab : {63u, 700u}) {
    for (const float temperature : {0.3f, 100.0f}) {
      for (const uint32_t top_k : {0u, 1u, 7u, 5000u}) {
        for (const float top_p : {0.01f, 0.9f, 1.0f}) {
          simt::SetSeed(vocab + top_k);
          Rows rows(3, vocab, At(temperature, top_k == 7 ? 0.02f : 0.0f, top_k, top_p));
          EXPECT_EQ(rows.Device(), rows.Engine())
              << vocab << " at " << temperature << ", " << top_k << ", " << top_p;
        }
      }
    }
  }
}

// Which tokens a row draws at all, over many seeds.
std::set<int32_t> DrawnOf(const std::vector<float>& logits, const SamplingOptions& options) {
  Rows rows(24, static_cast<uint32_t>(logits.size()), options);
  for (size_t r = 0; r < 24; ++r)
    std::copy(logits.begin(), logits.end(),
              rows.logits.begin() + static_cast<ptrdiff_t>(r * logits.size()));
  const std::vector<int32_t> tokens = rows.Device();
  EXPECT_EQ(tokens, rows.Engine());
  return {tokens.begin(), tokens.end()};
}

// Equal logits weigh 1, and sums of them are exact: the cut is at the very token.
TEST(DeviceSample, CutsAmongEqualsByTheirIds) {
  std::vector<float> logits(300, -9.0f);
  for (const size_t t : {17u, 40u, 41u, 170u, 171u, 222u, 280u, 299u}) logits[t] = 2.5f;
  const std::set<int32_t> first_three = {17, 40, 41}, first_half = {17, 40, 41, 170};
  EXPECT_EQ(DrawnOf(logits, At(0.05f, 0, 3)), first_three);
  EXPECT_EQ(DrawnOf(logits, At(0.05f, 0, 0, 0.5f)), first_half);
  EXPECT_EQ(DrawnOf(logits, At(0.05f, 0, 4, 0.75f)), first_three);
  logits[299] = std::nextafter(2.5f, 3.0f);  // first of all, and as heavy
  EXPECT_EQ(DrawnOf(logits, At(0.05f, 0, 3)), (std::set<int32_t>{17, 40, 299}));
}

// A cut among more tokens than are likely ones, and among zeros of both signs.
TEST(DeviceSample, LooksAtUnlikelyTokensWhereTheLikelyOnesDoNotDo) {
  std::vector<float> logits(500);
  for (size_t t = 0; t < logits.size(); ++t)
    logits[t] = t == 77 ? 12.0f : t % 2 == 0 ? 0.0f : -0.0f;
  EXPECT_GT(DrawnOf(logits, At(1.3f, 0, 400)).size(), 1u);
  EXPECT_GT(DrawnOf(logits, At(1.3f, 0, 0, 0.995f)).size(), 1u);
}

TEST(DeviceSample, DrawsByShares) {
  Rows rows(250, 4, At(1, 0, 3));
  for (size_t r = 0; r < rows.size(); ++r) {
    const float row[] = {std::log(0.5f), std::log(0.3f), std::log(0.2f), std::log(0.1f)};
    std::copy_n(row, 4, rows.logits.begin() + static_cast<ptrdiff_t>(4 * r));
  }
  std::map<int32_t, double> shares;
  for (const int32_t token : rows.Device()) shares[token] += 1.0 / rows.size();
  EXPECT_NEAR(shares[0], 0.5, 0.08);
  EXPECT_NEAR(shares[1], 0.3, 0.08);
  EXPECT_NEAR(shares[2], 0.2, 0.08);
  EXPECT_EQ(shares[3], 0);
}

TEST(DeviceSample, DrawsDependOnSeedAndPosition) {
  Rows rows(16, 1000, At(100.0f));
  for (size_t r = 1; r < 16; ++r) {
    std::copy_n(rows.logits.begin(), 1000, rows.logits.begin() + static_cast<ptrdiff_t>(r * 1000));
  }
  const std::vector<int32_t> drawn = rows.Device();
  EXPECT_GE(std::set<int32_t>(drawn.begin(), drawn.end()).size(), 12u);
  for (Wish& wish : rows.wishes) wish.options.seed = 3;
  rows.positions.assign(16, 5);
  const std::vector<int32_t> same = rows.Device();
  EXPECT_EQ(std::set<int32_t>(same.begin(), same.end()).size(), 1u);
}

TEST(DeviceSample, WithoutTemperatureTheFirstOfTheLargestWins) {
  Rows rows(5, 300, At(0, 0, 2, 0.5f));
  rows.logits[0 * 300 + 299] = 99;
  rows.logits[1 * 300 + 17] = rows.logits[1 * 300 + 18] = rows.logits[1 * 300 + 290] = 99;
  for (uint32_t t = 0; t < 300; ++t) rows.logits[2 * 300 + t] = NAN;
  for (uint32_t t = 0; t < 300; ++t) rows.logits[3 * 300 + t] = t < 40 ? NAN : -INFINITY;
  rows.logits[4 * 300 + 123] = INFINITY;
  const std::vector<int32_t> tokens = rows.Device();
  EXPECT_EQ(tokens, rows.Engine());
  EXPECT_EQ(tokens[1], 17);
  EXPECT_FALSE(std::isfinite(rows.tops[2]));
  EXPECT_FALSE(std::isfinite(rows.tops[4]));
}

TEST(DeviceSample, WhatIsRuledOutIsNotDrawn) {
  for (const SamplingOptions& options : {At(0), At(1), At(1, 0, 30, 0.9f)}) {
    Rows rows(8, 1000, options);
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

// Biases, penalties and bans by the engine's operations; the newest token is counted where it has
// an edit and where it has none, and logits are as before afterwards (Device()).
TEST(DeviceSample, ChangesLogitsAsTheEngineDoes) {
  for (const float temperature : {0.0f, 0.8f}) {
    Rows rows(8, 600, At(temperature));
    for (uint32_t r = 0; r < 8; ++r) {
      Wish& wish = rows.wishes[r];
      for (uint32_t i = 0; i < 120; ++i) {
        wish.prompt.push_back(static_cast<int32_t>((i * i + r) % 600));
        wish.generated.push_back(static_cast<int32_t>((i * 7 + r) % (r % 2 == 0 ? 600 : 5)));
      }
      wish.generated.push_back(r % 4 < 2 ? 599 : wish.generated.front());
      wish.last_is_own = r >= 2;
      if (r != 4) wish.options.repetition_penalty = 1.7f;
      if (r > 3) wish.options.presence_penalty = 0.75f;
      if (r > 4) wish.options.frequency_penalty = r == 5 ? -1.9f : 0.33f;
      wish.options.logit_bias = {{3, -100.0f}, {599, 3.5f}, {44, 7.25f}, {44, 0.5f}};
      const auto best =
          std::max_element(rows.logits.begin() + 600 * r, rows.logits.begin() + 600 * r + 600);
      if (r == 7) wish.banned = {static_cast<int32_t>(best - rows.logits.begin()) - 600 * 7, 44};
    }
    const std::vector<int32_t> changed = rows.Device();
    EXPECT_EQ(changed, rows.Engine());
    if (temperature != 0) continue;
    for (Wish& wish : rows.wishes) wish = {.options = At(0)};
    EXPECT_NE(changed, rows.Device());
  }
}

TEST(DeviceSample, CountsTheNewestToken) {
  // Without its last use, 8 would win over 5.
  Rows rows(2, 40, At(0));
  for (uint32_t r = 0; r < 2; ++r) {
    std::fill_n(rows.logits.begin() + 40 * r, 40, -5.0f);
    rows.logits[40 * r + 8] = 3.0f, rows.logits[40 * r + 5] = 2.5f;
    rows.wishes[r].options.frequency_penalty = 0.4f;
    rows.wishes[r].generated = r == 0 ? std::vector<int32_t>{8, 8} : std::vector<int32_t>{3, 8};
    rows.wishes[r].last_is_own = true;
  }
  EXPECT_EQ(rows.Device(), (std::vector<int32_t>{5, 8}));
  rows.wishes[1].options.frequency_penalty = 0.6f;
  EXPECT_EQ(rows.Device(), (std::vector<int32_t>{5, 5}));
}

// Log-probabilities are the model's own: of the logits without mask, edits and temperature.
TEST(DeviceSample, ScoresWhatTheEngineScores) {
  for (const uint32_t vocab : {5u, 900u}) {
    for (const float reach : {0.5f, 1.0f, 40.0f}) {
      Rows rows(6, vocab, At(0.9f));
      for (float& logit : rows.logits) logit *= reach;
      rows.logits[1] = rows.logits[4] = rows.logits[2];
      rows.allowed.assign(6 * rows.Words(), 0x15u);
      for (uint32_t r = 0; r < 6; ++r) {
        rows.wishes[r].scored = static_cast<int32_t>(std::vector<uint32_t>{0, 1, 5, 19, 20, 20}[r]);
        rows.wishes[r].options.logit_bias = {{2, 50.0f}};
      }
      const std::vector<int32_t> tokens = rows.Device();
      EXPECT_EQ(tokens, rows.Engine());
      for (size_t r = 0; r < 6; ++r) {
        const std::vector<float> logits = rows.LogitsOf(r);
        const TokenScores& s = rows.scores[r];
        EXPECT_EQ(s.chosen, logits[static_cast<size_t>(tokens[r])]);
        EXPECT_NEAR(s.top + std::log(s.sum), LogSumExp(logits), 3e-6 * std::max(1.0f, s.top));
        const auto wanted = static_cast<uint32_t>(rows.wishes[r].scored);
        const std::vector<TokenLogprob> best = TopLogprobs(logits, 0, wanted);
        std::map<int32_t, float> named;
        for (size_t i = 0; i < best.size(); ++i)
          named[static_cast<int32_t>(s.tokens[i])] = s.logits[i];
        EXPECT_EQ(named.size(), best.size());
        for (const TokenLogprob& b : best) EXPECT_EQ(named[b.token], b.logprob) << r;
      }
    }
  }
}

TEST(DeviceSample, ScoresOfWhatIsNoNumberAreNone) {
  Rows rows(2, 100, At(0));
  for (Wish& wish : rows.wishes) wish.scored = 2;
  rows.logits[30] = NAN;
  rows.logits[100 + 30] = -kInf;
  (void)rows.Device();
  EXPECT_TRUE(std::isnan(rows.scores[0].sum));
  EXPECT_TRUE(std::isfinite(rows.scores[1].sum));
}

}  // namespace
}  // namespace tinyserve::cuda
