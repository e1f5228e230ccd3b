#include "tools/eval_plot.h"

#include <gtest/gtest.h>

#include <cmath>

namespace tinyserve {
namespace {

EvalLine LineAt(const std::string& method, double kl, double share, double tokens_per_s) {
  return {.method = method,
          .context = 4096,
          .window_scored = 256,
          .kl = kl,
          .kv_bytes_read_per_token = share * 1e6,
          .dense_bytes_read_per_token = 1e6,
          .decode_tokens_per_s = tokens_per_s};
}

TEST(EvalPlot, FrontKeepsWhatNothingBeats) {
  const std::vector<PlotPoint> points = {{0.3, 0.004, "a"}, {0.1, 0.02, "b"},
                                         {0.3, 0.003, "c"},  // beats a
                                         {0.2, 0.03, "d"},   // beaten by b
                                         {1.0, 0, "full"},  {NAN, 0, "unknown"}};
  EXPECT_EQ(ParetoFront(points, false), (std::vector<size_t>{1, 2, 4}));
  // Where more x is better, full has both the most and the least.
  EXPECT_EQ(ParetoFront(points, true), (std::vector<size_t>{4}));
  EXPECT_TRUE(ParetoFront({}, false).empty());
}

TEST(EvalPlot, DrawsEveryMethodOfEveryContextInTwoPanels) {
  std::vector<EvalLine> lines = {LineAt("full", 0, 1, 60), LineAt("box:ratio=0.3", 0.004, 0.36, 90),
                                 LineAt("a<b&\"c\"", 0.02, 0.1, 120)};
  lines.push_back(LineAt("full", 0, 1, 40));
  lines.back().context = 8000;
  const std::string svg = EvalPlot(lines, {.model = "m", .text = "book.txt"});
  const auto count = [&](const std::string& what) {
    size_t n = 0;
    for (size_t at = svg.find(what); at != std::string::npos; at = svg.find(what, at + 1)) ++n;
    return n;
  };
  EXPECT_EQ(svg.rfind("<svg ", 0), 0u);
  EXPECT_EQ(count("<circle"), 8u);
  EXPECT_EQ(count("class=\"front\""), 4u);
  EXPECT_EQ(count(">box:ratio=0.3<"), 2u);
  EXPECT_EQ(count(">a&lt;b&amp;&quot;c&quot;<"), 2u);
  EXPECT_EQ(count("8000 tokens"), 2u);
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(svg.find("inf"), std::string::npos);
}

TEST(EvalPlot, DrawsNothingAtAllWithoutFalling) {
  EXPECT_NE(EvalPlot({}, {}).find("</svg>"), std::string::npos);
  const std::string svg = EvalPlot({LineAt("full", 0, 1, NAN)}, {});
  EXPECT_EQ(svg.find("nan"), std::string::npos);
}

}  // namespace
}  // namespace tinyserve
