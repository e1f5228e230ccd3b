// Pages of codes within ranges (page/ranges.h): coding of full pages, the same bytes as the plain
// loops of kernels/ref/ranges.cc, and decoding to f32.
#ifndef TINYSERVE_KERNELS_CPU_RANGES_INL_
#define TINYSERVE_KERNELS_CPU_RANGES_INL_

#include "kernels/cpu/coding.inl"
#include "kernels/cpu/fold.inl"
#include "kernels/cpu/fours.inl"
#include "page/ranges.h"

namespace tinyserve {
namespace {

constexpr uint32_t kValueRangesMax = kRangeGroupsMax * kRangesTokens;

// The ranges of a page's keys, or of its values, on their way to codes.
struct RangeScratch {
  alignas(64) float low[kRangesHeadDimMax];   // then the middles as they are decoded
  alignas(64) float high[kRangesHeadDimMax];  // then the codes of a unit
};
static_assert(kValueRangesMax <= kRangesHeadDimMax);

// Codes of up to eight bits, less 128.
TS_INLINE VI RangeCodes(VF x, VF middle, VF to_codes, uint32_t bits) {
  const VI code = ToInt(Fma(Sub(x, middle), to_codes, Set(HalfRange(bits))));
  return SubInt(ClampCodes(code, 0, (1 << bits) - 1), SetInt(128));
}

// Codes `count` ranges, a multiple of 16; leaves in `s` what their numbers' codes need.
TS_INLINE void CodeRanges(uint32_t count, uint32_t bits, uint8_t* middle, uint8_t* reach,
                          float* middle_scale, float* reach_scale, RangeScratch& s) {
  VF highest = Zero();
  for (uint32_t i = 0; i < count; i += kLanes) {
    const VF x = Mul(Add(Load(s.low + i), Load(s.high + i)), Set(0.5f));
    highest = Max(highest, Abs(x));
  }
  float top = MaxLanes(highest);
  const float to_middle = CodesPerUnit(top, 127);
  *middle_scale = to_middle == 0 ? 0 : top * (1.0f / 127.0f);
  highest = Zero();
  for (uint32_t i = 0; i < count; i += kLanes) {
    const VF low = Load(s.low + i), high = Load(s.high + i);
    const VI code = ToInt(Mul(Mul(Add(low, high), Set(0.5f)), Set(to_middle)));
    StoreBytes((int8_t*)middle + i, code);
    const VF at = Mul(ToFloat(code), Set(*middle_scale));
    const VF x = Max(Sub(high, at), Sub(at, low));
    highest = Max(highest, x);
    Store(s.low + i, at);
    Store(s.high + i, x);
  }
  top = MaxLanes(highest);
  const float to_reach = CodesPerUnit(top, 255);
  *reach_scale = to_reach == 0 ? 0 : top * (1.0f / 255.0f);
  for (uint32_t i = 0; i < count; i += 4) {
    const V4 codes = StoreCodesUp(_mm_load_ps(s.high + i), to_reach, reach + i);
    const V4 at = _mm_mul_ps(codes, _mm_set1_ps(*reach_scale));
    const V4 present = _mm_cmpneq_ps(at, _mm_setzero_ps());
    _mm_store_ps(s.high + i, _mm_and_ps(present, _mm_div_ps(_mm_set1_ps(HalfRange(bits)), at)));
  }
}

// The codes less 128 of four rows of sixteen numbers, as they lie in a page of 8-bit codes.
struct FourRows {
  __m128i bytes[4];
};
// Stores the codes of a unit: one FourRows of 8 bits, or two, of which the second is the upper
// halves of the first.
TS_INLINE void StoreFours(const FourRows& rows, int8_t flip, uint8_t* p) {
  __m128i out[4];
  JoinFours(rows.bytes, out);
  TS_UNROLL for (uint32_t n = 0; n < 4; ++n) {
    _mm_store_si128((__m128i*)p + n, _mm_xor_si128(out[n], _mm_set1_epi8(flip)));
  }
}
TS_INLINE void StoreNibbles(const FourRows& lower, const FourRows& upper, uint8_t* p) {
  FourRows both;
  const __m128i low = _mm_set1_epi8(15);
  TS_UNROLL for (uint32_t j = 0; j < 4; ++j) {
    both.bytes[j] = _mm_or_si128(_mm_and_si128(lower.bytes[j], low),
                                 _mm_slli_epi16(_mm_and_si128(upper.bytes[j], low), 4));
  }
  StoreFours(both, 0, p);
}

template <class Page>
TS_INLINE void SealRangeKeys(const typename Page::Elem* k, uint32_t dim, const RangesLayout& at,
                             uint8_t* page, uint8_t* codes, RangeScales* scales, RangeScratch& s) {
  const auto load = [&](uint32_t c, uint32_t t) __attribute__((always_inline)) {
    const uint64_t offset = (uint64_t)Smaller(c, dim - 1) * kRangesTokens + t;
    return c < dim ? ClampFinite(Page::LoadLanes(k + offset)) : Zero();
  };
  for (uint32_t c = 0; c < at.channels; c += 4) {
    VF low[4], high[4];
    TS_UNROLL for (uint32_t i = 0; i < 4; ++i) {
      low[i] = high[i] = load(c + i, 0);
      for (uint32_t t = kLanes; t < kRangesTokens; t += kLanes) {
        low[i] = Min(low[i], load(c + i, t));
        high[i] = Max(high[i], load(c + i, t));
      }
    }
    _mm_store_ps(s.low + c, FoldFour<MinOp>(low));
    _mm_store_ps(s.high + c, FoldFour<MaxOp>(high));
  }
  CodeRanges(at.channels, at.key_bits, codes, codes + at.channels, &scales->key_middle,
             &scales->key_reach, s);
  const auto four = [&](uint32_t c) __attribute__((always_inline)) {
    FourRows rows;
    TS_UNROLL for (uint32_t i = 0; i < 4; ++i) {
      alignas(16) int8_t bytes[kRangesTokens];
      for (uint32_t t = 0; t < kRangesTokens; t += kLanes) {
        StoreBytes(bytes + t,
                   RangeCodes(load(c + i, t), Set(s.low[c + i]), Set(s.high[c + i]), at.key_bits));
      }
      rows.bytes[i] = _mm_load_si128((const __m128i*)bytes);
    }
    return rows;
  };
  uint8_t* out = page + at.k_at;
  if (at.key_bits == 8) {
    for (uint32_t c = 0; c < at.channels; c += 4, out += 64) StoreFours(four(c), -128, out);
  } else {
    for (uint32_t c = 0; c < at.channels; c += 8, out += 64) {
      StoreNibbles(four(c), four(c + 4), out);
    }
  }
}

template <class Page>
TS_INLINE void SealRangeValues(const typename Page::Elem* v, uint32_t dim, const RangesLayout& at,
                               uint8_t* page, RangeScales* scales, RangeScratch& s) {
  const uint32_t v_stride = RoundUp(dim, kLanes);
  const auto load = [&](uint32_t t, uint32_t c) __attribute__((always_inline)) {
    return c < v_stride ? ClampFinite(Page::LoadLanes(v + (uint64_t)t * v_stride + c)) : Zero();
  };
  for (uint32_t group = 0; group < at.groups; ++group) {
    const uint32_t end = Smaller(dim, (group + 1) * kRangeChannels);
    for (uint32_t t = 0; t < kRangesTokens; ++t) {
      VF low = Set(__builtin_inff()), high = Set(-__builtin_inff());
      for (uint32_t c = group * kRangeChannels; c < end; c += kLanes) {
        const uint32_t n = Smaller(kLanes, end - c);
        low = Min(low, SelectFirst(n, load(t, c), low));
        high = Max(high, SelectFirst(n, load(t, c), high));
      }
      s.low[group * kRangesTokens + t] = -MaxLanes(Sub(Zero(), low));
      s.high[group * kRangesTokens + t] = MaxLanes(high);
    }
  }
  CodeRanges(at.groups * kRangesTokens, at.value_bits, page + at.v_middle_at, page + at.v_reach_at,
             &scales->value_middle, &scales->value_reach, s);
  const auto four = [&](uint32_t t, uint32_t c) __attribute__((always_inline)) {
    const uint32_t group = Smaller(c / kRangeChannels, at.groups - 1) * kRangesTokens;
    FourRows rows;
    TS_UNROLL for (uint32_t i = 0; i < 4; ++i) {
      alignas(16) int8_t bytes[16];
      const VF middle = Set(s.low[group + t + i]), to_codes = Set(s.high[group + t + i]);
      for (uint32_t b = 0; b < 16; b += kLanes) {
        StoreBytes(bytes + b, RangeCodes(load(t + i, c + b), middle, to_codes, at.value_bits));
      }
      rows.bytes[i] = _mm_load_si128((const __m128i*)bytes);
    }
    return rows;
  };
  uint8_t* out = page + at.v_at;
  for (uint32_t t = 0; t < kRangesTokens; t += at.value_bits == 8 ? 4 : 8) {
    for (uint32_t c = 0; c < at.channels; c += 16, out += 64) {
      if (at.value_bits == 8) {
        StoreFours(four(t, c), 0, out);
      } else {
        StoreNibbles(four(t, c), four(t + 4, c), out);
      }
    }
  }
}

template <class Page>
void SealRanges(const SealArgs& args) {
  using Elem = typename Page::Elem;
  const uint32_t dim = args.shape.head_dim;
  const RangesLayout at = RangesLayoutOf(args.shape.type, dim);
  const uint8_t* open = PageAt(args.open_slab, args.open_page);
  uint8_t* page = PageAt(args.slab, args.page);
  uint8_t* range = PageAt(args.records, args.page) + args.layout.spread_at;
  // Padding is zeros, so that equal tokens make equal bytes.
  for (uint32_t i = at.v_middle_at; i < at.page_bytes; i += 16) {
    _mm_store_si128((__m128i*)(page + i), _mm_setzero_si128());
  }
  RangeScales scales;
  RangeScratch s;
  SealRangeKeys<Page>((const Elem*)open, dim, at, page, range + sizeof scales, &scales, s);
  SealRangeValues<Page>((const Elem*)(open + args.open_slab.v_offset), dim, at, page, &scales, s);
  __builtin_memcpy(range, &scales, sizeof scales);
}

// ---- decoding ----

// The bytes at p, [16][4], by member.
TS_INLINE FourRows LoadFours(const uint8_t* p, int8_t flip) {
  __m128i in[4];
  TS_UNROLL for (uint32_t n = 0; n < 4; ++n) {
    in[n] = _mm_xor_si128(_mm_load_si128((const __m128i*)p + n), _mm_set1_epi8(flip));
  }
  FourRows rows;
  SplitFours(in, rows.bytes);
  return rows;
}
// The halves of bytes, lower or upper, less 128.
TS_INLINE FourRows HalvesOf(const FourRows& rows, int shift) {
  FourRows out;
  TS_UNROLL for (uint32_t j = 0; j < 4; ++j) {
    const __m128i code = _mm_and_si128(_mm_srli_epi16(rows.bytes[j], shift), _mm_set1_epi8(15));
    out.bytes[j] = _mm_xor_si128(code, _mm_set1_epi8((char)0x80));
  }
  return out;
}

// Sixteen codes less 128 of one range to numbers; out has room for n of them.
TS_INLINE void DecodeRow(__m128i codes, float middle, float step, float half, float* out) {
  alignas(16) int8_t bytes[16];
  _mm_store_si128((__m128i*)bytes, codes);
  TS_UNROLL for (uint32_t i = 0; i < 16; i += kLanes) {
    const VF code = Sub(ToFloat(LoadBytesSigned(bytes + i)), Set(half - 128.0f));
    Store(out + i, Fma(code, Set(step), Set(middle)));
  }
}

TS_INLINE void UnpackRangeKeys(const RangesLayout& at, const uint8_t* page, const uint8_t* codes,
                               const RangeScales& scales, uint32_t dim, float* k) {
  const float half = HalfRange(at.key_bits);
  const auto store = [&](uint32_t first, const FourRows& rows) __attribute__((always_inline)) {
    for (uint32_t i = 0; i < 4 && first + i < dim; ++i) {
      const uint32_t c = first + i;
      const float middle = (float)(int8_t)codes[c] * scales.key_middle;
      const float step = (float)codes[at.channels + c] * scales.key_reach * (1 / half);
      DecodeRow(rows.bytes[i], middle, step, half, k + c * kRangesTokens);
    }
  };
  const uint8_t* in = page + at.k_at;
  if (at.key_bits == 8) {
    for (uint32_t c = 0; c < at.channels; c += 4, in += 64) store(c, LoadFours(in, -128));
    return;
  }
  for (uint32_t c = 0; c < at.channels; c += 8, in += 64) {
    const FourRows rows = LoadFours(in, 0);
    store(c, HalvesOf(rows, 0));
    store(c + 4, HalvesOf(rows, 4));
  }
}

TS_INLINE void UnpackRangeValues(const RangesLayout& at, const uint8_t* page,
                                 const RangeScales& scales, uint32_t dim, float* v) {
  const uint32_t v_stride = RoundUp(dim, kLanes);
  const float half = HalfRange(at.value_bits);
  const auto store = [&](uint32_t t, uint32_t c, const FourRows& rows)
      __attribute__((always_inline)) {
    const uint32_t group = Smaller(c / kRangeChannels, at.groups - 1) * kRangesTokens;
    TS_UNROLL for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t range = group + t + i;
      const float middle = (float)(int8_t)page[at.v_middle_at + range] * scales.value_middle;
      const float step = (float)page[at.v_reach_at + range] * scales.value_reach * (1 / half);
      alignas(64) float row[16];
      DecodeRow(rows.bytes[i], middle, step, half, row);
      // A row of floats may end in the middle of sixteen channels.
      for (uint32_t b = 0; b < 16 && c + b < v_stride; b += kLanes) {
        Store(v + (uint64_t)(t + i) * v_stride + c + b, Load(row + b));
      }
    }
  };
  const uint8_t* in = page + at.v_at;
  for (uint32_t t = 0; t < kRangesTokens; t += at.value_bits == 8 ? 4 : 8) {
    for (uint32_t c = 0; c < at.channels; c += 16, in += 64) {
      const FourRows rows = LoadFours(in, 0);
      if (at.value_bits == 8) {
        store(t, c, rows);
      } else {
        store(t, c, HalvesOf(rows, 0));
        store(t + 4, c, HalvesOf(rows, 4));
      }
    }
  }
}

// One page as a unit of f32: keys [channel][16], values [16][padded dim].
void UnpackRanges(const KvShape& shape, const uint8_t* page, const uint8_t* range, float* k,
                  float* v) {
  const RangesLayout at = RangesLayoutOf(shape.type, shape.head_dim);
  RangeScales scales;
  __builtin_memcpy(&scales, range, sizeof scales);
  UnpackRangeKeys(at, page, range + sizeof scales, scales, shape.head_dim, k);
  UnpackRangeValues(at, page, scales, shape.head_dim, v);
}

}  // namespace
}  // namespace tinyserve

#endif  // TINYSERVE_KERNELS_CPU_RANGES_INL_
