#include "kernels/cuda/attention_coded.h"
#include "kernels/cuda/decode_kernel.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/planes_form.h"

namespace tinyserve::cuda {
namespace {

template <uint32_t kKeyBits, uint32_t kValueBits>
struct RangesLaunch {
  const DecodeCall& call;
  Stream stream;

  // T stands for nothing here.
  template <class T, uint32_t kDim, uint32_t kGroup>
  Status operator()() const {
    return LaunchDecode<RangesForm<kKeyBits, kValueBits, kDim>, kGroup>(call, stream);
  }
};

struct PlanesLaunch {
  const DecodeCall& call;
  Stream stream;

  template <class T, uint32_t kDim, uint32_t kGroup>
  Status operator()() const {
    return LaunchDecode<PlanesForm<kDim>, kGroup>(call, stream);
  }
};

}  // namespace

Status LaunchCoded(const DecodeShape& shape, const DecodeCall& call, Stream stream) {
  constexpr const char* kName = "attention_decode of coded pages";
  constexpr const char* kTypes = "planes, int8, k8v4, int4";
  if (shape.page_tokens != kCodedTokens) return NoInstance(kName, shape, kTypes);
  switch (shape.type) {
    case KvType::kPlanes:
      return ForDim<uint8_t>(kName, shape, PlanesLaunch{call, stream});
    case KvType::kInt8:
      return ForDim<uint8_t>(kName, shape, RangesLaunch<8, 8>{call, stream});
    case KvType::kK8V4:
      return ForDim<uint8_t>(kName, shape, RangesLaunch<8, 4>{call, stream});
    case KvType::kInt4:
      return ForDim<uint8_t>(kName, shape, RangesLaunch<4, 4>{call, stream});
    default:
      return NoInstance(kName, shape, kTypes);
  }
}

}  // namespace tinyserve::cuda
