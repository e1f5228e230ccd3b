#include "tools/perplexity.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

namespace tinyserve {
namespace {

TEST(PlanWindows, EveryTokenIsScoredOnceInOrder) {
  for (uint32_t tokens : {1u, 2u, 9u, 10u, 11u, 100u, 1000u}) {
    for (uint32_t window : {1u, 7u, 10u, 64u}) {
      for (uint32_t stride = 1; stride <= window; ++stride) {
        uint32_t next = 0;
        for (const Window& w : PlanWindows(tokens, window, stride)) {
          EXPECT_EQ(w.scored, next);
          EXPECT_LE(w.first, w.scored);
          EXPECT_LT(w.scored, w.last);
          EXPECT_LE(w.last - w.first, window);
          next = w.last;
        }
        EXPECT_EQ(next, tokens);
      }
    }
  }
}

TEST(PlanWindows, OverlapGivesContext) {
  const std::vector<Window> windows = PlanWindows(20, 10, 5);
  ASSERT_EQ(windows.size(), 3u);
  EXPECT_EQ(windows[1].first, 5u);
  EXPECT_EQ(windows[1].scored, 10u);
  EXPECT_EQ(windows[2].last, 20u);
}

TEST(Perplexity, IsTheExponentOfTheMean) {
  Perplexity p;
  p.Add(std::vector<float>{-1.0f, -3.0f});
  p.Add(std::vector<float>{-2.0f});
  EXPECT_EQ(p.tokens(), 3u);
  EXPECT_DOUBLE_EQ(p.mean_nll(), 2.0);
  EXPECT_DOUBLE_EQ(p.perplexity(), std::exp(2.0));
  EXPECT_NEAR(p.error(), std::exp(2.0) * std::sqrt(2.0 / 3 / 3), 1e-9);
}

TEST(Perplexity, OfAUniformModelIsItsVocabulary) {
  Perplexity p;
  p.Add(std::vector<float>(100, -std::log(50.0f)));
  EXPECT_NEAR(p.perplexity(), 50, 1e-4);
  EXPECT_NEAR(p.error(), 0, 1e-3);
}

}  // namespace
}  // namespace tinyserve
