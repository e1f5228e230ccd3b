// Vector primitives over 512 bits: AVX-512 F, BW, DQ, VL, with VNNI and BF16 where the unit is
// compiled with them. The names and their meanings are those of simd_avx2.inl.
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

// GCC 12 takes the deliberately undefined operands of its own AVX-512 header for mistakes.
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#define TS_INLINE inline __attribute__((always_inline))
// Before a loop of constant, small count: unrolls it whole.
#if defined(__clang__)
#define TS_UNROLL _Pragma("unroll")
#else
#define TS_UNROLL _Pragma("GCC unroll 16")
#endif

// Keeps the compiler from knowing, merging or rearranging what a vector holds.
#define TS_OPAQUE(vector) __asm__ volatile("" : "+v"(vector))

namespace tinyserve {
namespace {

constexpr uint32_t kLanes = 16;  // 32-bit lanes of a vector
constexpr uint32_t kVectorBytes = 4 * kLanes;

using VF = __m512;   // kLanes f32
using VI = __m512i;  // kLanes int32, or the same bytes as int16 or int8

// ---- f32 ----

TS_INLINE VF Zero() { return _mm512_setzero_ps(); }
TS_INLINE VF Set(float x) { return _mm512_set1_ps(x); }
TS_INLINE VF Load(const float* p) { return _mm512_loadu_ps(p); }
TS_INLINE void Store(float* p, VF a) { _mm512_storeu_ps(p, a); }
TS_INLINE VF Broadcast(const float* p) { return _mm512_set1_ps(*p); }

TS_INLINE VF Add(VF a, VF b) { return _mm512_add_ps(a, b); }
TS_INLINE VF Sub(VF a, VF b) { return _mm512_sub_ps(a, b); }
TS_INLINE VF Mul(VF a, VF b) { return _mm512_mul_ps(a, b); }
TS_INLINE VF Div(VF a, VF b) { return _mm512_div_ps(a, b); }
TS_INLINE VF Fma(VF a, VF b, VF c) { return _mm512_fmadd_ps(a, b, c); }    // a * b + c
TS_INLINE VF Fnma(VF a, VF b, VF c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a * b
TS_INLINE VF Max(VF a, VF b) { return _mm512_max_ps(a, b); }
TS_INLINE VF Min(VF a, VF b) { return _mm512_min_ps(a, b); }
TS_INLINE VF Abs(VF a) { return _mm512_abs_ps(a); }

// The first n lanes, n <= kLanes; a load's other lanes are 0.
TS_INLINE __mmask16 FirstLanes(uint32_t n) { return (__mmask16)((1u << n) - 1); }
TS_INLINE VF LoadFirst(const float* p, uint32_t n) {
  return _mm512_maskz_loadu_ps(FirstLanes(n), p);
}
TS_INLINE void StoreFirst(float* p, uint32_t n, VF a) {
  _mm512_mask_storeu_ps(p, FirstLanes(n), a);
}
// a in the first n lanes, b in the others.
TS_INLINE VF SelectFirst(uint32_t n, VF a, VF b) {
  return _mm512_mask_blend_ps(FirstLanes(n), b, a);
}
// a where x < y (false for NaN), else b.
TS_INLINE VF SelectLess(VF x, VF y, VF a, VF b) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, y, _CMP_LT_OQ), b, a);
}

// a and b hold pairs: their first, and their second members.
TS_INLINE void Deinterleave(VF a, VF b, VF* first, VF* second) {
  const VI even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  *first = _mm512_permutex2var_ps(a, even, b);
  *second = _mm512_permutex2var_ps(a, _mm512_add_epi32(even, _mm512_set1_epi32(1)), b);
}
// Lanes are pairs (x, y) and (cos, sin): rotates each, (x cos - y sin, y cos + x sin).
TS_INLINE VF RotatePairs(VF xy, VF cos_sin) {
  const VF swapped = _mm512_permute_ps(xy, 0xb1);
  const VF cross = _mm512_mul_ps(swapped, _mm512_movehdup_ps(cos_sin));
  return _mm512_fmaddsub_ps(xy, _mm512_moveldup_ps(cos_sin), cross);
}

