// Decode attention over all pages of a sequence, or over lists of chosen ones.
#ifndef TINYSERVE_KERNELS_CUDA_ATTENTION_DECODE_H_
#define TINYSERVE_KERNELS_CUDA_ATTENTION_DECODE_H_

#include "kernels/cuda/paged.h"
#include "tinyserve/status.h"

namespace tinyserve::cuda {

// Pages of a layer. v_offset: bytes from a page's start to its values.
struct DevicePages {
  Slabs<const uint8_t> slabs;
  uint32_t v_offset;
};

// Pages that were chosen for each row and KV head.
struct ChosenPages {
  uint32_t list_pages;     // columns of lists
  Array<uint32_t> lists;   // [rows][kv_heads][list_pages] pages, in order of position
  Array<uint32_t> tokens;  // [rows][kv_heads] in them: all full but the last
};

// out = attention of each row over all its tokens. One launch: the blocks are the splits of
// `tokens_max` tokens of each (row, KV head); those that a row does not have return at once, and
// the last that ends merges the partial results in index order. Errors: kUnsupported.
Status AttendDense(const DecodeShape& shape, const DevicePages& pages, const DecodeStep& step,
                   uint32_t tokens_max, Stream stream);
// The same over chosen pages; tokens_max: in a list, at most.
Status AttendChosen(const DecodeShape& shape, const DevicePages& pages, const DecodeStep& step,
                    const ChosenPages& chosen, uint32_t tokens_max, Stream stream);

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_ATTENTION_DECODE_H_
