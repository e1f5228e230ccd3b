// Vector primitives over 256 bits: AVX2, FMA, F16C, and AVX-VNNI where the unit is compiled with
// it.
//
// A target unit includes exactly one of simd_*.inl, then kernels written over these names alone, so
// that one source serves every width. Everything is in an anonymous namespace: no unit shares code
// with another.
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#define TS_INLINE inline __attribute__((always_inline))
// Before a loop of constant, small count: unrolls it whole.
#if defined(__clang__)
#define TS_UNROLL _Pragma("unroll")
#else
#define TS_UNROLL _Pragma("GCC unroll 16")
#endif

// Keeps the compiler from knowing, merging or rearranging what a vector holds.
#define TS_OPAQUE(vector) __asm__ volatile("" : "+x"(vector))

namespace tinyserve {
namespace {

constexpr uint32_t kLanes = 8;  // 32-bit lanes of a vector
constexpr uint32_t kVectorBytes = 4 * kLanes;

using VF = __m256;   // kLanes f32
using VI = __m256i;  // kLanes int32, or the same bytes as int16 or int8

// ---- f32 ----

TS_INLINE VF Zero() { return _mm256_setzero_ps(); }
TS_INLINE VF Set(float x) { return _mm256_set1_ps(x); }
// No load or store needs alignment.
TS_INLINE VF Load(const float* p) { return _mm256_loadu_ps(p); }
TS_INLINE void Store(float* p, VF a) { _mm256_storeu_ps(p, a); }
TS_INLINE VF Broadcast(const float* p) { return _mm256_broadcast_ss(p); }

TS_INLINE VF Add(VF a, VF b) { return _mm256_add_ps(a, b); }
TS_INLINE VF Sub(VF a, VF b) { return _mm256_sub_ps(a, b); }
TS_INLINE VF Mul(VF a, VF b) { return _mm256_mul_ps(a, b); }
TS_INLINE VF Div(VF a, VF b) { return _mm256_div_ps(a, b); }
TS_INLINE VF Fma(VF a, VF b, VF c) { return _mm256_fmadd_ps(a, b, c); }    // a * b + c
TS_INLINE VF Fnma(VF a, VF b, VF c) { return _mm256_fnmadd_ps(a, b, c); }  // c - a * b
TS_INLINE VF Max(VF a, VF b) { return _mm256_max_ps(a, b); }
TS_INLINE VF Min(VF a, VF b) { return _mm256_min_ps(a, b); }
TS_INLINE VF Abs(VF a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }

// The first n lanes, n <= kLanes; a load's other lanes are 0.
TS_INLINE VI FirstLanes(uint32_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
TS_INLINE VF LoadFirst(const float* p, uint32_t n) { return _mm256_maskload_ps(p, FirstLanes(n)); }
TS_INLINE void StoreFirst(float* p, uint32_t n, VF a) { _mm256_maskstore_ps(p, FirstLanes(n), a); }
// a in the first n lanes, b in the others.
TS_INLINE VF SelectFirst(uint32_t n, VF a, VF b) {
  return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(FirstLanes(n)));
}
// a where x < y (false for NaN), else b.
TS_INLINE VF SelectLess(VF x, VF y, VF a, VF b) {
  return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, y, _CMP_LT_OQ));
}

// a and b hold pairs: their first, and their second members.
TS_INLINE void Deinterleave(VF a, VF b, VF* first, VF* second) {
  const __m256d x = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88));
  const __m256d y = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0xdd));
  *first = _mm256_castpd_ps(_mm256_permute4x64_pd(x, 0xd8));
  *second = _mm256_castpd_ps(_mm256_permute4x64_pd(y, 0xd8));
}
// Lanes are pairs (x, y) and (cos, sin): rotates each, (x cos - y sin, y cos + x sin).
TS_INLINE VF RotatePairs(VF xy, VF cos_sin) {
  const VF swapped = _mm256_permute_ps(xy, 0xb1);
  const VF cross = _mm256_mul_ps(swapped, _mm256_movehdup_ps(cos_sin));
  return _mm256_fmaddsub_ps(xy, _mm256_moveldup_ps(cos_sin), cross);
}

