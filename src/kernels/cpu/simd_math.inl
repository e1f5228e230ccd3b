// Elementary functions over the primitives of simd_*.inl, which include this file.
namespace tinyserve {
namespace {

// e^x within 1e-7 relative. 0 below -87.3 (where the result would be denormal) and for -inf; e^88
// above 88.
TS_INLINE VF Exp(VF x) {
  const VF lowest = Set(-87.3f);
  const VF clamped = Min(Max(x, lowest), Set(88.0f));
  // x = n ln2 + r, |r| <= ln2 / 2; ln2 in two parts, the first short enough for n * part to be
  // exact.
  const VI n = ToInt(Mul(clamped, Set(1.44269504f)));
  const VF nf = ToFloat(n);
  VF r = Fnma(nf, Set(0.693359375f), clamped);
  r = Fnma(nf, Set(-2.12194440e-4f), r);
  // (e^r - 1 - r) / r^2, a Chebyshev fit of degree 4.
  VF p = Set(1.39262508e-3f);
  p = Fma(p, r, Set(8.36323288e-3f));
  p = Fma(p, r, Set(4.16665542e-2f));
  p = Fma(p, r, Set(1.66665767e-1f));
  p = Fma(p, r, Set(0.5f));
  const VF e = Add(Fma(Mul(r, r), p, r), Set(1.0f));
  return SelectLess(x, lowest, Zero(), Mul(e, PowerOfTwo(n)));
}

// x / (1 + e^-x)
TS_INLINE VF Silu(VF x) { return Div(x, Add(Set(1.0f), Exp(Sub(Zero(), x)))); }

// GELU by its tanh form: x/2 (1 + tanh(u)) = x / (1 + e^-2u), u = sqrt(2/pi) (x + 0.044715 x^3).
TS_INLINE VF GeluTanh(VF x) {
  const VF cube = Mul(Mul(x, x), x);
  const VF u = Mul(Set(0.797884561f), Fma(Set(0.044715f), cube, x));
  return Div(x, Add(Set(1.0f), Exp(Mul(Set(-2.0f), u))));
}

}  // namespace
}  // namespace tinyserve
