// Four vectors folded over their lanes, to the four lanes of one.
#ifndef TINYSERVE_KERNELS_CPU_FOLD_INL_
#define TINYSERVE_KERNELS_CPU_FOLD_INL_

namespace tinyserve {
namespace {

using V4 = __m128;

struct SumOp {
  static TS_INLINE __m256 Of(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
  static TS_INLINE V4 Of(V4 a, V4 b) { return _mm_add_ps(a, b); }
};
struct MinOp {
  static TS_INLINE __m256 Of(__m256 a, __m256 b) { return _mm256_min_ps(a, b); }
  static TS_INLINE V4 Of(V4 a, V4 b) { return _mm_min_ps(a, b); }
};
struct MaxOp {
  static TS_INLINE __m256 Of(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }
  static TS_INLINE V4 Of(V4 a, V4 b) { return _mm_max_ps(a, b); }
};

// Neighbours in each half of a, then of b.
template <class Op>
TS_INLINE __m256 FoldPairs(__m256 a, __m256 b) {
  return Op::Of(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd));
}
// On every target in the order ((0 1) (2 3)) ((4 5) (6 7)), after the lanes from 8 on have been
// folded onto the first eight.
template <class Op>
TS_INLINE V4 FoldFour(const VF (&a)[4]) {
  const __m256 first = FoldPairs<Op>(FoldToEight<Op>(a[0]), FoldToEight<Op>(a[1]));
  const __m256 second = FoldPairs<Op>(FoldToEight<Op>(a[2]), FoldToEight<Op>(a[3]));
  const __m256 all = FoldPairs<Op>(first, second);
  return Op::Of(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}

// As FoldFour, exact sums of int32 lanes.
TS_INLINE __m128i FoldFourInt(VI a, VI b, VI c, VI d) {
#if defined(__AVX512F__)
  const VI ab = AddInt(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  const VI cd = AddInt(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
  const VI lanes = AddInt(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  const __m256i all =
      _mm256_add_epi32(_mm512_castsi512_si256(lanes), _mm512_extracti64x4_epi64(lanes, 1));
#else
  const __m256i all = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
#endif
  return _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}

}  // namespace
}  // namespace tinyserve

#endif  // TINYSERVE_KERNELS_CPU_FOLD_INL_
