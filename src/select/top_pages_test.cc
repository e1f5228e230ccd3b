#include "select/top_pages.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

namespace tinyserve {
namespace {

std::vector<uint32_t> Top(const std::vector<float>& scores, uint32_t k) {
  std::vector<uint32_t> out(k);
  TopPages(scores, k, out.data());
  return out;
}

// By a stable sort: larger first, then the lower index; NaN last.
std::vector<uint32_t> TopBySort(const std::vector<float>& scores, uint32_t k) {
  std::vector<uint32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    if (std::isnan(scores[b])) return !std::isnan(scores[a]);
    return scores[a] > scores[b];
  });
  order.resize(k);
  std::sort(order.begin(), order.end());
  return order;
}

TEST(TopPages, EqualsASortForEveryCount) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 3);
  for (const size_t n : {1, 2, 15, 16, 17, 300}) {
    std::vector<float> scores(n);
    for (float& s : scores) s = normal(random);
    for (uint32_t k = 0; k <= n; ++k) EXPECT_EQ(Top(scores, k), TopBySort(scores, k)) << n;
  }
}

TEST(TopPages, TiesGoToTheLowestIndexAndNaNToTheEnd) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(Top({1, 2, 2, 2, 1}, 2), (std::vector<uint32_t>{1, 2}));
  EXPECT_EQ(Top(std::vector<float>(100, 0.0f), 3), (std::vector<uint32_t>{0, 1, 2}));
  EXPECT_EQ(Top({NAN, -kInf, kInf, NAN, 0}, 3), (std::vector<uint32_t>{1, 2, 4}));
  const std::vector<float> coarse = {0.5f, NAN, -1, 0.5f, 7, -kInf, 0.5f, 7, kInf, -1, NAN};
  for (uint32_t k = 0; k <= coarse.size(); ++k) EXPECT_EQ(Top(coarse, k), TopBySort(coarse, k));
}

// By a sort, adding up from the largest.
uint32_t MassBySort(std::vector<float> shares, double mass) {
  std::sort(shares.begin(), shares.end(), std::greater<>());
  const auto fixed = [](float share) { return std::floor(double{share} * 0x1p32); };
  double sum = 0, reached = 0;
  for (float share : shares) sum += fixed(share);
  uint32_t n = 0;
  for (; n < shares.size() && reached < std::ceil(sum * mass); ++n) reached += fixed(shares[n]);
  return n;
}

TEST(PagesOfMass, EqualsASort) {
  std::mt19937 random(2);
  for (const float spread : {0.0f, 0.5f, 3.0f, 12.0f}) {
    std::normal_distribution<float> normal(0, spread + 0x1p-60f);
    for (const size_t n : {1, 2, 17, 300}) {
      std::vector<float> shares(n);
      float sum = 0;
      for (float& s : shares) sum += s = std::exp(spread == 0 ? 0.0f : normal(random));
      for (float& s : shares) s *= 3 / sum;
      for (const double mass : {0.001, 0.3, 0.5, 0.9, 0.99, 0.9999}) {
        const uint32_t pages = PagesOfMass(shares, mass);
        EXPECT_EQ(pages, MassBySort(shares, mass)) << n << " " << spread << " " << mass;
        // Those have it, and one fewer do not.
        std::vector<uint32_t> top(pages);
        TopPages(shares, pages, top.data());
        double reached = 0, least = 4;
        for (uint32_t page : top) {
          reached += shares[page];
          least = std::min<double>(least, shares[page]);
        }
        EXPECT_GE(reached, 3 * mass - 1e-5);
        EXPECT_LT(reached - least, 3 * mass + 1e-5);
      }
    }
  }
}

TEST(PagesOfMass, TakesAnything) {
  EXPECT_EQ(PagesOfMass({}, 0.5), 0u);
  for (const float share : {0.0f, -1.0f, NAN, 1e-30f})
    EXPECT_EQ(PagesOfMass(std::vector<float>{share, share}, 0.5), 0u) << share;
  const float kInf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(PagesOfMass(std::vector<float>{0, kInf, NAN, kInf}, 0.5), 1u);
  EXPECT_EQ(PagesOfMass(std::vector<float>(100, 0.25f), 0.5), 50u);
}

}  // namespace
}  // namespace tinyserve