// Sum and maximum over lanes: halves are folded onto each other, always in the same order.
TS_INLINE float SumLanes(VF a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
TS_INLINE float MaxLanes(VF a) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
// The lanes from 8 on folded onto the first eight.
template <class Op>
TS_INLINE __m256 FoldToEight(VF a) {
  return a;
}

// ---- half and bfloat16, round to nearest even ----

TS_INLINE VF LoadF16(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
}
TS_INLINE void StoreF16(uint16_t* p, VF a) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
TS_INLINE VF LoadBF16(const uint16_t* p) {
  const VI wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
// Finite values only: a NaN may come out as infinity.
TS_INLINE void StoreBF16(uint16_t* p, VF a) {
  const VI bits = _mm256_castps_si256(a);
  const VI odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const VI sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const VI top = _mm256_srli_epi32(sum, 16);
  const VI packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(top, top), 0x08);
  _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(packed));
}

// ---- int32 lanes ----

TS_INLINE VI ZeroInt() { return _mm256_setzero_si256(); }
TS_INLINE VI SetInt(int32_t x) { return _mm256_set1_epi32(x); }
TS_INLINE VI SetInt16(int16_t x) { return _mm256_set1_epi16(x); }
TS_INLINE VI SetByte(int8_t x) { return _mm256_set1_epi8(x); }
TS_INLINE VI LoadInt(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
TS_INLINE void StoreInt(void* p, VI a) { _mm256_storeu_si256((__m256i*)p, a); }
// The four bytes at p in every lane.
TS_INLINE VI BroadcastInt(const void* p) {
  int32_t bits;
  __builtin_memcpy(&bits, p, 4);
  return _mm256_set1_epi32(bits);
}
// kLanes bytes, each zero- or sign-extended to a lane.
TS_INLINE VI LoadBytesUnsigned(const uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
}
TS_INLINE VI LoadBytesSigned(const int8_t* p) {
  return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p));
}
TS_INLINE VI AddInt(VI a, VI b) { return _mm256_add_epi32(a, b); }
TS_INLINE VI SubInt(VI a, VI b) { return _mm256_sub_epi32(a, b); }
// Sums of each eight bytes, unsigned, as int64 lanes.
TS_INLINE VI SumBytes(VI a) { return _mm256_sad_epu8(a, ZeroInt()); }
TS_INLINE VI AddInt64(VI a, VI b) { return _mm256_add_epi64(a, b); }
TS_INLINE VI MulInt(VI a, VI b) { return _mm256_mullo_epi32(a, b); }
TS_INLINE VI And(VI a, VI b) { return _mm256_and_si256(a, b); }
TS_INLINE VI Or(VI a, VI b) { return _mm256_or_si256(a, b); }
TS_INLINE VI ShiftLeft(VI a, int n) { return _mm256_slli_epi32(a, n); }
TS_INLINE VI ShiftRight(VI a, int n) { return _mm256_srli_epi32(a, n); }  // logical
TS_INLINE VI ShiftRightSigned(VI a, int n) { return _mm256_srai_epi32(a, n); }
// Two of each lane's bytes, sign-extended to its int16 halves.
template <int kLow, int kHigh>
TS_INLINE VI SignedBytes(VI a) {
  const VI lane = _mm256_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c, 0, 0x04040404,
                                    0x08080808, 0x0c0c0c0c);
  const VI order = AddInt(lane, SetInt(kLow * 0x0101 + kHigh * 0x01010000));
  return _mm256_srai_epi16(_mm256_shuffle_epi8(a, order), 8);
}
// The same, zero-extended.
template <int kLow, int kHigh>
TS_INLINE VI UnsignedBytes(VI a) {
  const VI lane = _mm256_setr_epi32(0, 0x00040004, 0x00080008, 0x000c000c, 0, 0x00040004,
                                    0x00080008, 0x000c000c);
  const VI order = AddInt(lane, SetInt(kLow + (kHigh << 16) + (int)0x80008000));
  return _mm256_shuffle_epi8(a, order);
}
TS_INLINE VF ToFloat(VI a) { return _mm256_cvtepi32_ps(a); }
TS_INLINE VI ToInt(VF a) { return _mm256_cvtps_epi32(a); }  // nearest even
// Lanes that hold -128..127 to kLanes bytes.
TS_INLINE void StoreBytes(int8_t* p, VI a) {
  const VI words = _mm256_packs_epi32(a, a);
  const VI bytes = _mm256_packs_epi16(words, words);
  const int low = _mm_cvtsi128_si32(_mm256_castsi256_si128(bytes));
  const int high = _mm_cvtsi128_si32(_mm256_extracti128_si256(bytes, 1));
  __builtin_memcpy(p, &low, 4);
  __builtin_memcpy(p + 4, &high, 4);
}
TS_INLINE int32_t SumLanesInt(VI a) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