// Sum and maximum over lanes: halves are folded onto each other, always in the same order.
TS_INLINE float SumLanes(VF a) {
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
TS_INLINE float MaxLanes(VF a) {
  const __m256 h = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
// The lanes from 8 on folded onto the first eight.
template <class Op>
TS_INLINE __m256 FoldToEight(VF a) {
  return Op::Of(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
}

// ---- half and bfloat16, round to nearest even ----

TS_INLINE VF LoadF16(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
TS_INLINE void StoreF16(uint16_t* p, VF a) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
TS_INLINE VF LoadBF16(const uint16_t* p) {
  const VI wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
// Finite values only: a NaN may come out as infinity.
TS_INLINE void StoreBF16(uint16_t* p, VF a) {
  const VI bits = _mm512_castps_si512(a);
  const VI odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const VI sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(sum, 16)));
}

// ---- int32 lanes ----

TS_INLINE VI ZeroInt() { return _mm512_setzero_si512(); }
TS_INLINE VI SetInt(int32_t x) { return _mm512_set1_epi32(x); }
TS_INLINE VI SetInt16(int16_t x) { return _mm512_set1_epi16(x); }
TS_INLINE VI SetByte(int8_t x) { return _mm512_set1_epi8(x); }
TS_INLINE VI LoadInt(const void* p) { return _mm512_loadu_si512(p); }
TS_INLINE void StoreInt(void* p, VI a) { _mm512_storeu_si512(p, a); }
// The four bytes at p in every lane.
TS_INLINE VI BroadcastInt(const void* p) {
  int32_t bits;
  __builtin_memcpy(&bits, p, 4);
  return _mm512_set1_epi32(bits);
}
// kLanes bytes, each zero- or sign-extended to a lane.
TS_INLINE VI LoadBytesUnsigned(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
}
TS_INLINE VI LoadBytesSigned(const int8_t* p) {
  return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p));
}
TS_INLINE VI AddInt(VI a, VI b) { return _mm512_add_epi32(a, b); }
TS_INLINE VI SubInt(VI a, VI b) { return _mm512_sub_epi32(a, b); }
// Sums of each eight bytes, unsigned, as int64 lanes.
TS_INLINE VI SumBytes(VI a) { return _mm512_sad_epu8(a, ZeroInt()); }
TS_INLINE VI AddInt64(VI a, VI b) { return _mm512_add_epi64(a, b); }
TS_INLINE VI MulInt(VI a, VI b) { return _mm512_mullo_epi32(a, b); }
TS_INLINE VI And(VI a, VI b) { return _mm512_and_si512(a, b); }
TS_INLINE VI Or(VI a, VI b) { return _mm512_or_si512(a, b); }
TS_INLINE VI ShiftLeft(VI a, int n) { return _mm512_slli_epi32(a, (unsigned)n); }
TS_INLINE VI ShiftRight(VI a, int n) { return _mm512_srli_epi32(a, (unsigned)n); }  // logical
TS_INLINE VI ShiftRightSigned(VI a, int n) { return _mm512_srai_epi32(a, (unsigned)n); }
// Two of each lane's bytes, sign-extended to its int16 halves.
template <int kLow, int kHigh>
TS_INLINE VI SignedBytes(VI a) {
  const VI lane = _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c));
  const VI order = AddInt(lane, SetInt(kLow * 0x0101 + kHigh * 0x01010000));
  return _mm512_srai_epi16(_mm512_shuffle_epi8(a, order), 8);
}
// The same, zero-extended.
template <int kLow, int kHigh>
TS_INLINE VI UnsignedBytes(VI a) {
  const VI lane = _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0x00040004, 0x00080008, 0x000c000c));
  const VI order = AddInt(lane, SetInt(kLow + (kHigh << 16) + (int)0x80008000));
  return _mm512_shuffle_epi8(a, order);
}
TS_INLINE VF ToFloat(VI a) { return _mm512_cvtepi32_ps(a); }
TS_INLINE VI ToInt(VF a) { return _mm512_cvtps_epi32(a); }  // nearest even
// Lanes that hold -128..127 to kLanes bytes.
TS_INLINE void StoreBytes(int8_t* p, VI a) {
  _mm_storeu_si128((__m128i*)p, _mm512_cvtsepi32_epi8(a));
}
TS_INLINE int32_t SumLanesInt(VI a) { return _mm512_reduce_add_epi32(a); }

