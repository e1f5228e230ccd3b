// From the shape of a call to the instance of its kernel.
#ifndef TINYSERVE_KERNELS_CUDA_DISPATCH_H_
#define TINYSERVE_KERNELS_CUDA_DISPATCH_H_

#include <string>

#include "kernels/cuda/paged.h"
#include "tinyserve/status.h"

namespace tinyserve::cuda {

// What no instance has: of `types` there are some. The group is rounded up to 1, 2, 4 or 8, of f32
// always to 8.
inline Status NoInstance(const char* kernel, const DecodeShape& shape,
                         const char* types = "f32, f16, bf16") {
  return Status(Code::kUnsupported,
                std::string(kernel) + ": no instance for KV type " +
                    std::to_string(static_cast<int>(shape.type)) + ", head size " +
                    std::to_string(shape.head_dim) + ", " + std::to_string(shape.group) +
                    " query heads of a KV head, pages of " + std::to_string(shape.page_tokens) +
                    " tokens: types " + types + "; head sizes 64, 80, 96, 128; 1 to 8 heads; " +
                    "pages of 4, 8, 16, 32, 64 tokens");
}

// What a block may have of shared memory on every architecture that is compiled for (sm_86, sm_89).
constexpr uint32_t kSharedBytesMax = 99 << 10;

constexpr bool IsPageTokens(uint32_t tokens) {
  return tokens >= 4 && tokens <= 64 && (tokens & (tokens - 1)) == 0;
}
constexpr uint32_t Log2(uint32_t power) {
  uint32_t shift = 0;
  while ((1u << shift) < power) ++shift;
  return shift;
}

template <class T, uint32_t kDim, class Call>
Status ForGroup(const char* kernel, const DecodeShape& shape, const Call& call) {
  if (shape.group == 0 || shape.group > 8) return NoInstance(kernel, shape);
  // f32 is for comparisons, not for speed: one instance does.
  if constexpr (sizeof(T) == 4) {
    return call.template operator()<T, kDim, 8>();
  } else {
    if (shape.group == 1) return call.template operator()<T, kDim, 1>();
    if (shape.group == 2) return call.template operator()<T, kDim, 2>();
    if (shape.group <= 4) return call.template operator()<T, kDim, 4>();
    return call.template operator()<T, kDim, 8>();
  }
}

template <class T, class Call>
Status ForDim(const char* kernel, const DecodeShape& shape, const Call& call) {
  switch (shape.head_dim) {
    case 64:
      return ForGroup<T, 64>(kernel, shape, call);
    case 80:
      return ForGroup<T, 80>(kernel, shape, call);
    case 96:
      return ForGroup<T, 96>(kernel, shape, call);
    case 128:
      return ForGroup<T, 128>(kernel, shape, call);
    default:
      return NoInstance(kernel, shape);
  }
}

// call.operator()<T, kDim, kGroup>() of the shape.
template <class Call>
Status ForShape(const char* kernel, const DecodeShape& shape, const Call& call) {
  if (!IsPageTokens(shape.page_tokens)) return NoInstance(kernel, shape);
  switch (shape.type) {
    case KvType::kF32:
      return ForDim<float>(kernel, shape, call);
    case KvType::kF16:
      return ForDim<F16>(kernel, shape, call);
    case KvType::kBF16:
      return ForDim<BF16>(kernel, shape, call);
    default:
      return NoInstance(kernel, shape);
  }
}

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_DISPATCH_H_