// ---- integer dots: each 32-bit lane holds four bytes, or two int16, of one output ----

// c + a0*b0 + a1*b1 over int16 pairs, exact.
TS_INLINE VI DotInt16(VI c, VI a, VI b) { return AddInt(c, _mm256_madd_epi16(a, b)); }

#if defined(__AVXVNNI__)
constexpr bool kHasByteDot = true;
// c + sum of four products u8 * s8, exact.
TS_INLINE VI DotBytes(VI c, VI u8, VI s8) { return _mm256_dpbusd_avx_epi32(c, u8, s8); }
// The same, with the four bytes at s8 in every lane.
TS_INLINE VI DotBytesAt(VI c, VI u8, const void* s8) { return DotBytes(c, u8, BroadcastInt(s8)); }
#else
constexpr bool kHasByteDot = false;
TS_INLINE VI DotBytes(VI c, VI, VI) { return c; }  // never called: see kHasByteDot
TS_INLINE VI DotBytesAt(VI c, VI, const void*) { return c; }
#endif

// Pair sums u8 * s8 in 16 bits, REQUIRES: no sum leaves int16.
TS_INLINE VI PairDot(VI u8, VI s8) { return _mm256_maddubs_epi16(u8, s8); }
TS_INLINE VI AddInt16(VI a, VI b) { return _mm256_add_epi16(a, b); }

constexpr bool kHasBF16Dot = false;

// ---- int16 and byte lanes ----