// ---- integer dots: each 32-bit lane holds four bytes, or two int16, of one output ----

// c + a0*b0 + a1*b1 over int16 pairs, exact.
#if defined(__AVX512VNNI__)
TS_INLINE VI DotInt16(VI c, VI a, VI b) { return _mm512_dpwssd_epi32(c, a, b); }
constexpr bool kHasByteDot = true;
// c + sum of four products u8 * s8, exact.
TS_INLINE VI DotBytes(VI c, VI u8, VI s8) { return _mm512_dpbusd_epi32(c, u8, s8); }
// The same, with the four bytes at s8 in every lane. GCC 12 makes a load of its own of them.
TS_INLINE VI DotBytesAt(VI c, VI u8, const void* s8) {
  typedef int32_t __attribute__((may_alias)) FourBytes;
  __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(c) : "v"(u8), "m"(*(const FourBytes*)s8));
  return c;
}
#else
TS_INLINE VI DotInt16(VI c, VI a, VI b) { return AddInt(c, _mm512_madd_epi16(a, b)); }
constexpr bool kHasByteDot = false;
TS_INLINE VI DotBytes(VI c, VI, VI) { return c; }  // never called: see kHasByteDot
TS_INLINE VI DotBytesAt(VI c, VI, const void*) { return c; }
#endif

// Pair sums u8 * s8 in 16 bits, REQUIRES: no sum leaves int16.
TS_INLINE VI PairDot(VI u8, VI s8) { return _mm512_maddubs_epi16(u8, s8); }
TS_INLINE VI AddInt16(VI a, VI b) { return _mm512_add_epi16(a, b); }

#if defined(__AVX512BF16__)
constexpr bool kHasBF16Dot = true;
// c + a0*b0 + a1*b1 over bfloat16 pairs; denormals count as 0.
TS_INLINE VF DotBF16(VF c, VI a, VI b) { return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b); }
#else
constexpr bool kHasBF16Dot = false;
#endif

// ---- int16 and byte lanes ----

