// What codes within ranges stand for, on every target that this machine has.
#include "page/ranges.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/coded_testing.h"
#include "kernels/targets.h"

namespace tinyserve {
namespace {

using namespace testing;

constexpr uint32_t kDims[] = {5, 15, 16, 33, 64, 72, 80, 128, 256};
constexpr KvType kTypes[] = {KvType::kInt8, KvType::kK8V4, KvType::kInt4};

class Ranges : public ::testing::TestWithParam<const Kernels*> {
 protected:
  const Kernels& kernels() const { return *GetParam(); }
  SealedHead Seal(const Tokens& t, KvType type, uint64_t seed, KvType open = KvType::kF32) const {
    return SealedHead(kernels(), t, open, seed, 0, type);
  }
};

// Numbers with one range, and what they are decoded to.
struct Range {
  double low = INFINITY, high = -INFINITY;
  double decoded_low = INFINITY, decoded_high = -INFINITY, error = 0;

  void Add(double x, double decoded) {
    low = std::min(low, x);
    high = std::max(high, x);
    decoded_low = std::min(decoded_low, decoded);
    decoded_high = std::max(decoded_high, decoded);
    error = std::max(error, std::fabs(x - decoded));
  }
};

// The largest reach that ranges made together may have been given: half the difference, what the
// middle is off by (half a code of the largest), and the next code of the largest reach.
struct Reach {
  double middle_off = 0, reach_step = 0;

  explicit Reach(const std::vector<Range>& ranges) {
    double middle = 0, reach = 0;
    for (const Range& r : ranges) middle = std::max(middle, std::fabs(r.low + r.high) / 2);
    middle_off = middle / 127 / 2;
    for (const Range& r : ranges) reach = std::max(reach, (r.high - r.low) / 2 + middle_off);
    reach_step = reach / 255;
  }
  double Most(const Range& r) const { return (r.high - r.low) / 2 + middle_off + reach_step; }
};

void ExpectWithinHalfAStep(const std::vector<Range>& ranges, uint32_t bits) {
  const Reach reach(ranges);
  for (const Range& r : ranges) {
    const double most = reach.Most(r);
    const double rounding = 1e-5 * (most + std::fabs(r.low) + std::fabs(r.high)) + 1e-30;
    ASSERT_LE(r.error, most / HalfRange(bits) / 2 + rounding);
    ASSERT_GE(r.decoded_low, (r.low + r.high) / 2 - reach.middle_off - most - rounding);
    ASSERT_LE(r.decoded_high, (r.low + r.high) / 2 + reach.middle_off + most + rounding);
  }
}

TEST_P(Ranges, CodesAreWithinHalfAStepOfWhatWasStored) {
  for (const uint32_t dim : kDims) {
    for (const KvType type : kTypes) {
      const Tokens t = MakeOddTokens(64, dim, 1, 3 * dim);
      const Tokens decoded = Seal(t, type, 2).Decoded();
      const RangesLayout at = RangesLayoutOf(type, dim);
      for (uint32_t first = 0; first < t.tokens; first += kRangesTokens) {
        std::vector<Range> keys(dim), values(size_t{at.groups} * kRangesTokens);
        for (uint32_t token = 0; token < kRangesTokens; ++token) {
          for (uint32_t c = 0; c < dim; ++c) {
            const size_t i = size_t{first + token} * dim + c;
            keys[c].Add(t.k[i], decoded.k[i]);
            values[c / kRangeChannels * kRangesTokens + token].Add(t.v[i], decoded.v[i]);
          }
        }
        ExpectWithinHalfAStep(keys, at.key_bits);
        ExpectWithinHalfAStep(values, at.value_bits);
        if (HasFatalFailure()) FAIL() << dim << " " << static_cast<int>(type) << " " << first;
      }
    }
  }
}

// The record's box holds every key that its page is decoded to, and every stored one.
TEST_P(Ranges, TheRecordsBoxHoldsTheKeys) {
  for (const uint32_t dim : {15u, 64u, 128u}) {
    for (const KvType type : kTypes) {
      const Tokens t = MakeOddTokens(96, dim, 1, 5 * dim);
      const SealedHead head = Seal(t, type, 3);
      const Tokens decoded = head.Decoded();
      const RangesLayout at = RangesLayoutOf(type, dim);
      for (uint32_t token = 0; token < t.tokens; ++token) {
        const uint8_t* range = head.Spread(token / 16);
        RangeScales scales;
        std::memcpy(&scales, range, sizeof scales);
        for (uint32_t c = 0; c < dim; ++c) {
          const uint8_t* codes = range + sizeof scales;
          const float middle =
              static_cast<float>(static_cast<int8_t>(codes[c])) * scales.key_middle;
          const float reach = static_cast<float>(codes[at.channels + c]) * scales.key_reach;
          const float slack = 1e-6f * (std::fabs(middle) + reach);
          for (const float k : {t.k[size_t{token} * dim + c], decoded.k[size_t{token} * dim + c]}) {
            ASSERT_LE(std::fabs(k - middle), reach + slack) << dim << " " << token << " " << c;
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, Ranges, ::testing::ValuesIn(AvailableTargets()),
                         testing::TargetName());

}  // namespace
}  // namespace tinyserve
