// What the codes of pages in planes stand for, on every target that this machine has.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/coded_testing.h"
#include "kernels/targets.h"

namespace tinyserve {
namespace {

using namespace testing;

constexpr uint32_t kDims[] = {5, 15, 16, 33, 64, 72, 80, 96, 128};

class Planes : public ::testing::TestWithParam<const Kernels*> {
 protected:
  const Kernels& kernels() const { return *GetParam(); }
};

// A key is off by half a code of its channel's largest distance in its page, a value by half a code
// of its token's largest magnitude, whose scale is rounded up by less than 1/128.
TEST_P(Planes, CodesStandForWhatWasStored) {
  for (const uint32_t dim : kDims) {
    const Tokens t = MakeOddTokens(96, dim, 1, 3 * dim);
    const Tokens decoded = SealedHead(kernels(), t, KvType::kF32, 2).Decoded();
    for (uint32_t token = 0; token < t.tokens; ++token) {
      double v_top = 0;
      for (uint32_t c = 0; c < dim; ++c) {
        v_top = std::max(v_top, std::fabs(double{t.v[token * dim + c]}));
      }
      for (uint32_t c = 0; c < dim; ++c) {
        const size_t i = token * dim + c, first = token / 16 * 16;
        double low = t.k[i], high = t.k[i], mean_top = 0, spread_top = 0;
        for (uint32_t b = 0; b < dim; ++b) {
          double sum = 0, least = INFINITY, most = -INFINITY;
          for (uint32_t j = 0; j < 16; ++j) {
            const double x = t.k[(first + j) * dim + b];
            sum += x / 16;
            least = std::min(least, x);
            most = std::max(most, x);
            if (b == c) low = std::min(low, x), high = std::max(high, x);
          }
          mean_top = std::max(mean_top, std::fabs(sum));
          spread_top = std::max(spread_top, most - least);
        }
        // Half a code of the mean, and a whole one of the distance, which is rounded up.
        const double distance = (high - low) + mean_top / 254 + (spread_top + mean_top / 254) / 255;
        ASSERT_LE(std::fabs(decoded.k[i] - double{t.k[i]}), distance * 0.5 / 96 + 1e-6) << dim;
        ASSERT_LE(std::fabs(decoded.v[i] - double{t.v[i]}), v_top * 0.5 / 127 * 1.02) << dim;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, Planes, ::testing::ValuesIn(AvailableTargets()),
                         testing::TargetName());

}  // namespace
}  // namespace tinyserve
