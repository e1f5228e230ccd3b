// Scalar conversions: half and bfloat16, and the plain decoding of every quantised row.
#ifndef TINYSERVE_TENSOR_CONVERT_H_
#define TINYSERVE_TENSOR_CONVERT_H_

#include <cstdint>

#include "tensor/dtype.h"

namespace tinyserve {

// IEEE half and bfloat16, round to nearest even, correct for denormals, infinities and NaN.
float F16ToF32(uint16_t bits);
uint16_t F32ToF16(float value);
float BF16ToF32(uint16_t bits);
uint16_t F32ToBF16(float value);

// Decodes one row of `cols` elements into f32. REQUIRES: cols % InfoOf(type).block_elems == 0.
// The plain definition of every type: kernels are tested against it.
void DequantizeRow(DType type, const uint8_t* row, uint64_t cols, float* out);

}  // namespace tinyserve

#endif  // TINYSERVE_TENSOR_CONVERT_H_
