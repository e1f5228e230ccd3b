// Coded pages in two planes (page/planes.h), and the decode kernel that reads less of what matters
// less, as plain loops.
#ifndef TINYSERVE_KERNELS_REF_PLANES_H_
#define TINYSERVE_KERNELS_REF_PLANES_H_

#include "kernels/kernels.h"
#include "kernels/ref/coding.h"

namespace tinyserve::ref {

// Codes a page; `spread`: that of its record.
void SealPlanes(const KvShape& shape, const PageNumbers& numbers, uint8_t* page, uint8_t* spread);
void ReadPlanes(uint32_t head_dim, const uint8_t* page, const uint8_t* spread, uint32_t slot,
                float* k, float* v);
uint64_t CascadeScratchBytes(const KvShape* shape, uint32_t group, uint32_t pages_max);
CascadeCounts AttendCascade(const CascadeArgs* args);

}  // namespace tinyserve::ref

#endif  // TINYSERVE_KERNELS_REF_PLANES_H_
