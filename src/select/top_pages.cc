#include "select/top_pages.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

namespace tinyserve {
namespace {

// Order-preserving: a larger score has a larger key.
uint32_t KeyOf(float score) {
  if (score != score) return 0;
  const uint32_t bits = std::bit_cast<uint32_t>(score);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

// A share as a multiple of 2^-32, at most 2^52: a sum of 2^11 of the largest fits 64 bits, and one
// of 2^31 of those that softmaxes give.
uint64_t FixedOf(float share) {
  if (!(share > 0)) return 0;
  return static_cast<uint64_t>(std::min(share, 0x1p20f) * 0x1p32f);
}

}  // namespace

void TopPages(std::span<const float> scores, uint32_t k, uint32_t* out) {
  if (k == 0) return;
  // Digit by digit, the key of the k-th best: after each, `left` of the keys that share the digits
  // so far are wanted.
  uint32_t prefix = 0, mask = 0, left = k;
  for (int shift = 24; shift >= 0; shift -= 8) {
    std::array<uint32_t, 256> counts{};
    for (float score : scores) {
      const uint32_t key = KeyOf(score);
      if ((key & mask) == prefix) ++counts[key >> shift & 255];
    }
    uint32_t digit = 255;
    for (; counts[digit] < left; --digit) left -= counts[digit];
    prefix |= digit << shift;
    mask |= 255u << shift;
    // All that share these digits are wanted.
    if (counts[digit] == left) break;
  }
  uint32_t ties = left, n = 0;
  for (uint32_t i = 0; i < scores.size(); ++i) {
    const uint32_t key = KeyOf(scores[i]) & mask;
    if (key > prefix || (key == prefix && ties > 0)) {
      if (key == prefix) --ties;
      out[n++] = i;
    }
  }
}

uint32_t PagesOfMass(std::span<const float> shares, double mass) {
  uint64_t sum = 0;
  for (float share : shares) sum += FixedOf(share);
  const auto target = static_cast<uint64_t>(std::ceil(static_cast<double>(sum) * mass));
  // Digit by digit, the least share that is needed: `above` have larger ones, which are not enough.
  uint64_t prefix = 0, reached = 0;
  uint32_t above = 0;
  for (int shift = 48; shift >= 0; shift -= 8) {
    std::array<uint64_t, 256> sums{};
    std::array<uint32_t, 256> counts{};
    for (float share : shares) {
      const uint64_t fixed = FixedOf(share);
      if (fixed >> shift >> 8 != prefix) continue;
      sums[fixed >> shift & 255] += fixed;
      ++counts[fixed >> shift & 255];
    }
    int digit = 255;
    for (; digit > 0 && reached + sums[digit] < target; --digit) {
      reached += sums[digit];
      above += counts[digit];
    }
    prefix = prefix << 8 | static_cast<uint64_t>(digit);
  }
  // All that are left are equal to the prefix.
  if (prefix == 0 || reached >= target) return above;
  const uint64_t equal = (target - reached + prefix - 1) / prefix;
  return static_cast<uint32_t>(std::min<uint64_t>(above + equal, shares.size()));
}

}  // namespace tinyserve
