// The cascade of every target that this machine has: against exact attention where it reads
// everything, and against `ref` where it does not.
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "kernels/coded_testing.h"
#include "kernels/tables.h"
#include "kernels/targets.h"

namespace tinyserve {
namespace {

using namespace testing;

constexpr float kScale = 0.125f;

struct Budgets {
  uint32_t sink, recent, candidates, full_tokens, value_tokens;
  float least_share = 0;
};
constexpr Budgets kEverything = {1, 1, UINT32_MAX, UINT32_MAX, UINT32_MAX};

struct Result {
  CascadeCounts counts;
  std::vector<float> out;  // [g][head_dim]
};

// Query 0 over the first `pages` pages, merged with `open` where that is not empty.
Result RunCascade(const SealedHead& head, const Tokens& t, uint32_t pages, const Budgets& budgets,
                  OwnedPartial open) {
  const uint32_t group = t.group;
  std::vector<OwnedPartial> parts(1, OwnedPartial(group, t.head_dim));
  Scratch scratch(head.kernels().cascade_scratch_bytes(&head.shape(), group, pages));
  const CascadeArgs args{.shape = head.shape(),
                         .slab = head.slab(),
                         .records = head.records(),
                         .layout = head.layout(),
                         .pages = head.View().pages,
                         .count = pages,
                         .sink = budgets.sink,
                         .recent = budgets.recent,
                         .candidates = budgets.candidates,
                         .full_tokens = budgets.full_tokens,
                         .value_tokens = budgets.value_tokens,
                         .least_share = budgets.least_share,
                         .alpha = 1,
                         .group = group,
                         .scale = kScale,
                         .q = t.q.data(),
                         .open = open.View(),
                         .out = parts[0].View(),
                         .scratch = scratch.data()};
  const CascadeCounts counts = head.kernels().attend_cascade(&args);
  if (scratch.Overrun()) parts[0].d.assign(group, NAN);
  parts.push_back(std::move(open));
  return {counts, Merge(head.kernels(), parts, group, t.head_dim)};
}
OwnedPartial Nothing(const Tokens& t) { return OwnedPartial(t.group, t.head_dim); }

// Keys of which some stand out, so that weights differ as they do in a model.
Tokens MakeUnevenTokens(uint32_t tokens, uint32_t head_dim, uint32_t group, uint64_t seed) {
  Tokens t = MakeTokens(tokens, head_dim, group, seed);
  Random random(seed + 7);
  for (uint32_t token = 0; token < tokens; ++token) {
    const float pull = random.Signed();
    if (pull < 0.7f) continue;
    for (uint32_t c = 0; c < head_dim; ++c) {
      t.k[token * head_dim + c] += pull * 0.4f * t.q[c];
    }
  }
  return t;
}

class Cascade : public ::testing::TestWithParam<const Kernels*> {
 protected:
  const Kernels& kernels() const { return *GetParam(); }
};

TEST_P(Cascade, EverythingReadIsAttentionToWhatCodesStandFor) {
  for (const uint32_t dim : {16u, 33u, 64u, 80u, 128u}) {
    for (const uint32_t group : {1u, 2u, 3u, 4u, 5u, 8u}) {
      const Tokens t = MakeTokens(208, dim, group, dim + group);
      const SealedHead head(kernels(), t, KvType::kF16, 3);
      const Tokens decoded = head.Decoded();
      for (const uint32_t pages : {1u, 2u, 5u, 13u}) {
        const Budgets budgets = {1, pages > 1 ? 1u : 0u, UINT32_MAX, UINT32_MAX, UINT32_MAX};
        const Result got = RunCascade(head, t, pages, budgets, Nothing(t));
        EXPECT_EQ(got.counts.full_tokens, pages * 16);
        const CodeSteps steps = {.q = 1.0 / 16320, .k = 1.0 / 16320, .v = 0, .weight = 1.0 / 32767};
        EXPECT_EQ(Mismatch(got.out, Exact(decoded, kScale, 0, pages * 16),
                           AttentionTolerance(decoded, kScale, 0, pages * 16, steps)),
                  "")
            << dim << " " << group << " " << pages;
      }
    }
  }
}

// What is left after choosing is compared as a whole: tokens within a bin's rounding of a threshold
// may be chosen by one and not by the other, and weigh little.
TEST_P(Cascade, ReadsWhatThePlainLoopsRead) {
  for (const uint32_t dim : {64u, 80u, 128u}) {
    for (const uint32_t group : {1u, 3u, 7u}) {
      const Tokens t = MakeUnevenTokens(640, dim, group, 5 * dim + group);
      const SealedHead head(kernels(), t, KvType::kF16, 3),
          plain(*RefKernels(), t, KvType::kF16, 3);
      for (const Budgets& budgets : {Budgets{1, 1, 16, 48, 96}, Budgets{1, 2, 20, 48, 200},
                                     Budgets{0, 1, 40, 64, 128}, Budgets{1, 1, 2, 32, 32}}) {
        const Result got = RunCascade(head, t, 40, budgets, Nothing(t));
        const Result want = RunCascade(plain, t, 40, budgets, Nothing(t));
        EXPECT_EQ(got.counts.candidates, want.counts.candidates);
        EXPECT_EQ(got.counts.full_tokens, want.counts.full_tokens);
        EXPECT_EQ(got.counts.value_tokens, want.counts.value_tokens);
        // Keys stand out to the first head alone: what the others choose hangs on little.
        EXPECT_GT(SnrDb(got.out, want.out), group == 1 ? 30 : 15)
            << dim << " " << group << " " << budgets.candidates;
      }
    }
  }
}

// Where attention is narrow the share decides, where it is wide the numbers do.
TEST_P(Cascade, WhatWeighsLessThanTheShareIsNotRead) {
  for (const uint32_t group : {1u, 3u}) {
    const Tokens t = MakeUnevenTokens(640, 64, group, 61 + group);
    const SealedHead head(kernels(), t, KvType::kF16, 3), plain(*RefKernels(), t, KvType::kF16, 3);
    uint32_t before = UINT32_MAX;
    for (const float least : {0.0f, 0.001f, 0.004f, 0.02f}) {
      const Budgets budgets = {1, 1, 20, 96, 200, least};
      const Result got = RunCascade(head, t, 40, budgets, Nothing(t));
      const Result want = RunCascade(plain, t, 40, budgets, Nothing(t));
      // Rounding puts a token now and then into the bin beside.
      EXPECT_NEAR(got.counts.full_tokens, want.counts.full_tokens, 4) << least;
      EXPECT_NEAR(got.counts.value_tokens, want.counts.value_tokens, 4) << least;
      EXPECT_LE(got.counts.full_tokens, got.counts.value_tokens);
      EXPECT_LE(got.counts.value_tokens, before);
      EXPECT_GT(SnrDb(got.out, want.out), group == 1 ? 30 : 15) << least;
      before = got.counts.value_tokens;
    }
    EXPECT_LT(before, 200u);
    // Pages that are forced are read whatever they weigh.
    EXPECT_EQ(RunCascade(head, t, 40, {1, 1, 20, 96, 200, 1.0f}, Nothing(t)).counts.value_tokens,
              32u);
  }
}

// One key among thousands that answers the query: its value is the result, at the smallest budgets;
// also where its logit is hundreds of octaves above all others.
TEST_P(Cascade, FindsAPlantedKey) {
  Tokens t = MakeTokens(4096, 64, 3, 21, 1.0f);
  for (uint32_t h = 0; h < 3; ++h) std::copy_n(t.q.begin(), 64, t.q.begin() + h * 64);
  for (const float strength : {12.0f, 150.0f}) {
    for (const uint32_t planted : {17u, 1000u, 2063u, 4000u}) {
      Tokens with = t;
      for (uint32_t c = 0; c < 64; ++c) {
        with.k[planted * 64 + c] = strength * t.q[c];
        with.v[planted * 64 + c] = c % 2 == 0 ? 2.0f : -2.0f;
      }
      const SealedHead head(kernels(), with, KvType::kF16, 3);
      const Result got = RunCascade(head, with, 256, {1, 1, 26, 41, 82}, Nothing(with));
      EXPECT_EQ(got.counts.candidates, 26u);
      EXPECT_EQ(got.counts.full_tokens, 41u);
      for (uint32_t i = 0; i < got.out.size(); ++i) {
        EXPECT_NEAR(got.out[i], i % 2 == 0 ? 2.0f : -2.0f, 0.05f) << planted << " " << i;
      }
    }
  }
}

// Tokens are ranked beside those that are not coded yet: a head whose mass lies there has little to
// say about which of the others are read.
TEST_P(Cascade, OpenTokensTakeTheirShare) {
  const Tokens t = MakeUnevenTokens(320, 64, 2, 31);
  const SealedHead head(kernels(), t, KvType::kF16, 3);
  OwnedPartial open(2, 64);
  open.m = {200.0f, -200.0f};
  open.d = {1.0f, 1.0f};
  std::fill(open.o.begin(), open.o.end(), 1.0f);
  const Result both = RunCascade(head, t, 20, {1, 1, 8, 40, 60}, open);
  for (uint32_t c = 0; c < 64; ++c) EXPECT_NEAR(both.out[c], 1.0f, 1e-6);
  // The second head's choice is then its own alone.
  Tokens second = t;
  second.group = 1;
  std::copy_n(t.q.begin() + 64, 64, second.q.begin());
  std::vector<float> want = RunCascade(head, second, 20, {1, 1, 20, 40, 60}, Nothing(second)).out;
  const Result all = RunCascade(head, t, 20, {1, 1, 20, 40, 60}, open);
  EXPECT_GT(SnrDb({all.out.begin() + 64, all.out.end()}, want), 60);
}

TEST_P(Cascade, SameCallSameBits) {
  const Tokens t = MakeUnevenTokens(640, 64, 3, 41);
  const SealedHead head(kernels(), t, KvType::kF16, 3), elsewhere(kernels(), t, KvType::kF16, 8);
  const Budgets budgets = {1, 1, 16, 48, 96};
  EXPECT_TRUE(SameBits(RunCascade(head, t, 40, budgets, Nothing(t)).out,
                       RunCascade(elsewhere, t, 40, budgets, Nothing(t)).out));
}

// The fewer tokens are read, the further it is from reading all; and far closer than by chance.
TEST_P(Cascade, LosesLittle) {
  const Tokens t = MakeUnevenTokens(2048, 64, 1, 51);
  const SealedHead head(kernels(), t, KvType::kF16, 3);
  const std::vector<float> all = RunCascade(head, t, 128, kEverything, Nothing(t)).out;
  double before = INFINITY;
  for (const Budgets& budgets :
       {Budgets{1, 1, 100, 400, 800}, Budgets{1, 1, 64, 100, 300}, Budgets{1, 1, 26, 41, 82}}) {
    const double snr = SnrDb(RunCascade(head, t, 128, budgets, Nothing(t)).out, all);
    EXPECT_LT(snr, before);
    EXPECT_GT(snr, 0);
    before = snr;
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, Cascade, ::testing::ValuesIn(AvailableTargets()),
                         testing::TargetName());

}  // namespace
}  // namespace tinyserve
