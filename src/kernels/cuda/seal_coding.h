// For kernels: what the codings of full pages have in common. A block of 128 threads for each page
// and KV head, a thread for each channel; the codes are bit for bit those of ref
// (kernels/ref/coding.h).
#ifndef TINYSERVE_KERNELS_CUDA_SEAL_CODING_H_
#define TINYSERVE_KERNELS_CUDA_SEAL_CODING_H_

#include "kernels/cuda/decode_forms.h"
#include "kernels/cuda/seal.h"
#include "kernels/cuda/simt.h"
#include "page/coded.h"

namespace tinyserve::cuda {

constexpr uint32_t kSealThreads = 128;
constexpr float kTiny = 1e-30f;  // below this the largest of some numbers counts as 0

// NaN becomes the largest.
TS_DEVICE float FiniteOf(float x) {
  constexpr float kF16Max = 65504.0f;
  const float below = x < kF16Max ? x : kF16Max;
  return below > -kF16Max ? below : -kF16Max;
}

// To the nearest integer, ties to even, within [low, high].
TS_DEVICE float NearestCode(float x, float low, float high) {
  const float code = RoundEven(x);
  return code < low ? low : code > high ? high : code;
}
TS_DEVICE float ToCodes(float top, float code_max) { return top < kTiny ? 0.0f : code_max / top; }

// The same in all threads of the block.
TS_DEVICE float BlockMax(float value, const Shared<float>& warps) {
  const float top = WarpMax(value);
  SyncBlock();  // what was there has been read
  if (LaneIndex() == 0) warps.Set(WarpIndex(), top);
  SyncBlock();
  float all = warps.Get(0);
  for (uint32_t w = 1; w < kSealThreads / kWarpLanes; ++w) {
    const float other = warps.Get(w);
    all = other > all ? other : all;
  }
  return all;
}

// What turns a number into its code.
struct Coder {
  float middle, to_codes;
};

// Reads an open page's numbers to keys and values, [16][head_dim] each.
template <class T>
TS_DEVICE void ReadOpenPage(const SealCodedStep& step, uint32_t head, uint32_t page,
                            const Shared<float>& keys, const Shared<float>& values) {
  const Global<const uint8_t> open(step.open.slabs.bytes, "open");
  const uint64_t open_at = ItemAt(step.open.slabs, head, page);
  for (uint32_t i = ThreadIndex(); i < kCodedTokens * step.shape.head_dim; i += kSealThreads) {
    const uint64_t at = open_at + i * sizeof(T);
    keys.Set(i, FiniteOf(Float(open.Get<T>(at))));
    values.Set(i, FiniteOf(Float(open.Get<T>(at + step.open.v_offset))));
  }
  SyncBlock();
}

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_SEAL_CODING_H_
