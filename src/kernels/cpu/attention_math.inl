// Exponentials of logits. Kernels keep logits in units of base 2: queries are multiplied by log2(e)
// once, which saves a multiplication for each key.
#ifndef TINYSERVE_KERNELS_CPU_ATTENTION_MATH_INL_
#define TINYSERVE_KERNELS_CPU_ATTENTION_MATH_INL_

namespace tinyserve {
namespace {

constexpr float kLog2E = 1.44269504f;
constexpr float kLn2 = 0.693147181f;

// 2^y for y <= 0 (a rounding above is fine), 2^-126 below that. Degree 4: 4e-6 relative, 6: 1e-7.
template <int kDegree>
TS_INLINE VF ExpTwo(VF y) {
  // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
  const VF magic = Set(12582912.0f);
  const VF clamped = Max(y, Set(-126.0f));
  const VF shifted = Add(clamped, magic);
  const VF r = Sub(clamped, Sub(shifted, magic));
  VF p;
  if (kDegree == 4) {
    p = Fma(Set(0.00958285294f), r, Set(0.0559064262f));
    p = Fma(p, r, Set(0.240240991f));
    p = Fma(p, r, Set(0.693124175f));
  } else {
    p = Fma(Set(0.00015353362f), r, Set(0.0013398875f));
    p = Fma(p, r, Set(0.00961843692f));
    p = Fma(p, r, Set(0.0555033237f));
    p = Fma(p, r, Set(0.240226477f));
    p = Fma(p, r, Set(0.693147182f));
  }
  p = Fma(p, r, Set(1.0f));
  return (VF)AddInt((VI)p, ShiftLeft((VI)shifted, 23));
}

}  // namespace
}  // namespace tinyserve

#endif  // TINYSERVE_KERNELS_CPU_ATTENTION_MATH_INL_
