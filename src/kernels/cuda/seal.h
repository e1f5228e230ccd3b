// What is made of pages that are full: their records.
#ifndef TINYSERVE_KERNELS_CUDA_SEAL_H_
#define TINYSERVE_KERNELS_CUDA_SEAL_H_

#include "kernels/cuda/attention_decode.h"
#include "kernels/cuda/paged.h"
#include "page/page.h"
#include "tinyserve/status.h"

namespace tinyserve::cuda {

constexpr uint32_t kNoPage = 0xffffffffu;

// Pages of a layer that a step has filled: a list whose length stays, for launches that are
// replayed, with kNoPage in places that are not in use.
struct FullPages {
  Array<const uint32_t> pages;
};

// Makes box and moments, as far as `layout` has them, of full pages of f32, f16 or bf16 at every
// KV head: bit for bit what ref makes of the same keys (kernels/ref/selection.h).
Status Summarise(const DecodeShape& shape, const DevicePages& pages, const MetaLayout& layout,
                 const Slabs<uint8_t>& records, const FullPages& full, Stream stream);

// Codes full open pages of 16 tokens at every KV head: the i-th of `from` becomes the i-th of `to`,
// with its range or spread at spread_at of its record. Head sizes: multiples of 16 up to 128.
struct SealCodedStep {
  DecodeShape shape;  // of the coded pages
  KvType open_type;
  DevicePages open;
  Slabs<uint8_t> pages, records;
  uint32_t spread_at;
  FullPages from, to;  // open and coded pages, as many of each
};
// Within ranges: codes and ranges are bit for bit those of ref (kernels/ref/ranges.h);
// coded_pages.h says where they lie. Errors: kUnsupported.
Status SealRanges(const SealCodedStep& step, Stream stream);
// In planes: pages and spreads are byte for byte those of ref (kernels/ref/planes.h). Errors: the
// same.
Status SealPlanes(const SealCodedStep& step, Stream stream);

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_SEAL_H_
