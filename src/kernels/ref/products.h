// Matrix products by plain loops: the oracle of every target's products.
//
// A panel is one row in the type's own format. Integer products use the same activations, and apply
// the scales in the same order with the same fused operations, as every other table: their results
// are equal bit for bit.
#ifndef TINYSERVE_KERNELS_REF_PRODUCTS_H_
#define TINYSERVE_KERNELS_REF_PRODUCTS_H_

#include "kernels/kernels.h"

namespace tinyserve::ref {

// The entries of the kernel table (kernels/kernels.h).
void PlanMatrix(DType type, Compute compute, uint32_t rows, uint32_t cols, PackedMatrix* out);
void PackPanel(const PackedMatrix* w, const uint8_t* const* source_rows, uint8_t* panel);
void UnpackRow(const PackedMatrix* w, uint32_t row, float* out);
uint64_t ActRowBytes(ActKind kind, uint32_t cols);
void MakeActs(ActKind kind, const float* x, uint64_t x_stride, uint32_t rows, uint32_t cols,
              uint8_t* out);
void MatMul(const MatMulArgs* args);

}  // namespace tinyserve::ref

#endif  // TINYSERVE_KERNELS_REF_PRODUCTS_H_