// The 2 kLanes bytes at p, sign- or zero-extended to int16; of the first n, a multiple of 16, the
// others are 0.
TS_INLINE __m256i LoadHalfFirst(const void* p, uint32_t n) {
  return n >= 32 ? _mm256_loadu_si256((const __m256i*)p)
                 : _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i*)p));
}
TS_INLINE VI LoadWordsSigned(const void* p, uint32_t n) {
  return _mm512_cvtepi8_epi16(LoadHalfFirst(p, n));
}
TS_INLINE VI LoadWordsUnsigned(const void* p, uint32_t n) {
  return _mm512_cvtepu8_epi16(LoadHalfFirst(p, n));
}
// The 4 kLanes bytes at p, of the first n, a multiple of 16, the others are 0.
TS_INLINE VI LoadIntFirst(const void* p, uint32_t n) {
  return n >= 64 ? LoadInt(p) : _mm512_maskz_loadu_epi8(((__mmask64)1 << n) - 1, p);
}
TS_INLINE VI ShiftLeftWords(VI a, int n) { return _mm512_slli_epi16(a, (unsigned)n); }
// a * b / 2^15 by int16 lanes, rounded.
TS_INLINE VI MulHighWords(VI a, VI b) { return _mm512_mulhrs_epi16(a, b); }
// By int16 lanes, signed.
TS_INLINE VI MaxWords(VI a, VI b) { return _mm512_max_epi16(a, b); }
TS_INLINE VI AbsWords(VI a) { return _mm512_abs_epi16(a); }
// int16 lanes to bytes, saturated: eight of a, then eight of b, in each 16 bytes.
TS_INLINE VI PackWords(VI a, VI b) { return _mm512_packs_epi16(a, b); }
// The same, all of a and then all of b.
TS_INLINE VI PackWordsInOrder(VI a, VI b) {
  const VI order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
  return _mm512_permutexvar_epi64(order, _mm512_packs_epi16(a, b));
}
// Four times kLanes int32 to bytes, 0 .. 255 at the ends, in their order.
TS_INLINE VI PackFourInts(const VI (&a)[4]) {
  const VI order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const VI bytes =
      _mm512_packus_epi16(_mm512_packs_epi32(a[0], a[1]), _mm512_packs_epi32(a[2], a[3]));
  return _mm512_permutexvar_epi32(order, bytes);
}
// Pairs of a's and b's lanes: of the lower, and of the upper half of each 16 bytes.
TS_INLINE VI PairLowWords(VI a, VI b) { return _mm512_unpacklo_epi16(a, b); }
TS_INLINE VI PairHighWords(VI a, VI b) { return _mm512_unpackhi_epi16(a, b); }
TS_INLINE VI PairLowBytes(VI a, VI b) { return _mm512_unpacklo_epi8(a, b); }
TS_INLINE VI PairHighBytes(VI a, VI b) { return _mm512_unpackhi_epi8(a, b); }
// counts, one more in each byte where x >= least, unsigned; of int16 lanes, in the lower byte.
TS_INLINE VI CountBytesAtLeast(VI counts, VI x, VI least) {
  const __mmask64 reached = _mm512_cmpge_epu8_mask(x, least);
  return _mm512_mask_sub_epi8(counts, reached, counts, _mm512_set1_epi8(-1));
}
TS_INLINE VI CountWordsAtLeast(VI counts, VI x, VI least) {
  const __mmask32 reached = _mm512_cmpge_epu16_mask(x, least);
  return _mm512_mask_add_epi16(counts, reached, counts, _mm512_set1_epi16(1));
}
// Which of the 16 at p are x, and which are at least x: a bit each.
TS_INLINE uint32_t EqualOfSixteen(const uint8_t* p, uint8_t x) {
  return _mm_cmpeq_epi8_mask(_mm_loadu_si128((const __m128i*)p), _mm_set1_epi8((char)x));
}
TS_INLINE uint32_t AtLeastOfSixteen(const uint8_t* p, uint8_t x) {
  return _mm_cmpge_epu8_mask(_mm_loadu_si128((const __m128i*)p), _mm_set1_epi8((char)x));
}
TS_INLINE uint32_t EqualOfSixteen(const uint16_t* p, uint16_t x) {
  return _mm256_cmpeq_epi16_mask(_mm256_loadu_si256((const __m256i*)p),
                                 _mm256_set1_epi16((short)x));
}
TS_INLINE uint32_t AtLeastOfSixteen(const uint16_t* p, uint16_t x) {
  return _mm256_cmpge_epu16_mask(_mm256_loadu_si256((const __m256i*)p),
                                 _mm256_set1_epi16((short)x));
}
// Sixteen lanes to bytes, those out of low .. high as the nearer of them. 0 <= low, high < 256.
TS_INLINE void StoreSixteenClamped(uint8_t* p, const VI (&a)[1], uint8_t low, uint8_t high) {
  const VI within = _mm512_min_epi32(_mm512_max_epi32(a[0], SetInt(low)), SetInt(high));
  _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(within));
}

// ---- masks of tokens ----

