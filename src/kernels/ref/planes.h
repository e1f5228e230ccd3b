// Coded pages in two planes (page/planes.h), and the decode kernel that reads less of what matters
// less, as plain loops. Coding is defined bit for bit: every target writes the same bytes.
#ifndef TINYSERVE_KERNELS_REF_PLANES_H_
#define TINYSERVE_KERNELS_REF_PLANES_H_

#include "kernels/kernels.h"

namespace tinyserve::ref {

void SealPage(const SealArgs* args);
// A token of a coded page, [head_dim] each. `spread` is that of its record.
void ReadCoded(uint32_t head_dim, const uint8_t* page, const uint8_t* spread, uint32_t slot,
               float* k, float* v);
uint64_t CascadeScratchBytes(const KvShape* shape, uint32_t group, uint32_t pages_max);
CascadeCounts AttendCascade(const CascadeArgs* args);

}  // namespace tinyserve::ref

#endif  // TINYSERVE_KERNELS_REF_PLANES_H_
