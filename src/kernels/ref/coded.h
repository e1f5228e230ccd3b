// Coded pages of every kind as plain loops. Coding is defined bit for bit: every target writes the
// same bytes.
#ifndef TINYSERVE_KERNELS_REF_CODED_H_
#define TINYSERVE_KERNELS_REF_CODED_H_

#include "kernels/kernels.h"

namespace tinyserve::ref {

void SealPage(const SealArgs* args);
// A token of a coded page, [head_dim] each. `spread` is that of its record, or its range.
void ReadCoded(const KvShape& shape, const uint8_t* page, const uint8_t* spread, uint32_t slot,
               float* k, float* v);

}  // namespace tinyserve::ref

#endif  // TINYSERVE_KERNELS_REF_CODED_H_
