// What pages of all coded kinds have: their size in tokens, heads and bytes.
#ifndef TINYSERVE_PAGE_CODED_H_
#define TINYSERVE_PAGE_CODED_H_

#include "page/page.h"
#include "page/planes.h"
#include "page/ranges.h"

namespace tinyserve {

constexpr uint32_t kCodedTokens = 16;  // of a page
static_assert(kPlanesTokens == kCodedTokens && kRangesTokens == kCodedTokens);

// Channels of a head, at most.
static constexpr uint32_t CodedHeadDimMax(KvType type) {
  return IsRanged(type) ? kRangesHeadDimMax : kPlanesHeadDimMax;
}
constexpr uint32_t kCodedHeadDimMax = 256;  // of all kinds
static_assert(kPlanesHeadDimMax <= kCodedHeadDimMax && kRangesHeadDimMax <= kCodedHeadDimMax);

// Bytes of a page's keys, and of what follows them.
static constexpr void CodedPageBytes(const KvShape& shape, uint32_t* k_bytes, uint32_t* v_bytes) {
  if (IsRanged(shape.type)) {
    const RangesLayout at = RangesLayoutOf(shape.type, shape.head_dim);
    *k_bytes = at.v_at;
    *v_bytes = at.page_bytes - at.v_at;
  } else {
    const PlanesLayout at = PlanesLayoutOf(shape.head_dim);
    *k_bytes = at.v_at;
    *v_bytes = at.page_bytes - at.v_at;
  }
}

}  // namespace tinyserve

#endif  // TINYSERVE_PAGE_CODED_H_
