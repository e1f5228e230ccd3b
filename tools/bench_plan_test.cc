#include "tools/bench_plan.h"

#include <gtest/gtest.h>

namespace tinyserve {
namespace {

constexpr BenchLimits kLimits{.context_tokens = 8192,
                              .block_tokens = 32,
                              .kv_bytes_per_token = 46080,
                              .kv_bytes_max = 8ull << 30};

TEST(BenchPlan, CrossesLengthsDepthsAndBatches) {
  const BenchPlan plan =
      PlanBench({.prefill = {16, 512}, .decode = 64, .depth = {4096, 0}, .batch = {1, 8}}, kLimits);
  ASSERT_EQ(plan.cases.size(), 8u);
  EXPECT_TRUE(plan.skipped.empty());
  EXPECT_EQ(plan.cases.front().depth, 0u);  // by depth, whatever the order asked for
  EXPECT_EQ(plan.cases.back().batch, 8u);
  EXPECT_EQ(plan.cases.back().depth, 4096u);
  // Sequence 0 holds the longest case, the others the batch's.
  ASSERT_EQ(plan.sequence_tokens.size(), 8u);
  EXPECT_EQ(plan.sequence_tokens[0], 4096u + 512u);
  EXPECT_EQ(plan.sequence_tokens[7], 4096u + 64u);
  EXPECT_EQ(plan.pool_tokens(), 4608u + 7u * 4160u);
  EXPECT_EQ(plan.case_tokens(), 512u + 7u * 64u);
}

TEST(BenchPlan, SelectorsTakeTurnsAtEachDepthAndBatch) {
  const BenchPlan plan = PlanBench(
      {.prefill = {16}, .decode = 64, .depth = {0, 4096}, .batch = {1, 8}, .selectors = 3},
      kLimits);
  ASSERT_EQ(plan.cases.size(), 2u * (1 + 2 * 3));
  for (size_t i = 0; i < plan.cases.size(); ++i) {
    const BenchCase& c = plan.cases[i];
    const size_t in_depth = i % 7;  // the prefill, then three selectors of each batch
    EXPECT_EQ(c.kind, in_depth == 0 ? BenchKind::kPrefill : BenchKind::kDecode);
    EXPECT_EQ(c.selector, in_depth == 0 ? 0 : (in_depth - 1) % 3);
    EXPECT_EQ(c.batch, in_depth < 4 ? 1u : 8u);
  }
  // They share their sequences.
  EXPECT_EQ(plan.pool_tokens(), 8u * 4160u);
}

TEST(BenchPlan, SkipsWhatPassesTheContextAndSaysWhy) {
  const BenchPlan plan =
      PlanBench({.prefill = {2048, 8192}, .decode = 64, .depth = {0, 7168}, .batch = {1}}, kLimits);
  ASSERT_EQ(plan.cases.size(), 4u);
  ASSERT_EQ(plan.skipped.size(), 2u);
  for (const SkippedCase& skipped : plan.skipped) {
    EXPECT_EQ(skipped.bench_case.depth, 7168u);
    EXPECT_EQ(skipped.bench_case.kind, BenchKind::kPrefill);
    EXPECT_NE(skipped.reason.find("context of 8192"), std::string::npos);
  }
}

TEST(BenchPlan, SkipsWhatDoesNotFitIntoMemory) {
  BenchLimits limits = kLimits;
  limits.kv_bytes_max = 1ull << 30;  // room for 23301 tokens
  const BenchPlan plan =
      PlanBench({.prefill = {}, .decode = 64, .depth = {4096}, .batch = {1, 4, 8}}, limits);
  ASSERT_EQ(plan.cases.size(), 2u);
  ASSERT_EQ(plan.skipped.size(), 1u);
  EXPECT_EQ(plan.skipped[0].bench_case.batch, 8u);
  EXPECT_LE(plan.pool_tokens() * limits.kv_bytes_per_token, limits.kv_bytes_max);
}

TEST(BenchPlan, ZeroMeansNoneOfThatKind) {
  const BenchWishes wishes{.prefill = {0}, .decode = 0, .depth = {0}, .batch = {1}};
  EXPECT_TRUE(PlanBench(wishes, kLimits).cases.empty());
}

TEST(BenchPlan, HugeWishesDoNotOverflow) {
  BenchLimits limits = kLimits;
  limits.context_tokens = UINT32_MAX;
  const BenchPlan plan = PlanBench(
      {.prefill = {UINT32_MAX}, .decode = 64, .depth = {UINT32_MAX}, .batch = {1024}}, limits);
  EXPECT_TRUE(plan.cases.empty());
  EXPECT_EQ(plan.skipped.size(), 2u);
}

}  // namespace
}  // namespace tinyserve
