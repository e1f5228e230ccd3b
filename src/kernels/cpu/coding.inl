// What the codings of pages share; each writes the same bytes as the plain loops of kernels/ref.
#ifndef TINYSERVE_KERNELS_CPU_CODING_INL_
#define TINYSERVE_KERNELS_CPU_CODING_INL_

#include "kernels/cpu/attention_forms.inl"
#include "kernels/cpu/attention_page.inl"
#include "kernels/cpu/fold.inl"

namespace tinyserve {
namespace {

// Below this the largest of some numbers counts as 0, and so do they.
constexpr float kTinyTop = 1e-30f;
constexpr float kF16Largest = 65504.0f;

TS_INLINE VF ClampFinite(VF a) { return Max(Min(a, Set(kF16Largest)), Set(-kF16Largest)); }
TS_INLINE VI ClampCodes(VI a, int low, int high) {
  return ToInt(Max(Min(ToFloat(a), Set((float)high)), Set((float)low)));
}
TS_INLINE float CodesPerUnit(float top, float code_max) {
  return top < kTinyTop ? 0.0f : code_max / top;
}

// Codes of dim numbers of a query, the largest of which becomes `top`, then zeros up to `count`, a
// multiple of kLanes; returns what a code stands for.
TS_INLINE float CodeQuery(const float* q, uint32_t dim, uint32_t count, float top, int16_t* codes) {
  VF highest_lanes = Zero();
  for (uint32_t c = 0; c < dim; c += kLanes) {
    highest_lanes = Max(highest_lanes, Abs(LoadFirst(q + c, Smaller(kLanes, dim - c))));
  }
  const float highest = MaxLanes(highest_lanes), to_codes = CodesPerUnit(highest, top);
  for (uint32_t c = 0; c < count; c += kLanes) {
    const uint32_t n = c < dim ? Smaller(kLanes, dim - c) : 0;
    StoreWords(codes + c, ToInt(Mul(LoadFirst(q + c, n), Set(to_codes))));
  }
  return highest / top;
}

// Codes 0 .. 255 of four numbers times to_codes, rounded up; returns them as floats.
TS_INLINE V4 StoreCodesUp(V4 numbers, float to_codes, uint8_t* p) {
  const V4 up = _mm_ceil_ps(_mm_mul_ps(numbers, _mm_set1_ps(to_codes)));
  const __m128i codes = _mm_cvtps_epi32(_mm_min_ps(up, _mm_set1_ps(255)));
  const __m128i words = _mm_packus_epi32(codes, codes);
  const int bytes = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
  __builtin_memcpy(p, &bytes, 4);
  return _mm_cvtepi32_ps(codes);
}

}  // namespace
}  // namespace tinyserve

#endif  // TINYSERVE_KERNELS_CPU_CODING_INL_
