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

// Makes box and moments, as far as `layout` has them, of full pages at every KV head: bit for bit
// what ref makes of the same keys (kernels/ref/selection.h). Of coded pages: of the keys as they
// are decoded, by the range or spread that their records hold already.
Status Summarise(const DecodeShape& shape, const DevicePages& pages, const MetaLayout& layout,
                 const Slabs<uint8_t>& records, const FullPages& full, Stream stream);

// What a selector keeps of a full page: a box of each sub-page, one after another, two rows of f16
// as a record has them (select/hierarchical.h).
struct SubPageBoxes {
  uint32_t tokens;  // of a sub-page
  uint32_t at;      // bytes from an item's start to the first box
};
// Makes them, byte for byte what that selector makes of the same keys. `slabs`: of the items;
// `records`: what coded pages are decoded with, by `layout`.
Status SummariseSubPages(const DecodeShape& shape, const DevicePages& pages,
                         const MetaLayout& layout, const Slabs<uint8_t>& records,
                         const SubPageBoxes& boxes, const Slabs<uint8_t>& slabs,
                         const FullPages& full, Stream stream);

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
