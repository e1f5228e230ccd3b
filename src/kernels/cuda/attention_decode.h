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

// Coded pages of a layer (coded_pages.h), and where their records have the range or spread.
struct CodedPages {
  Slabs<const uint8_t> slabs, records;
  uint32_t spread_at;
};

// Where pages are coded, the tokens after those, in open pages of floats.
struct OpenTokens {
  KvType type;
  DevicePages pages;
  uint32_t table_pages;
  Array<const uint32_t> tables;  // [rows][table_pages]
  Array<const uint32_t> tokens;  // [rows]
  uint32_t tokens_max;           // of a row: a window, in practice
};

// out = attention of each row over all its tokens. One launch: the blocks are the splits of
// `tokens_max` tokens of each (row, KV head); those that a row does not have return at once, and
// the last that ends merges the partial results in index order. Errors: kUnsupported.
Status AttendDense(const DecodeShape& shape, const DevicePages& pages, const DecodeStep& step,
                   uint32_t tokens_max, Stream stream);
// The same over chosen pages; tokens_max: in a list, at most.
Status AttendChosen(const DecodeShape& shape, const DevicePages& pages, const DecodeStep& step,
                    const ChosenPages& chosen, uint32_t tokens_max, Stream stream);
// The same over coded pages of 16 tokens, read in place, and the open ones after them. Two
// launches. step.tokens: those in coded pages, whole pages; partials have room for ceil(tokens_max
// / 256) + ceil(open.tokens_max / 256) splits. chosen: of the coded pages, or null for all.
Status AttendCoded(const DecodeShape& shape, const CodedPages& pages, const DecodeStep& step,
                   const OpenTokens& open, const ChosenPages* chosen, uint32_t tokens_max,
                   Stream stream);

// The second of these launches alone, for other ways to read the coded pages: the partial results
// of the open tokens come after those of so many others, of a row or of a (row, KV head), and each
// block counts in step.arrived; where there are no others, the last one merges.
struct OtherTokens {
  bool by_head;
  Array<const uint32_t> tokens;
  uint32_t splits_max;  // that partials have room for, the open ones too
};
Status AttendOpen(const DecodeShape& shape, const DecodeStep& step, const OpenTokens& open,
                  const OtherTokens& others, Stream stream);

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_ATTENTION_DECODE_H_
