// Coded pages of every target that this machine has: the same bytes as `ref`, and attention over
// what they stand for.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>

#include "kernels/planes_testing.h"
#include "kernels/tables.h"
#include "kernels/targets.h"

namespace tinyserve {
namespace {

using namespace testing;

constexpr uint32_t kDims[] = {5, 15, 16, 33, 64, 72, 80, 96, 128};
constexpr float kScale = 0.125f;

class Planes : public ::testing::TestWithParam<const Kernels*> {
 protected:
  const Kernels& kernels() const { return *GetParam(); }
};

TEST_P(Planes, BytesAreThoseOfThePlainLoops) {
  for (const uint32_t dim : kDims) {
    for (const KvType type : {KvType::kF32, KvType::kF16, KvType::kBF16}) {
      const Tokens t = MakeOddTokens(96, dim, 1, dim);
      const SealedHead head(kernels(), t, type, 1), plain(*RefKernels(), t, type, 1);
      for (uint32_t page = 0; page < head.pages(); ++page) {
        ASSERT_EQ(head.SpreadBytes(page), plain.SpreadBytes(page)) << dim << " page " << page;
        ASSERT_EQ(head.PageBytes(page), plain.PageBytes(page)) << dim << " page " << page;
      }
    }
  }
}

// Beyond the half float range, and no numbers: some bytes, the same each time, and nothing trips.
TEST_P(Planes, NumbersThatAreNoneAreCoded) {
  Tokens t = MakeTokens(64, 64, 1, 5);
  t.k[3] = NAN;
  t.k[64 * 20 + 1] = INFINITY;
  t.v[64 * 20 + 2] = -INFINITY;
  t.v[64 * 40] = NAN;
  t.k[64 * 50] = 3e38f;
  const Tokens decoded = SealedHead(kernels(), t, KvType::kF32, 1).Decoded();
  for (const float x : decoded.k) ASSERT_TRUE(std::isfinite(x));
  for (const float x : decoded.v) ASSERT_TRUE(std::isfinite(x));
}

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

// Padding is written too: what a page held before leaves no trace.
TEST_P(Planes, EqualTokensMakeEqualBytes) {
  Tokens t = MakeTokens(32, 72, 1, 9);
  std::copy_n(t.k.begin(), 16 * 72, t.k.begin() + 16 * 72);
  std::copy_n(t.v.begin(), 16 * 72, t.v.begin() + 16 * 72);
  const SealedHead head(kernels(), t, KvType::kF16, 1);
  EXPECT_EQ(head.PageBytes(0), head.PageBytes(1));
}

TEST_P(Planes, DecodeAttendsToWhatCodesStandFor) {
  for (const uint32_t dim : {16u, 64u, 72u, 128u}) {
    for (const uint32_t group : {1u, 3u, 4u, 7u}) {
      const Tokens t = MakeTokens(208, dim, group, dim + group);
      const SealedHead head(kernels(), t, KvType::kF16, 3);
      const Tokens decoded = head.Decoded();
      std::vector<OwnedPartial> parts;
      parts.push_back(head.Decode(kScale, 0, 96));
      parts.push_back(head.Decode(kScale, 96, 208));
      EXPECT_EQ(Mismatch(Merge(kernels(), parts, group, dim), Exact(decoded, kScale, 0, 208),
                         AttentionTolerance(decoded, kScale, 0, 208, {})),
                "")
          << dim << " " << group;
    }
  }
}

TEST_P(Planes, PromptReadsCodedKeysThenOpenOnes) {
  const uint32_t dim = 64, group = 3, sealed_tokens = 128, tokens = 180;
  const Tokens t = MakeTokens(192, dim, group, 11);
  const SealedHead head(kernels(), t, KvType::kF16, 4);
  const Tokens seen = head.Seen(sealed_tokens, tokens);
  const uint32_t first = 131, rows = tokens - first;
  const size_t width = size_t{group} * dim;
  const std::vector<float> out = head.Prompt(kScale, sealed_tokens, first, tokens, Compute::kF32);
  ASSERT_EQ(out.size(), rows * width);
  for (uint32_t row = 0; row < rows; ++row) {
    const std::vector<float> got(out.begin() + row * width, out.begin() + (row + 1) * width);
    ASSERT_EQ(Mismatch(got, Exact(seen, kScale, first + row, first + row + 1),
                       AttentionTolerance(seen, kScale, first + row, first + row + 1, {})),
              "")
        << row;
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, Planes, ::testing::ValuesIn(AvailableTargets()),
                         testing::TargetName());

}  // namespace
}  // namespace tinyserve
