// Sealed pages of 8-bit codes in two planes (KvType::kPlanes), the same bytes on every target.
//
// Keys are coded by page and channel, relative to the page's mean (the kMetaSpread of its record)
// and its largest distance from it, as they are decoded from their own 8 bits:
//
//   code = round(96 * (k - mean) / distance) + 128, 0 .. 255;   k = mean + distance * (code - 128)
//   / 96
//
// Codes are 32 .. 224 where nothing was rounded, so that the extremes lie in the middle of a bin of
// the upper two bits: the upper plane alone, decoded as the middle of its bin (code & 192 | 32), is
// the nearest of four levels over the page's range (QuantSpec's form, upper code rounded). Values
// are signed bytes with a scale of their token, and their page's mean is kept in the same way.
#ifndef TINYSERVE_PAGE_PLANES_H_
#define TINYSERVE_PAGE_PLANES_H_

#include "page/page.h"

namespace tinyserve {

constexpr uint32_t kPlanesTokens = 16;       // of a page
constexpr uint32_t kPlanesHeadDimMax = 128;  // 16-bit sums of products of upper codes hold so many
constexpr float kPlanesTop = 96;             // |code - 128| of the largest distance

// Bytes from a page's start; all parts are whole lines. `channels` is the head size rounded up to
// 16; channels past it hold the codes of a key of 0 with a spread of 0, and values of 0.
struct PlanesLayout {
  uint32_t channels;
  // The keys' upper two bits: [channels / 16][16 tokens][4 bytes]; bits 2i of byte j are those of
  // channel 16 * group + 4 * i + j.
  uint32_t upper_at;
  uint32_t distances_at;  // [channels] unsigned bytes: the keys' largest distances; then padding
  uint32_t mean_v_at;     // [channels] signed bytes, then padding
  uint32_t scales_at;     // PlanesScales, then padding
  // The keys' lower six bits, a row of 3/4 channels bytes each token:
  // [channels / 16][8]: byte j has bits 0-3 of channel 16 * group + j, and above them those of
  // channel 16 * group + 8 + j; then [channels / 16][4]: bits 4-5, placed as in the upper plane.
  uint32_t low_at;
  uint32_t low_bytes;  // of a row
  uint32_t v_at;       // [16][channels] signed bytes
  uint32_t page_bytes;
};

// What codes stand for.
struct PlanesScales {
  uint16_t values[kPlanesTokens];  // bfloat16
  float mean_value;
  float distance;
};

static constexpr PlanesLayout PlanesLayoutOf(uint32_t head_dim) {
  const uint32_t channels = (head_dim + 15) / 16 * 16, lines = (channels + 63) / 64 * 64;
  PlanesLayout at = {};
  at.channels = channels;
  at.upper_at = 0;
  at.distances_at = at.upper_at + channels / 4 * kPlanesTokens;
  at.mean_v_at = at.distances_at + lines;
  at.scales_at = at.mean_v_at + lines;
  at.low_at = at.scales_at + 64;
  at.low_bytes = channels / 4 * 3;
  at.v_at = at.low_at + at.low_bytes * kPlanesTokens;
  at.page_bytes = at.v_at + channels * kPlanesTokens;
  return at;
}

// Bytes of the whole lines that a row of `bytes`, a multiple of 4, touches where rows lie one after
// another, on average.
static constexpr uint32_t LineBytes(uint32_t bytes) {
  uint32_t lines = 0;
  for (uint32_t row = 0; row < 16; ++row) lines += (row * bytes % 64 + bytes + 63) / 64;
  return 4 * lines;
}

}  // namespace tinyserve

#endif  // TINYSERVE_PAGE_PLANES_H_
