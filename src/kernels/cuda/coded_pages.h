// Coded pages as they lie on a device. Plain data.
//
// Of codes within ranges (page/ranges.h) the codes and ranges are those of that page, their order
// is another: a thread reads a token's neighbouring channels, so each token has a row of keys and a
// row of values. Pages in planes are those of page/planes.h, byte for byte.
#ifndef TINYSERVE_KERNELS_CUDA_CODED_PAGES_H_
#define TINYSERVE_KERNELS_CUDA_CODED_PAGES_H_

#include <cstddef>

#include "kernels/cuda/paged.h"
#include "page/coded.h"

namespace tinyserve::cuda {

// Of pages of ranges, bytes from a page's start. A row is the codes of channels in order, in 8
// bits, or in 4 with that of an even channel below that of the next; it is padded to 16 bytes.
struct CodedPageLayout {
  uint32_t key_bits, value_bits;
  uint32_t groups;              // of channels that share ranges of values
  uint32_t key_row, value_row;  // bytes
  uint32_t v_at;                // [16] rows of values; those of keys come first
  uint32_t v_middle_at;         // [groups][16 tokens] signed bytes, then as many reaches
  uint32_t page_bytes;
};

constexpr CodedPageLayout CodedPageLayoutOf(uint32_t key_bits, uint32_t value_bits,
                                            uint32_t head_dim) {
  CodedPageLayout at{};
  at.key_bits = key_bits;
  at.value_bits = value_bits;
  at.groups = (head_dim + kRangeChannels - 1) / kRangeChannels;
  at.key_row = (head_dim * key_bits / 8 + 15) / 16 * 16;
  at.value_row = (head_dim * value_bits / 8 + 15) / 16 * 16;
  at.v_at = kRangesTokens * at.key_row;
  at.v_middle_at = at.v_at + kRangesTokens * at.value_row;
  at.page_bytes = (at.v_middle_at + 2 * at.groups * kRangesTokens + 63) / 64 * 64;
  return at;
}
constexpr CodedPageLayout CodedPageLayoutOf(KvType type, uint32_t head_dim) {
  return CodedPageLayoutOf(type == KvType::kInt4 ? 4 : 8, type == KvType::kInt8 ? 8 : 4, head_dim);
}

// Of pages in planes, bytes from PlanesLayout::scales_at.
constexpr uint32_t kMeanValueAt = offsetof(PlanesScales, mean_value);
constexpr uint32_t kDistanceAt = offsetof(PlanesScales, distance);

// Of a coded page of any type; v_at: bytes from its start to its values.
struct CodedPageSize {
  uint32_t page_bytes, v_at;
};
constexpr CodedPageSize CodedPageSizeOf(KvType type, uint32_t head_dim) {
  if (type == KvType::kPlanes) {
    const PlanesLayout at = PlanesLayoutOf(head_dim);
    return {at.page_bytes, at.v_at};
  }
  const CodedPageLayout at = CodedPageLayoutOf(type, head_dim);
  return {at.page_bytes, at.v_at};
}

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_CODED_PAGES_H_
