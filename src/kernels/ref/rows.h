// Operations on single rows by plain loops.
#ifndef TINYSERVE_KERNELS_REF_ROWS_H_
#define TINYSERVE_KERNELS_REF_ROWS_H_

#include <cstdint>

namespace tinyserve::ref {

// The entries of the kernel table (kernels/kernels.h).
void RmsNorm(const float* x, uint64_t x_stride, uint32_t rows, uint32_t cols, const float* weight,
             float eps, float* out, uint64_t out_stride);
void LayerNorm(const float* x, uint64_t x_stride, uint32_t rows, uint32_t cols, const float* weight,
               const float* bias, float eps, float* out, uint64_t out_stride);
void Rope(float* x, uint32_t heads, uint32_t head_dim, uint32_t rotary_dim, bool interleaved,
          const float* cos_sin);

}  // namespace tinyserve::ref

#endif  // TINYSERVE_KERNELS_REF_ROWS_H_
