#include "attend/log_histogram.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

namespace tinyserve {
namespace {

TEST(LogHistogram, QuantilesAreTheSortedOnesWithinABin) {
  std::mt19937 random(7);
  std::lognormal_distribution<double> draw(-6, 2);
  LogHistogram histogram;
  std::vector<double> values;
  double sum = 0;
  for (int i = 0; i < 5000; ++i) {
    values.push_back(draw(random));
    histogram.Add(values.back());
    sum += values.back();
  }
  std::sort(values.begin(), values.end());
  for (double share : {0.01, 0.5, 0.9, 0.99}) {
    const double exact = values[static_cast<size_t>(std::ceil(share * 5000)) - 1];
    EXPECT_GE(histogram.Quantile(share), exact * 0.999999);
    EXPECT_LE(histogram.Quantile(share), exact * 1.0374);
  }
  EXPECT_EQ(histogram.Quantile(1), values.back());
  EXPECT_EQ(histogram.max(), values.back());
  EXPECT_EQ(histogram.count(), 5000u);
  EXPECT_NEAR(histogram.mean(), sum / 5000, 1e-12);
}

TEST(LogHistogram, HasRoomForNothingZeroAndWhatIsOutside) {
  LogHistogram histogram;
  EXPECT_EQ(histogram.Quantile(0.99), 0);
  EXPECT_EQ(histogram.mean(), 0);
  histogram.Add(0);
  EXPECT_EQ(histogram.Quantile(0.99), 0);
  histogram.Add(1e-30);
  histogram.Add(1e30);
  EXPECT_EQ(histogram.Quantile(0.99), 1e30);
  EXPECT_LE(histogram.Quantile(0.5), 2e-9);
}

}  // namespace
}  // namespace tinyserve
