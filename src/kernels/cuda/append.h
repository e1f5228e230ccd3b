// Rotary positions, and the writing of new keys and values to their pages, in one launch a layer.
#ifndef TINYSERVE_KERNELS_CUDA_APPEND_H_
#define TINYSERVE_KERNELS_CUDA_APPEND_H_

#include <cstdint>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/paged.h"
#include "tinyserve/status.h"

namespace tinyserve::cuda {

// Position of a row that is not in use: it writes nothing.
static constexpr uint32_t kNoPosition = 0xffffffffu;

struct RopeAppend {
  uint32_t rows, heads, kv_heads, head_dim;
  // Of each head's first rotary_dim channels, pairs (2i, 2i + 1) where interleaved, else
  // (i, i + rotary_dim / 2); 0: positions are not rotated.
  uint32_t rotary_dim;
  bool interleaved;
  Array<const float> qkv;      // [rows][heads + 2 kv_heads][head_dim]: queries, keys, values
  Array<const float> cos_sin;  // [rows][rotary_dim / 2][2] of the row's position
  // The row's absolute position, and its place in tables; [rows]. Several rows may be of one
  // sequence, at different positions.
  Array<const uint32_t> positions, table_of;
  uint32_t table_pages;          // columns of tables
  Array<const uint32_t> tables;  // [..][table_pages] pages of a sequence, in order
  Array<float> q;                // [rows][heads][head_dim], rotated
  KvType type;                   // f32, f16 or bf16
  uint32_t page_tokens;          // a power of two
  Slabs<uint8_t> pages;          // of the layer
  uint32_t v_offset;             // bytes from a page's start to its values
};
// Errors: kUnsupported (a coded type), those of a launch.
Status AppendRotated(const RopeAppend& append, Stream stream);

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_APPEND_H_
