// Coded pages in two planes (page/planes.h): coding of full pages, the same bytes as the plain
// loops of kernels/ref/planes.cc, and decoding to f32 for kernels that read every key.
#ifndef TINYSERVE_KERNELS_CPU_PLANES_INL_
#define TINYSERVE_KERNELS_CPU_PLANES_INL_

#include "kernels/cpu/attention_ahead.inl"
#include "kernels/cpu/coding.inl"
#include "kernels/cpu/fold.inl"
#include "kernels/cpu/fours.inl"
#include "page/planes.h"

namespace tinyserve {
namespace {

// The numbers of one page on their way to codes.
struct SealScratch {
  alignas(64) float mean[kPlanesHeadDimMax];
  alignas(64) float distance[kPlanesHeadDimMax];
  alignas(64) float to_codes[kPlanesHeadDimMax];
  alignas(64) uint8_t codes[kPlanesHeadDimMax][kPlanesTokens];
};

// Largest magnitude of n floats, n a multiple of kLanes.
TS_INLINE float TopOf(const float* x, uint32_t n) {
  VF top = Zero();
  for (uint32_t i = 0; i < n; i += kLanes) top = Max(top, Abs(Load(x + i)));
  return MaxLanes(top);
}

// Means, largest distances and radius of the page's key channels, coded and as they are decoded.
template <class Page>
void SealSpread(const typename Page::Elem* k, uint32_t dim, const PlanesLayout& at, uint8_t* spread,
                uint8_t* page, SealScratch& s) {
  constexpr uint32_t kParts = kPlanesTokens / kLanes;
  const uint32_t channels = at.channels;
  const auto load = [&](uint32_t c, uint32_t part) __attribute__((always_inline)) {
    const uint64_t first = (uint64_t)Smaller(c, dim - 1) * kPlanesTokens + part * kLanes;
    return c < dim ? ClampFinite(Page::LoadLanes(k + first)) : Zero();
  };
  for (uint32_t c = 0; c < channels; c += 4) {
    VF sums[4];
    TS_UNROLL for (uint32_t i = 0; i < 4; ++i) {
      sums[i] = load(c + i, 0);
      if constexpr (kParts == 2) sums[i] = Add(sums[i], load(c + i, 1));
    }
    _mm_store_ps(s.mean + c, _mm_mul_ps(FoldFour<SumOp>(sums), _mm_set1_ps(1.0f / kPlanesTokens)));
  }
  SpreadScales scales;
  int8_t* mean_codes = (int8_t*)(spread + sizeof scales);
  uint8_t* distance_codes = page + at.distances_at;
  float top = TopOf(s.mean, channels);
  const float to_mean = CodesPerUnit(top, 127);
  scales.mean = to_mean == 0 ? 0 : top * (1.0f / 127.0f);
  for (uint32_t c = 0; c < channels; c += kLanes) {
    const VI codes = ToInt(Mul(Load(s.mean + c), Set(to_mean)));
    StoreBytes(mean_codes + c, codes);
    Store(s.mean + c, Mul(ToFloat(codes), Set(scales.mean)));
  }
  for (uint32_t c = 0; c < channels; c += 4) {
    VF far[4];
    TS_UNROLL for (uint32_t i = 0; i < 4; ++i) {
      const VF mean = Set(s.mean[c + i]);
      far[i] = Abs(Sub(load(c + i, 0), mean));
      if constexpr (kParts == 2) far[i] = Max(far[i], Abs(Sub(load(c + i, 1), mean)));
    }
    _mm_store_ps(s.distance + c, FoldFour<MaxOp>(far));
  }
  top = TopOf(s.distance, channels);
  const float to_distance = CodesPerUnit(top, 255);
  const float unit = to_distance == 0 ? 0 : top * (1.0f / 255.0f);
  V4 squares = _mm_setzero_ps();  // of codes: whole numbers below 2^24, in any order
  for (uint32_t c = 0; c < channels; c += 4) {
    const V4 codes = StoreCodesUp(_mm_load_ps(s.distance + c), to_distance, distance_codes + c);
    squares = _mm_fmadd_ps(codes, codes, squares);
    const V4 distance = _mm_mul_ps(codes, _mm_set1_ps(unit));
    const V4 present = _mm_cmpneq_ps(distance, _mm_setzero_ps());
    _mm_store_ps(s.to_codes + c,
                 _mm_and_ps(present, _mm_div_ps(_mm_set1_ps(kPlanesTop), distance)));
  }
  const V4 pairs = _mm_add_ps(squares, _mm_movehl_ps(squares, squares));
  const float sum = _mm_cvtss_f32(_mm_add_ss(pairs, _mm_movehdup_ps(pairs)));
  scales.radius = unit * Sqrt(sum / (float)dim);
  __builtin_memcpy(spread, &scales, sizeof scales);
  __builtin_memcpy(page + at.scales_at + offsetof(PlanesScales, distance), &unit, sizeof unit);
}

template <class Page>
TS_INLINE void CodeKeys(const typename Page::Elem* k, uint32_t dim, uint32_t channels,
                        SealScratch& s) {
  for (uint32_t c = 0; c < channels; ++c) {
    const VF mean = Set(s.mean[c]), to_codes = Set(s.to_codes[c]);
    for (uint32_t t = 0; t < kPlanesTokens; t += kLanes) {
      const VF x =
          c < dim ? ClampFinite(Page::LoadLanes(k + (uint64_t)c * kPlanesTokens + t)) : Zero();
      const VI codes = ToInt(Mul(Sub(x, mean), to_codes));
      StoreBytes((int8_t*)s.codes[c] + t, ClampCodes(codes, -128, 127));
    }
    const __m128i bytes = _mm_load_si128((const __m128i*)s.codes[c]);
    _mm_store_si128((__m128i*)s.codes[c], _mm_xor_si128(bytes, _mm_set1_epi8((char)0x80)));
  }
}

// Two bits of each of a group's 16 channels, from bit kFrom of their codes on, as in a plane:
// out[n] holds tokens 4n .. 4n + 3.
template <int kFrom>
TS_INLINE void PackCrumbs(const uint8_t (*codes)[kPlanesTokens], __m128i (&out)[4]) {
  __m128i bytes[4];
  TS_UNROLL for (uint32_t j = 0; j < 4; ++j) {
    bytes[j] = _mm_setzero_si128();
    TS_UNROLL for (uint32_t i = 0; i < 4; ++i) {
      const __m128i code = _mm_load_si128((const __m128i*)codes[4 * i + j]);
      const __m128i crumb = _mm_and_si128(_mm_srli_epi16(code, kFrom), _mm_set1_epi8(3));
      bytes[j] = _mm_or_si128(bytes[j], _mm_slli_epi16(crumb, 2 * (int)i));
    }
  }
  JoinFours(bytes, out);
}

// The lower four bits of a group's channels: out[n] holds 8 bytes of each of tokens 2n, 2n + 1.
TS_INLINE void PackNibbles(const uint8_t (*codes)[kPlanesTokens], __m128i (&out)[8]) {
  const __m128i low = _mm_set1_epi8(15);
  __m128i a[8], b[8];
  TS_UNROLL for (uint32_t j = 0; j < 8; ++j) {
    const __m128i first = _mm_load_si128((const __m128i*)codes[j]);
    const __m128i second = _mm_load_si128((const __m128i*)codes[8 + j]);
    a[j] = _mm_or_si128(_mm_and_si128(first, low), _mm_slli_epi16(_mm_and_si128(second, low), 4));
  }
  // Rows are j, columns tokens: transposed by merging neighbours of growing size.
  TS_UNROLL for (uint32_t j = 0; j < 4; ++j) {
    b[j] = _mm_unpacklo_epi8(a[2 * j], a[2 * j + 1]);
    b[4 + j] = _mm_unpackhi_epi8(a[2 * j], a[2 * j + 1]);
  }
  TS_UNROLL for (uint32_t half = 0; half < 2; ++half) {
    TS_UNROLL for (uint32_t j = 0; j < 2; ++j) {
      a[half * 4 + j] = _mm_unpacklo_epi16(b[half * 4 + 2 * j], b[half * 4 + 2 * j + 1]);
      a[half * 4 + 2 + j] = _mm_unpackhi_epi16(b[half * 4 + 2 * j], b[half * 4 + 2 * j + 1]);
    }
  }
  TS_UNROLL for (uint32_t quarter = 0; quarter < 4; ++quarter) {
    out[quarter * 2] = _mm_unpacklo_epi32(a[quarter * 2], a[quarter * 2 + 1]);
    out[quarter * 2 + 1] = _mm_unpackhi_epi32(a[quarter * 2], a[quarter * 2 + 1]);
  }
}

TS_INLINE void StoreKeyPlanes(const PlanesLayout& at, const SealScratch& s, uint8_t* page) {
  for (uint32_t group = 0; group < at.channels / 16; ++group) {
    const uint8_t(*codes)[kPlanesTokens] = s.codes + group * 16;
    __m128i upper[4], crumbs[4], nibbles[8];
    PackCrumbs<6>(codes, upper);
    PackCrumbs<4>(codes, crumbs);
    PackNibbles(codes, nibbles);
    TS_UNROLL for (uint32_t n = 0; n < 4; ++n) {
      _mm_store_si128((__m128i*)(page + at.upper_at + group * 64 + n * 16), upper[n]);
    }
    alignas(16) uint8_t rows[3][kPlanesTokens * 8];
    TS_UNROLL for (uint32_t n = 0; n < 8; ++n) _mm_store_si128((__m128i*)rows[0] + n, nibbles[n]);
    TS_UNROLL for (uint32_t n = 0; n < 4; ++n) _mm_store_si128((__m128i*)rows[2] + n, crumbs[n]);
    for (uint32_t t = 0; t < kPlanesTokens; ++t) {
      uint8_t* low = page + at.low_at + t * at.low_bytes;
      __builtin_memcpy(low + group * 8, rows[0] + t * 8, 8);
      __builtin_memcpy(low + at.channels / 2 + group * 4, rows[2] + t * 4, 4);
    }
  }
}

template <class Page>
void SealValues(const typename Page::Elem* v, uint32_t dim, const PlanesLayout& at, uint8_t* page,
                SealScratch& s) {
  const uint32_t v_stride = RoundUp(dim, kLanes);
  float* mean = s.mean;
  for (uint32_t c = 0; c < at.channels; c += kLanes) Store(mean + c, Zero());
  for (uint32_t t = 0; t < kPlanesTokens; ++t, v += v_stride) {
    const auto load = [&](uint32_t c) __attribute__((always_inline)) {
      return c < v_stride ? ClampFinite(Page::LoadLanes(v + c)) : Zero();
    };
    VF highest = Zero();
    for (uint32_t c = 0; c < at.channels; c += kLanes) highest = Max(highest, Abs(load(c)));
    const float top = MaxLanes(highest);
    float scale = top < kTinyTop ? 0.0f : top * (1.0f / 127.0f);
    uint32_t bits;
    __builtin_memcpy(&bits, &scale, 4);
    bits = (bits + 0xffffu) & 0xffff0000u;
    __builtin_memcpy(&scale, &bits, 4);
    const uint16_t half = (uint16_t)(bits >> 16);
    __builtin_memcpy(page + at.scales_at + offsetof(PlanesScales, values) + 2 * t, &half, 2);
    const VF to_codes = Set(scale == 0 ? 0.0f : 1.0f / scale);
    int8_t* row = (int8_t*)(page + at.v_at + t * at.channels);
    for (uint32_t c = 0; c < at.channels; c += kLanes) {
      const VI codes = ClampCodes(ToInt(Mul(load(c), to_codes)), -127, 127);
      StoreBytes(row + c, codes);
      Store(mean + c, Fma(ToFloat(codes), Set(scale), Load(mean + c)));
    }
  }
  for (uint32_t c = 0; c < at.channels; c += kLanes) {
    Store(mean + c, Mul(Load(mean + c), Set(1.0f / kPlanesTokens)));
  }
  const float top = TopOf(mean, at.channels), to_codes = CodesPerUnit(top, 127);
  const float scale = to_codes == 0 ? 0 : top * (1.0f / 127.0f);
  __builtin_memcpy(page + at.scales_at + offsetof(PlanesScales, mean_value), &scale, 4);
  for (uint32_t c = 0; c < at.channels; c += kLanes) {
    StoreBytes((int8_t*)page + at.mean_v_at + c, ToInt(Mul(Load(mean + c), Set(to_codes))));
  }
}

template <class Page>
void SealPlanes(const SealArgs& args) {
  using Elem = typename Page::Elem;
  const uint32_t dim = args.shape.head_dim;
  const PlanesLayout at = PlanesLayoutOf(dim);
  const uint8_t* open = PageAt(args.open_slab, args.open_page);
  uint8_t* page = PageAt(args.slab, args.page);
  const Elem* k = (const Elem*)open;
  SealScratch s;
  // Padding is zeros, so that equal tokens make equal bytes.
  for (uint32_t i = at.distances_at; i < at.low_at; i += 32) {
    _mm256_store_si256((__m256i*)(page + i), _mm256_setzero_si256());
  }
  SealSpread<Page>(k, dim, at, PageAt(args.records, args.page) + args.layout.spread_at, page, s);
  CodeKeys<Page>(k, dim, at.channels, s);
  StoreKeyPlanes(at, s, page);
  SealValues<Page>((const Elem*)(open + args.open_slab.v_offset), dim, at, page, s);
}

// ---- decoding ----

// The nibble bytes of a group, by byte: the 16 tokens of each.
TS_INLINE void SplitNibbles(const uint8_t* low, uint32_t stride, __m128i (&bytes)[8]) {
  __m128i a[8], b[8];
  TS_UNROLL for (uint32_t t = 0; t < 8; ++t) {
    const __m128i first = _mm_loadl_epi64((const __m128i*)(low + t * stride));
    const __m128i second = _mm_loadl_epi64((const __m128i*)(low + (t + 8) * stride));
    a[t] = _mm_unpacklo_epi8(first, second);  // tokens t, t + 8 of bytes 0 .. 7
  }
  TS_UNROLL for (uint32_t t = 0; t < 4; ++t) {
    b[t] = _mm_unpacklo_epi8(a[t], a[t + 4]);  // t, t + 4, t + 8, t + 12 of bytes 0 .. 3
    b[4 + t] = _mm_unpackhi_epi8(a[t], a[t + 4]);
  }
  TS_UNROLL for (uint32_t half = 0; half < 2; ++half) {
    TS_UNROLL for (uint32_t t = 0; t < 2; ++t) {
      a[half * 4 + t] = _mm_unpacklo_epi8(b[half * 4 + t], b[half * 4 + t + 2]);
      a[half * 4 + 2 + t] = _mm_unpackhi_epi8(b[half * 4 + t], b[half * 4 + t + 2]);
    }
  }
  TS_UNROLL for (uint32_t quarter = 0; quarter < 4; ++quarter) {
    bytes[quarter * 2] = _mm_unpacklo_epi8(a[quarter * 2], a[quarter * 2 + 1]);
    bytes[quarter * 2 + 1] = _mm_unpackhi_epi8(a[quarter * 2], a[quarter * 2 + 1]);
  }
}

constexpr uint32_t kVectorChannels = kVectorBytes / kPlanesTokens;  // 16 tokens of each

// A vector of the tokens of consecutive channels. Not through memory: a load waits for the stores
// that it spans.
TS_INLINE VI JoinChannels(const __m128i* bytes) {
#if defined(__AVX512F__)
  const __m512i low = _mm512_inserti32x4(_mm512_castsi128_si512(bytes[0]), bytes[1], 1);
  return _mm512_inserti32x4(_mm512_inserti32x4(low, bytes[2], 2), bytes[3], 3);
#else
  return _mm256_inserti128_si256(_mm256_castsi128_si256(bytes[0]), bytes[1], 1);
#endif
}

// The signed codes of a group's keys, [channel][16 tokens].
TS_INLINE void JoinKeyCodes(const PlanesLayout& at, const uint8_t* page, uint32_t group,
                            int8_t* codes) {
  const uint8_t* low = page + at.low_at;
  __m128i rows[4], upper[4], crumbs[4], nibbles[8];
  TS_UNROLL for (uint32_t n = 0; n < 4; ++n) {
    rows[n] = _mm_load_si128((const __m128i*)(page + at.upper_at + group * 64 + n * 16));
  }
  SplitFours(rows, upper);
  TS_UNROLL for (uint32_t n = 0; n < 4; ++n) {
    int32_t four[4];
    TS_UNROLL for (uint32_t t = 0; t < 4; ++t) {
      const uint8_t* row = low + (n * 4 + t) * at.low_bytes + at.channels / 2;
      __builtin_memcpy(&four[t], row + group * 4, 4);
    }
    rows[n] = _mm_setr_epi32(four[0], four[1], four[2], four[3]);
  }
  SplitFours(rows, crumbs);
  SplitNibbles(low + group * 8, at.low_bytes, nibbles);
  const VI three = SetByte(3), fifteen = SetByte(15);
  // Shifts cross bytes, but only into bits that the masks leave out.
  TS_UNROLL for (uint32_t c = 0; c < 16; c += kVectorChannels) {
    const int shift = (int)(c / 4 * 2);
    const VI top = And(ShiftRight(JoinChannels(upper + c % 4), shift), three);
    const VI middle = And(ShiftRight(JoinChannels(crumbs + c % 4), shift), three);
    VI nibble = JoinChannels(nibbles + c % 8);
    if (c >= 8) nibble = ShiftRight(nibble, 4);
    const VI code = Or(Or(ShiftLeft(top, 6), ShiftLeft(middle, 4)), And(nibble, fifteen));
    StoreInt(codes + c * kPlanesTokens, (VI)(code ^ SetByte((int8_t)0x80)));
  }
}

// A page's keys as f32, [channel][16].
TS_INLINE void UnpackKeys(const PlanesLayout& at, const uint8_t* page, const uint8_t* spread,
                          uint32_t dim, float* k) {
  SpreadScales scales;
  __builtin_memcpy(&scales, spread, sizeof scales);
  const int8_t* mean = (const int8_t*)(spread + sizeof scales);
  const uint8_t* distance = page + at.distances_at;
  float unit;
  __builtin_memcpy(&unit, page + at.scales_at + offsetof(PlanesScales, distance), sizeof unit);
  alignas(64) float scale[kPlanesHeadDimMax], offset[kPlanesHeadDimMax];
  for (uint32_t c = 0; c < at.channels; c += kLanes) {
    const VF far = Mul(ToFloat(LoadBytesUnsigned(distance + c)), Set(unit));
    Store(scale + c, Mul(far, Set(1.0f / kPlanesTop)));
    Store(offset + c, Mul(ToFloat(LoadBytesSigned(mean + c)), Set(scales.mean)));
  }
  for (uint32_t first = 0; first < dim; first += 16) {
    alignas(64) int8_t codes[16 * kPlanesTokens];
    JoinKeyCodes(at, page, first / 16, codes);
    const uint32_t end = Smaller(first + 16, dim);
    for (uint32_t c = first; c < end; ++c) {
      const int8_t* of_channel = codes + (c - first) * kPlanesTokens;
      TS_UNROLL for (uint32_t t = 0; t < kPlanesTokens; t += kLanes) {
        const VF code = ToFloat(LoadBytesSigned(of_channel + t));
        Store(k + c * kPlanesTokens + t, Fma(code, Set(scale[c]), Set(offset[c])));
      }
    }
  }
}

// One page as an unit of f32: keys [channel][16], values [16][padded dim].
void UnpackPlanes(const uint8_t* page, const uint8_t* spread, uint32_t dim, float* k, float* v) {
  const PlanesLayout at = PlanesLayoutOf(dim);
  UnpackKeys(at, page, spread, dim, k);
  const uint32_t v_stride = RoundUp(dim, kLanes);
  for (uint32_t t = 0; t < kPlanesTokens; ++t, v += v_stride) {
    uint16_t half;
    __builtin_memcpy(&half, page + at.scales_at + offsetof(PlanesScales, values) + 2 * t, 2);
    const uint32_t bits = (uint32_t)half << 16;
    float scale;
    __builtin_memcpy(&scale, &bits, 4);
    const int8_t* row = (const int8_t*)(page + at.v_at + t * at.channels);
    for (uint32_t c = 0; c < v_stride; c += kLanes) {
      Store(v + c, Mul(ToFloat(LoadBytesSigned(row + c)), Set(scale)));
    }
  }
}

}  // namespace
}  // namespace tinyserve

#endif  // TINYSERVE_KERNELS_CPU_PLANES_INL_
