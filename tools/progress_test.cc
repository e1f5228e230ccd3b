#include "tools/progress.h"

#include <gtest/gtest.h>

#include <limits>

namespace tinyserve {
namespace {

TEST(Progress, BarShowsPartAndTimeLeft) {
  const std::string bar = RenderBar("Loading", 0.25, 2.0, 79);
  EXPECT_EQ(bar, "Loading  [#######.......................]   25 %  0:06 left");
  EXPECT_NE(RenderBar("x", 0.5, 90, 79).find("1:30 left"), std::string::npos);
}

TEST(Progress, NoTimeLeftBeforeItCanBeTold) {
  EXPECT_EQ(RenderBar("x", 0, 1, 79).find("left"), std::string::npos);
  EXPECT_EQ(RenderBar("x", 1, 1, 79).find("left"), std::string::npos);
}

TEST(Progress, FitsEveryWidth) {
  for (uint32_t columns = 1; columns < 120; ++columns) {
    for (double fraction : {-1.0, 0.0, 0.333, 1.0, 7.0, std::numeric_limits<double>::quiet_NaN()}) {
      EXPECT_LE(RenderBar("Reading the prompt", fraction, 3, columns).size(), columns);
    }
  }
}

}  // namespace
}  // namespace tinyserve
