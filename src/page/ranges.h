// Sealed pages of codes within ranges (KvType::kInt8, kK8V4, kInt4), the same bytes on every
// target.
//
// A range is a middle and a reach, which holds what lies within middle - reach .. middle + reach:
// the keys of a page's channel, a box of which the record's kMetaRange has one number each; the
// values of a token and of 32 channels. A number in b bits is the nearest of 2^b levels, whose
// outermost ones are the range's ends (as KIVI codes; arXiv 2402.02750):
//
//   code = round((x - middle) / step + half), 0 .. 2^b - 1;   x = middle + (code - half) * step
//   half = (2^b - 1) / 2, step = reach / half
//
// Middles are signed bytes and reaches unsigned ones, each with a scale of the page; reaches are
// made from the middles as they are decoded and rounded up, so that the range still holds what it
// was made of, and every decoded number.
#ifndef TINYSERVE_PAGE_RANGES_H_
#define TINYSERVE_PAGE_RANGES_H_

#include "page/page.h"

namespace tinyserve {

constexpr uint32_t kRangesTokens = 16;       // of a page
constexpr uint32_t kRangesHeadDimMax = 256;  // what scratch on the stack has room for
constexpr uint32_t kRangeChannels = 32;      // of a range of values
constexpr uint32_t kRangeGroupsMax = kRangesHeadDimMax / kRangeChannels;

// (2^bits - 1) / 2.
static constexpr float HalfRange(uint32_t bits) { return bits == 4 ? 7.5f : 127.5f; }

// Bytes from a page's start. `channels` is the head size rounded up to 16; channels past it hold
// the codes of numbers 0, those of keys in a range of 0.
struct RangesLayout {
  uint32_t key_bits, value_bits;
  uint32_t channels;
  uint32_t groups;  // of channels that share ranges of values; the last one may have fewer
  // Key codes. 8 bits: [channels / 4][16 tokens][4 bytes], those of channels 4 * n + j. 4 bits:
  // [channels / 8][16 tokens][4 bytes], byte j has channel 8 * n + j in its lower half and channel
  // 8 * n + 4 + j in its upper one.
  uint32_t k_at;
  // Value codes. 8 bits: [4][channels][4 bytes], those of tokens 4 * n + j, less 128, as signed
  // bytes. 4 bits: [2][channels][4 bytes], byte j has token 8 * n + j in its lower half and token
  // 8 * n + 4 + j in its upper one.
  uint32_t v_at;
  uint32_t v_middle_at;  // [groups][16 tokens] signed bytes
  uint32_t v_reach_at;   // [groups][16 tokens] bytes; then padding
  uint32_t page_bytes;   // a multiple of 64
};

static constexpr RangesLayout RangesLayoutOf(KvType type, uint32_t head_dim) {
  const uint32_t channels = (head_dim + 15) / 16 * 16;
  RangesLayout at = {};
  at.key_bits = type == KvType::kInt4 ? 4 : 8;
  at.value_bits = type == KvType::kInt8 ? 8 : 4;
  at.channels = channels;
  at.groups = (head_dim + kRangeChannels - 1) / kRangeChannels;
  at.k_at = 0;
  at.v_at = channels * kRangesTokens / 8 * at.key_bits;
  at.v_middle_at = at.v_at + channels * kRangesTokens / 8 * at.value_bits;
  at.v_reach_at = at.v_middle_at + at.groups * kRangesTokens;
  at.page_bytes = (at.v_reach_at + at.groups * kRangesTokens + 63) / 64 * 64;
  return at;
}

}  // namespace tinyserve

#endif  // TINYSERVE_PAGE_RANGES_H_
