// Sixteen by four bytes and back: the order in which dot instructions take their operands.
#ifndef TINYSERVE_KERNELS_CPU_FOURS_INL_
#define TINYSERVE_KERNELS_CPU_FOURS_INL_

namespace tinyserve {
namespace {

// From four times sixteen bytes to [16][4].
TS_INLINE void JoinFours(const __m128i (&bytes)[4], __m128i (&out)[4]) {
  const __m128i low01 = _mm_unpacklo_epi8(bytes[0], bytes[1]);
  const __m128i low23 = _mm_unpacklo_epi8(bytes[2], bytes[3]);
  const __m128i high01 = _mm_unpackhi_epi8(bytes[0], bytes[1]);
  const __m128i high23 = _mm_unpackhi_epi8(bytes[2], bytes[3]);
  out[0] = _mm_unpacklo_epi16(low01, low23);
  out[1] = _mm_unpackhi_epi16(low01, low23);
  out[2] = _mm_unpacklo_epi16(high01, high23);
  out[3] = _mm_unpackhi_epi16(high01, high23);
}

// Undoes it.
TS_INLINE void SplitFours(const __m128i (&in)[4], __m128i (&bytes)[4]) {
  const __m128i by_byte = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  __m128i a[4];
  TS_UNROLL for (uint32_t n = 0; n < 4; ++n) a[n] = _mm_shuffle_epi8(in[n], by_byte);
  const __m128i low0 = _mm_unpacklo_epi32(a[0], a[1]), high0 = _mm_unpackhi_epi32(a[0], a[1]);
  const __m128i low1 = _mm_unpacklo_epi32(a[2], a[3]), high1 = _mm_unpackhi_epi32(a[2], a[3]);
  bytes[0] = _mm_unpacklo_epi64(low0, low1);
  bytes[1] = _mm_unpackhi_epi64(low0, low1);
  bytes[2] = _mm_unpacklo_epi64(high0, high1);
  bytes[3] = _mm_unpackhi_epi64(high0, high1);
}

}  // namespace
}  // namespace tinyserve

#endif  // TINYSERVE_KERNELS_CPU_FOURS_INL_