// The 2 kLanes bytes at p, sign- or zero-extended to int16; of the first n, a multiple of 16, the
// others are 0.
TS_INLINE VI LoadWordsSigned(const void* p, uint32_t) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p));
}
TS_INLINE VI LoadWordsUnsigned(const void* p, uint32_t) {
  return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)p));
}
// The 4 kLanes bytes at p, of the first n, a multiple of 16, the others are 0.
TS_INLINE VI LoadIntFirst(const void* p, uint32_t n) {
  return n >= 32 ? LoadInt(p) : _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i*)p));
}
TS_INLINE VI ShiftLeftWords(VI a, int n) { return _mm256_slli_epi16(a, n); }
// a * b / 2^15 by int16 lanes, rounded.
TS_INLINE VI MulHighWords(VI a, VI b) { return _mm256_mulhrs_epi16(a, b); }
// By int16 lanes, signed.
TS_INLINE VI MaxWords(VI a, VI b) { return _mm256_max_epi16(a, b); }
TS_INLINE VI AbsWords(VI a) { return _mm256_abs_epi16(a); }
// int16 lanes to bytes, saturated: eight of a, then eight of b, in each 16 bytes.
TS_INLINE VI PackWords(VI a, VI b) { return _mm256_packs_epi16(a, b); }
// The same, all of a and then all of b.
TS_INLINE VI PackWordsInOrder(VI a, VI b) {
  return _mm256_permute4x64_epi64(_mm256_packs_epi16(a, b), 0xd8);
}
// Four times kLanes int32 to bytes, 0 .. 255 at the ends, in their order.
TS_INLINE VI PackFourInts(const VI (&a)[4]) {
  const VI order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const VI bytes =
      _mm256_packus_epi16(_mm256_packs_epi32(a[0], a[1]), _mm256_packs_epi32(a[2], a[3]));
  return _mm256_permutevar8x32_epi32(bytes, order);
}
// Pairs of a's and b's lanes: of the lower, and of the upper half of each 16 bytes.
TS_INLINE VI PairLowWords(VI a, VI b) { return _mm256_unpacklo_epi16(a, b); }
TS_INLINE VI PairHighWords(VI a, VI b) { return _mm256_unpackhi_epi16(a, b); }
TS_INLINE VI PairLowBytes(VI a, VI b) { return _mm256_unpacklo_epi8(a, b); }
TS_INLINE VI PairHighBytes(VI a, VI b) { return _mm256_unpackhi_epi8(a, b); }
// counts, one more in each byte where x >= least, unsigned; of int16 lanes, in the lower byte.
TS_INLINE VI CountBytesAtLeast(VI counts, VI x, VI least) {
  return _mm256_sub_epi8(counts, _mm256_cmpeq_epi8(_mm256_min_epu8(x, least), least));
}
TS_INLINE VI CountWordsAtLeast(VI counts, VI x, VI least) {
  const VI reached = _mm256_cmpeq_epi16(_mm256_min_epu16(x, least), least);
  return _mm256_add_epi8(counts, _mm256_srli_epi16(reached, 15));
}
// Which of the 16 at p are x, and which are at least x: a bit each.
TS_INLINE uint32_t EqualOfSixteen(const uint8_t* p, uint8_t x) {
  const __m128i a = _mm_loadu_si128((const __m128i*)p);
  return (uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(a, _mm_set1_epi8((char)x)));
}
TS_INLINE uint32_t AtLeastOfSixteen(const uint8_t* p, uint8_t x) {
  const __m128i a = _mm_loadu_si128((const __m128i*)p);
  const __m128i larger = _mm_max_epu8(a, _mm_set1_epi8((char)x));
  return (uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(larger, a));
}
TS_INLINE uint32_t MaskOfWords(VI all_or_none) {
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(all_or_none),
                                        _mm256_extracti128_si256(all_or_none, 1));
  return (uint32_t)_mm_movemask_epi8(bytes);
}
TS_INLINE uint32_t EqualOfSixteen(const uint16_t* p, uint16_t x) {
  return MaskOfWords(_mm256_cmpeq_epi16(LoadInt(p), SetInt16((int16_t)x)));
}
TS_INLINE uint32_t AtLeastOfSixteen(const uint16_t* p, uint16_t x) {
  const VI a = LoadInt(p);
  return MaskOfWords(_mm256_cmpeq_epi16(_mm256_max_epu16(a, SetInt16((int16_t)x)), a));
}
// Sixteen lanes to bytes, those out of low .. high as the nearer of them. 0 <= low, high < 256.
TS_INLINE void StoreSixteenClamped(uint8_t* p, const VI (&a)[2], uint8_t low, uint8_t high) {
  const VI words = _mm256_packs_epi32(a[0], a[1]);  // tokens 0-3, 8-11; 4-7, 12-15
  const __m128i bytes =
      _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  const __m128i order = _mm_setr_epi8(0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15);
  const __m128i within =
      _mm_min_epu8(_mm_max_epu8(bytes, _mm_set1_epi8((char)low)), _mm_set1_epi8((char)high));
  _mm_storeu_si128((__m128i*)p, _mm_shuffle_epi8(within, order));
}
// Sixteen lanes that hold 0 .. 255 to bytes, each two of them twice.
TS_INLINE void StorePairsTwice(uint8_t* p, const VI (&a)[2]) {
  const VI words = _mm256_packs_epi32(a[0], a[1]);  // 0-3, 8-11; 4-7, 12-15
  const VI bytes = _mm256_packus_epi16(words, words);
  StoreInt(p, _mm256_permute4x64_epi64(_mm256_unpacklo_epi16(bytes, bytes), 0xd8));
}
// Words of what PairLowBytes and PairHighBytes have paired, to int32 in the order of the bytes.
TS_INLINE void WidenPairs(const VI (&words)[2], VI (&wide)[4]) {
  TS_UNROLL for (uint32_t i = 0; i < 2; ++i) {
    wide[i] = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(words[i]));
    wide[2 + i] = _mm256_cvtepi16_epi32(_mm256_extracti128_si256(words[i], 1));
  }
}

