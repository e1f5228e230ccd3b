#include "select/top_pages.h"

#include <array>
#include <bit>

namespace tinyserve {
namespace {

// Order-preserving: a larger score has a larger key.
uint32_t KeyOf(float score) {
  if (score != score) return 0;
  const uint32_t bits = std::bit_cast<uint32_t>(score);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
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

}  // namespace tinyserve
