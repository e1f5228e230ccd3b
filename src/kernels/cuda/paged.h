// Pages of one layer in device memory, and what a decoding step reads and writes. Plain data.
//
// Pages, blocks, extents and their indices are those of page/page.h. A page's inner layout is the
// device's own: of f32, f16 and bf16, K [page_tokens][head_dim], then (at v_offset) V alike.
#ifndef TINYSERVE_KERNELS_CUDA_PAGED_H_
#define TINYSERVE_KERNELS_CUDA_PAGED_H_

#include "kernels/cuda/launch.h"
#include "page/page.h"

namespace tinyserve::cuda {

// Items of one layer, pages or their records: that of KV head h with index i begins at byte
// h * head_stride + (i >> extent_shift) * extent_stride + (i mod 2^extent_shift) * item_bytes.
template <class Byte>
struct Slabs {
  Array<Byte> bytes;  // from the first item of the layer's first head on
  uint64_t head_stride, extent_stride;
  uint32_t extent_shift, item_bytes;
};

// Tokens of a split: at absolute positions of the list of pages that is read, so that a result
// depends neither on the batch nor on how many blocks run.
constexpr uint32_t kSplitTokens = 256;

struct DecodeShape {
  KvType type;
  uint32_t head_dim;  // 64, 80, 96 or 128
  uint32_t kv_heads;
  uint32_t group;        // query heads that share a KV head: 1 .. 8
  uint32_t page_tokens;  // a power of two, 4 .. 64
};

// A step's generated tokens ("rows") in one layer. The arrays are the device's, at addresses that
// stay, and hold what changes from step to step: a launch recorded once can be replayed.
struct DecodeStep {
  uint32_t rows;                 // of the bucket
  uint32_t table_pages;          // columns of tables
  float scale;                   // logit = scale * q.k
  Array<const uint32_t> tables;  // [..][table_pages] pages of a sequence, in order
  // [rows] the row's place in tables; count 0: its own number.
  Array<const uint32_t> table_of;
  Array<const uint32_t> tokens;  // [rows] that the row attends to; 0: the row is not in use
  Array<const float> q;          // [rows][kv_heads * group][head_dim], after RoPE
  Array<float> out;              // the same; rows that are not in use stay as they are
  Array<float> partials;         // PartialFloats(): scratch
  Array<uint32_t> arrived;       // [rows][kv_heads]: zeros, and zeros again after each call
};

// Floats of the partial results of a step, at most so many tokens a row: [rows][kv_heads][splits]
// of o [group][head_dim], m [group], d [group], as Partial, with m in units of log2.
constexpr uint64_t PartialFloats(const DecodeShape& shape, uint32_t rows, uint32_t tokens_max) {
  const uint64_t splits = (uint64_t{tokens_max} + kSplitTokens - 1) / kSplitTokens;
  return uint64_t{rows} * shape.kv_heads * splits * shape.group * (shape.head_dim + 2);
}

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_PAGED_H_
