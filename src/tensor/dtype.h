// Element types of weights and caches, with GGML's block geometry where a type is quantised.
#ifndef TINYSERVE_TENSOR_DTYPE_H_
#define TINYSERVE_TENSOR_DTYPE_H_

#include <cstdint>

namespace tinyserve {

// Values are GGUF's own type numbers, so a file's number can be looked up but never cast blindly
// (DTypeFromGguf in gguf.h).
enum class DType : uint8_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kBF16 = 30,
};

struct DTypeInfo {
  const char* name;      // as GGUF tools print it: "Q4_1"
  uint32_t block_elems;  // elements of one row that are encoded together
  uint32_t block_bytes;  // bytes of such a block
};

// Geometry of `type`. Every enumerator has one.
const DTypeInfo& InfoOf(DType type);

// Bytes of one row of `cols` elements. REQUIRES: cols % block_elems == 0.
uint64_t RowBytes(DType type, uint64_t cols);

}  // namespace tinyserve

#endif  // TINYSERVE_TENSOR_DTYPE_H_
