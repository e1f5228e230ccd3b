#include "tensor/dtype.h"

#include "base/check.h"
#include "tensor/blocks.h"

namespace tinyserve {

const DTypeInfo& InfoOf(DType type) {
  static constexpr DTypeInfo kF32 = {"F32", 1, 4};
  static constexpr DTypeInfo kF16 = {"F16", 1, 2};
  static constexpr DTypeInfo kBF16 = {"BF16", 1, 2};
  static constexpr DTypeInfo kQ4_0 = {"Q4_0", 32, sizeof(BlockQ4_0)};
  static constexpr DTypeInfo kQ4_1 = {"Q4_1", 32, sizeof(BlockQ4_1)};
  static constexpr DTypeInfo kQ5_0 = {"Q5_0", 32, sizeof(BlockQ5_0)};
  static constexpr DTypeInfo kQ5_1 = {"Q5_1", 32, sizeof(BlockQ5_1)};
  static constexpr DTypeInfo kQ8_0 = {"Q8_0", 32, sizeof(BlockQ8_0)};
  static constexpr DTypeInfo kQ4_K = {"Q4_K", 256, sizeof(BlockQ4_K)};
  static constexpr DTypeInfo kQ5_K = {"Q5_K", 256, sizeof(BlockQ5_K)};
  static constexpr DTypeInfo kQ6_K = {"Q6_K", 256, sizeof(BlockQ6_K)};
  switch (type) {
    case DType::kF32:
      return kF32;
    case DType::kF16:
      return kF16;
    case DType::kBF16:
      return kBF16;
    case DType::kQ4_0:
      return kQ4_0;
    case DType::kQ4_1:
      return kQ4_1;
    case DType::kQ5_0:
      return kQ5_0;
    case DType::kQ5_1:
      return kQ5_1;
    case DType::kQ8_0:
      return kQ8_0;
    case DType::kQ4_K:
      return kQ4_K;
    case DType::kQ5_K:
      return kQ5_K;
    case DType::kQ6_K:
      return kQ6_K;
  }
  TS_CHECK(false && "a DType outside its enumerators");
  return kF32;
}

uint64_t RowBytes(DType type, uint64_t cols) {
  const DTypeInfo& info = InfoOf(type);
  TS_CHECK(cols % info.block_elems == 0);
  return cols / info.block_elems * info.block_bytes;
}

}  // namespace tinyserve
