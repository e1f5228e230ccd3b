// Quantised rows as integer codes: what integer products see of them.
#ifndef TINYSERVE_KERNELS_REF_CODES_H_
#define TINYSERVE_KERNELS_REF_CODES_H_

#include <cstdint>

#include "tensor/dtype.h"

namespace tinyserve::ref {

// 32 columns: w[i] = scale * code[i] + min. Q6_K's 8-bit scales, two a block, are multiplied into
// the codes.
struct CodeBlock {
  int16_t code[32];
  float scale;
  float min;
};

// True for the types that have codes; the others are F32, F16 and BF16.
bool HasCodes(DType type);

// Block `block` (32 columns) of a row in the type's own format. REQUIRES: HasCodes(type).
CodeBlock DecodeCodes(DType type, const uint8_t* row, uint32_t block);

}  // namespace tinyserve::ref

#endif  // TINYSERVE_KERNELS_REF_CODES_H_
