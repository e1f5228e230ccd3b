#include "select/top_pages.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
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

}  // namespace
}  // namespace tinyserve
