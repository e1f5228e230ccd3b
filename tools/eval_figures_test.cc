#include "tools/eval_figures.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace tinyserve {
namespace {

// Logits of a distribution, moved by a constant that must not matter.
std::vector<float> LogitsOf(const std::vector<double>& p, double offset) {
  std::vector<float> logits;
  for (double x : p) logits.push_back(static_cast<float>(std::log(x) + offset));
  return logits;
}

TEST(EvalFigures, KlOfKnownDistributions) {
  const std::vector<double> p = {0.5, 0.25, 0.125, 0.125}, q = {0.25, 0.25, 0.25, 0.25};
  const TokenComparison c = Compare(LogitsOf(p, 3), LogitsOf(q, -20), 2);
  // 0.5 log 2 + 0 + 2 * 0.125 log 0.5 = 0.25 log 2
  EXPECT_NEAR(c.kl, 0.25 * std::log(2.0), 1e-6);
  EXPECT_NEAR(c.dense_nll, std::log(8.0), 1e-6);
  EXPECT_NEAR(c.nll, std::log(4.0), 1e-6);
  EXPECT_TRUE(c.same_top);  // the first of equals
  EXPECT_FALSE(Compare(LogitsOf(p, 0), LogitsOf({0.2, 0.3, 0.3, 0.2}, 0), 0).same_top);
}

TEST(EvalFigures, KlIsExactlyZeroForEqualLogitsAndNeverNegative) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 5);
  for (int round = 0; round < 20; ++round) {
    std::vector<float> x(5000), y(5000);
    for (float& v : x) v = normal(random);
    for (size_t i = 0; i < x.size(); ++i) y[i] = x[i] + 1e-4f * normal(random);
    EXPECT_EQ(Compare(x, x, 7).kl, 0);
    const double kl = Compare(x, y, 7).kl;
    EXPECT_GT(kl, 0);
    EXPECT_LT(kl, 1e-5);
  }
}

TEST(EvalFigures, LargeLogitsDoNotOverflow) {
  const std::vector<float> x = {3000, -3000, 2999}, y = {-3000, 3000, 2999};
  const TokenComparison c = Compare(x, y, 0);
  // p is (e, 0, 1) / (e + 1); log q of those is -6000 and -1 below log(e + 1).
  const double e = std::exp(1.0), top = e / (e + 1);
  EXPECT_NEAR(c.kl, top * 6000, 1e-9);
  EXPECT_NEAR(c.nll, 6000 + std::log1p(std::exp(-1.0)), 1e-9);
}

TEST(EvalFigures, PairedErrorAgreesWithAPlainComputation) {
  std::mt19937 random(2);
  std::normal_distribution<double> normal(0, 1);
  MethodFigures figures;
  std::vector<double> differences;
  double dense_sum = 0;
  for (uint32_t i = 0; i < 1000; ++i) {
    const double dense = 3 + normal(random), nll = dense + 0.01 + 0.1 * normal(random);
    figures.Add(i % 100, {.kl = 0.001 * i, .same_top = i % 4 != 0, .dense_nll = dense, .nll = nll});
    differences.push_back(nll - dense);
    dense_sum += dense;
  }
  double mean = 0, variance = 0;
  for (double d : differences) mean += d / 1000;
  for (double d : differences) variance += (d - mean) * (d - mean) / 999;
  EXPECT_NEAR(figures.dppl(), std::exp(mean) - 1, 1e-12);
  EXPECT_NEAR(figures.dppl_se(), std::exp(mean) * std::sqrt(variance / 1000), 1e-12);
  EXPECT_NEAR(figures.dense_perplexity(), std::exp(dense_sum / 1000), 1e-9);
  EXPECT_NEAR(figures.kl(), 0.4995, 1e-12);
  EXPECT_DOUBLE_EQ(figures.kl_quantile(0.99), 0.989);
  EXPECT_DOUBLE_EQ(figures.kl_quantile(1), 0.999);
  EXPECT_DOUBLE_EQ(figures.kl_quantile(0), 0);
  EXPECT_DOUBLE_EQ(figures.top1(), 0.75);
  EXPECT_EQ(figures.tokens(), 1000u);
}

TEST(EvalFigures, KlByPositionAveragesOverWindows) {
  MethodFigures figures;
  for (uint32_t window = 0; window < 2; ++window) {
    for (uint32_t position = 0; position < 5; ++position)
      figures.Add(position, {.kl = position + 10.0 * window, .same_top = true});
  }
  EXPECT_EQ(figures.KlByPosition(2), (std::vector<double>{5.5, 7.5, 9}));
}

TEST(EvalFigures, WindowsAreDisjointAndSpread) {
  EXPECT_EQ(SpreadWindows(1001, 100, 10).size(), 10u);
  EXPECT_EQ(SpreadWindows(1000, 100, 10).size(), 9u);  // a token must follow the last one
  EXPECT_TRUE(SpreadWindows(100, 100, 10).empty());
  EXPECT_TRUE(SpreadWindows(0, 100, 10).empty());
  EXPECT_EQ(SpreadWindows(1001, 100, 3), (std::vector<uint64_t>{0, 300, 600}));
  EXPECT_EQ(SpreadWindows(1001, 100, 0).size(), 0u);
}

TEST(EvalFigures, Median) {
  EXPECT_EQ(Median({3, 1, 2}), 2);
  EXPECT_EQ(Median({4, 1, 2, 3}), 2.5);
  EXPECT_TRUE(std::isnan(Median({})));
}

}  // namespace
}  // namespace tinyserve