// The lanes whose bit is set, from bit 0 on; the others are 0.
TS_INLINE VF KeepLanes(uint32_t mask, VF a) { return _mm512_maskz_mov_ps((__mmask16)mask, a); }
// Those of sixteen lanes whose bit is set, one after another. Writes 16 lanes at most.
TS_INLINE void StoreChosen(uint32_t mask, const VI (&a)[1], void* p) {
  StoreInt(p, _mm512_maskz_compress_epi32((__mmask16)mask, a[0]));
}
// The addresses base + stride * bit of the bits that are set. Writes 16 at most.
TS_INLINE void StoreChosenRows(uint32_t mask, const uint8_t* base, uint32_t stride,
                               const uint8_t** p) {
  const VI first = _mm512_set1_epi64((long long)base);
  const VI step = SetInt((int32_t)stride);
  const VI low = _mm512_mul_epu32(_mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7), step);
  const VI high = _mm512_mul_epu32(_mm512_setr_epi64(8, 9, 10, 11, 12, 13, 14, 15), step);
  StoreInt(p, _mm512_maskz_compress_epi64((__mmask8)mask, AddInt64(first, low)));
  StoreInt(p + __builtin_popcount(mask & 255),
           _mm512_maskz_compress_epi64((__mmask8)(mask >> 8), AddInt64(first, high)));
}

// ---- codes in planes (page/planes.h) ----

// The crumbs of 64 channels, 16 of them in each int32 of p, as bytes in the order of channels.
TS_INLINE VI ExpandCrumbs(__m128i p) {
  const VI spread = _mm512_permutexvar_epi32(
      _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3), _mm512_zextsi128_si512(p));
  const VI shifted = _mm512_srlv_epi32(spread, _mm512_broadcast_i32x4(_mm_setr_epi32(0, 2, 4, 6)));
  return And(shifted, SetByte(3));
}
// Groups of 16 channels whose codes are joined at once. Of the last ones, those past the head size
// come out as bytes of the page behind them: they count for nothing where they meet zeros.
constexpr uint32_t kCodeGroups = 4;
// A token's codes less 128, as words in the order of channels. upper: its first bytes in the upper
// plane; crumbs and nibbles: of the same channels in its row of the lower one.
TS_INLINE void JoinCodes(const uint8_t* upper, const uint8_t* crumbs, const uint8_t* nibbles,
                         VI (&words)[2]) {
  int32_t tops[4];
  TS_UNROLL for (uint32_t group = 0; group < 4; ++group) {
    __builtin_memcpy(tops + group, upper + group * 64, 4);
  }
  const VI top = ExpandCrumbs(_mm_setr_epi32(tops[0], tops[1], tops[2], tops[3]));
  const VI middle = ExpandCrumbs(_mm_loadu_si128((const __m128i*)crumbs));
  const VI twice =
      _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 0, 1, 1, 2, 2, 3, 3),
                               _mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i*)nibbles)));
  const VI low =
      And(_mm512_srlv_epi64(twice, _mm512_setr_epi64(0, 4, 0, 4, 0, 4, 0, 4)), SetByte(15));
  const VI code = Or(Or(ShiftLeftWords(top, 6), ShiftLeftWords(middle, 4)), low);
  const VI offset = _mm512_xor_si512(code, SetByte((int8_t)0x80));
  words[0] = _mm512_cvtepi8_epi16(_mm512_castsi512_si256(offset));
  words[1] = _mm512_cvtepi8_epi16(_mm512_extracti64x4_epi64(offset, 1));
}

// ---- memory ----

// How far ahead of its loads a walk over weights asks for memory: over the page borders at which
// hardware prefetchers stop, and about a panel's tail.
constexpr uint32_t kPrefetchBytes = 5120;

TS_INLINE void Prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }
template <uint32_t kBytes>
TS_INLINE void PrefetchRange(const uint8_t* p) {
  for (uint32_t i = 0; i < kBytes; i += 64) Prefetch(p + i);
}

// ---- square root, correctly rounded ----

TS_INLINE float Sqrt(float x) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }

// 2^n for integral lanes -126..127.
TS_INLINE VF PowerOfTwo(VI n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23));
}

}  // namespace
}  // namespace tinyserve

#include "kernels/cpu/simd_math.inl"