// Two times kLanes int32 to int16, saturated: four of a, then four of b, in each 16 bytes.
TS_INLINE VI PackInts(VI a, VI b) { return _mm256_packs_epi32(a, b); }
// Sixteen words as PackInts packs 0-7 and 8-15, in order.
TS_INLINE VI InTokenOrder(VI words) { return _mm256_permute4x64_epi64(words, 0xd8); }
TS_INLINE VI AddWordsSaturated(VI a, VI b) { return _mm256_adds_epi16(a, b); }
TS_INLINE int32_t MaxLanesWords(VI a) {
  const __m128i m = _mm_max_epi16(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  // The least unsigned word is what a processor has an instruction for.
  const __m128i flipped = _mm_xor_si128(m, _mm_set1_epi16(INT16_MAX));
  return (int16_t)(_mm_cvtsi128_si32(_mm_minpos_epu16(flipped)) ^ INT16_MAX);
}
// Sixteen words to bytes, those out of low .. high as the nearer of them. 0 <= low, high < 256.
TS_INLINE void StoreWordsClamped(uint8_t* p, VI a, uint8_t low, uint8_t high) {
  const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  const __m128i within =
      _mm_min_epu8(_mm_max_epu8(bytes, _mm_set1_epi8((char)low)), _mm_set1_epi8((char)high));
  _mm_storeu_si128((__m128i*)p, within);
}

// ---- masks of tokens ----

// The lanes whose bit is set, from bit 0 on; the others are 0.
TS_INLINE VF KeepLanes(uint32_t mask, VF a) {
  const VI bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const VI in = _mm256_and_si256(SetInt((int)mask), bits);
  return _mm256_and_ps(a, _mm256_castsi256_ps(_mm256_cmpeq_epi32(in, bits)));
}
// For each mask of eight lanes, which of them comes first, second, ...
struct LaneOrders {
  uint64_t of[256];
  constexpr LaneOrders() : of() {
    for (uint32_t mask = 0; mask < 256; ++mask) {
      for (uint64_t lane = 0, shift = 0; lane < 8; ++lane) {
        if ((mask >> lane & 1) == 0) continue;
        of[mask] |= lane << shift;
        shift += 8;
      }
    }
  }
};
alignas(64) constexpr LaneOrders kLaneOrders;
// Those of sixteen lanes whose bit is set, one after another. Writes 16 lanes at most.
TS_INLINE void StoreChosen(uint32_t mask, const VI (&a)[2], void* p) {
  TS_UNROLL for (uint32_t half = 0; half < 2; ++half) {
    const uint32_t eight = mask >> 8 * half & 255;
    const __m128i order = _mm_loadl_epi64((const __m128i*)(kLaneOrders.of + eight));
    StoreInt(p, _mm256_permutevar8x32_epi32(a[half], _mm256_cvtepu8_epi32(order)));
    p = (char*)p + 4 * __builtin_popcount(eight);
  }
}
// The same for four lanes of 64 bits.
struct PairOrders {
  uint32_t of[16][8];
  constexpr PairOrders() : of() {
    for (uint32_t mask = 0; mask < 16; ++mask) {
      for (uint32_t lane = 0, n = 0; lane < 4; ++lane) {
        if ((mask >> lane & 1) == 0) continue;
        of[mask][n++] = 2 * lane;
        of[mask][n++] = 2 * lane + 1;
      }
    }
  }
};
alignas(64) constexpr PairOrders kPairOrders;
// The addresses base + stride * bit of the bits that are set. Writes 16 at most.
TS_INLINE void StoreChosenRows(uint32_t mask, const uint8_t* base, uint32_t stride,
                               const uint8_t** p) {
  const VI first = _mm256_set1_epi64x((long long)base);
  TS_UNROLL for (uint32_t i = 0; i < 4; ++i) {
    const uint32_t four = mask >> 4 * i & 15;
    const VI tokens = AddInt64(_mm256_setr_epi64x(0, 1, 2, 3), _mm256_set1_epi64x(4 * i));
    const VI rows = AddInt64(first, _mm256_mul_epu32(tokens, SetInt((int)stride)));
    StoreInt(p, _mm256_permutevar8x32_epi32(rows, LoadInt(kPairOrders.of[four])));
    p += __builtin_popcount(four);
  }
}
// For each mask of eight words, the bytes that bring those of it to the front; the others are 0.
struct WordOrders {
  uint8_t of[256][16];
  constexpr WordOrders() : of() {
    for (uint32_t mask = 0; mask < 256; ++mask) {
      uint32_t n = 0;
      for (uint32_t word = 0; word < 8; ++word) {
        if ((mask >> word & 1) == 0) continue;
        of[mask][n++] = (uint8_t)(2 * word);
        of[mask][n++] = (uint8_t)(2 * word + 1);
      }
      while (n < 16) of[mask][n++] = 0x80;
    }
  }
};
alignas(64) constexpr WordOrders kWordOrders;

// ---- codes in planes (page/planes.h) ----

// Sixteen crumbs at p as bytes, in the order of channels.
TS_INLINE __m128i ExpandCrumbs(const uint8_t* p) {
  int32_t bits;
  __builtin_memcpy(&bits, p, 4);
  const __m128i shifted = _mm_srlv_epi32(_mm_set1_epi32(bits), _mm_setr_epi32(0, 2, 4, 6));
  return _mm_and_si128(shifted, _mm_set1_epi8(3));
}
// Groups of 16 channels whose codes are joined at once.
constexpr uint32_t kCodeGroups = 1;
// A token's codes less 128, as words in the order of channels. upper: its first bytes in the upper
// plane; crumbs and nibbles: of the same channels in its row of the lower one.
TS_INLINE void JoinCodes(const uint8_t* upper, const uint8_t* crumbs, const uint8_t* nibbles,
                         VI (&words)[1]) {
  const __m128i packed = _mm_loadl_epi64((const __m128i*)nibbles);
  const __m128i low =
      _mm_and_si128(_mm_unpacklo_epi64(packed, _mm_srli_epi16(packed, 4)), _mm_set1_epi8(15));
  const __m128i middle = _mm_slli_epi16(ExpandCrumbs(crumbs), 4);
  const __m128i code =
      _mm_or_si128(_mm_or_si128(_mm_slli_epi16(ExpandCrumbs(upper), 6), middle), low);
  words[0] = _mm256_cvtepi8_epi16(_mm_xor_si128(code, _mm_set1_epi8((char)0x80)));
}

// ---- memory ----

// How far ahead of its loads a walk over weights asks for memory: over the page borders at which
// hardware prefetchers stop, and about a panel's tail.
constexpr uint32_t kPrefetchBytes = 2560;

TS_INLINE void Prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }
template <uint32_t kBytes>
TS_INLINE void PrefetchRange(const uint8_t* p) {
  for (uint32_t i = 0; i < kBytes; i += 64) Prefetch(p + i);
}

// ---- square root, correctly rounded ----

TS_INLINE float Sqrt(float x) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }

// 2^n for integral lanes -126..127.
TS_INLINE VF PowerOfTwo(VI n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}

}  // namespace
}  // namespace tinyserve

#include "kernels/cpu/simd_math.inl"
