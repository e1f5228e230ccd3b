// Pages of codes within ranges (page/ranges.h) as plain loops.
#ifndef TINYSERVE_KERNELS_REF_RANGES_H_
#define TINYSERVE_KERNELS_REF_RANGES_H_

#include "kernels/ref/coding.h"
#include "page/page.h"

namespace tinyserve::ref {

// Codes a page; `range`: that of its record.
void SealRanges(const KvShape& shape, const PageNumbers& numbers, uint8_t* page, uint8_t* range);
void ReadRanges(const KvShape& shape, const uint8_t* page, const uint8_t* range, uint32_t slot,
                float* k, float* v);

}  // namespace tinyserve::ref

#endif  // TINYSERVE_KERNELS_REF_RANGES_H_
