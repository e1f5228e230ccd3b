// Decode attention over pages of codes within ranges (page/ranges.h), by integer dots: nothing is
// decoded.
//
//   q.k  = sum_c q_c middle_c + sum_c (q_c step_c) (code - half)
//   p.v  = sum_t p_t middle_t + sum_t (p_t step_t) (code - half)   for each group of channels
//
// q_c step_c is coded with a scale of the head and block, p_t step_t with one of the head, block
// and group: an output depends on no other head, and on no other block. Sums of codes are exact.
// docs/kernels/attention.md has the error that this adds, the figures and what was tried.
#ifndef TINYSERVE_KERNELS_CPU_ATTENTION_RANGES_INL_
#define TINYSERVE_KERNELS_CPU_ATTENTION_RANGES_INL_

#include "kernels/cpu/attention_forms.inl"
#include "kernels/cpu/coding.inl"
#include "page/ranges.h"

namespace tinyserve {
namespace {

// Whether codes of kBits are multiplied as bytes. Without byte dots a pair sum of two products of
// eight bits each would leave 16 bits: such codes are widened to words, and what they meet has 15
// bits.
template <uint32_t kBits>
constexpr bool kDotsBytes = kHasByteDot || kBits == 4;

struct RangedBlock {
  const uint8_t* pages[kBlockUnits];
  const uint8_t* ranges[kBlockUnits];
  uint32_t count;   // of pages that exist
  uint32_t tokens;  // of the block
};

// ---- queries ----

constexpr float kWordTop = 32767;

// Words of a head's coded queries: zeros past the head size, to whole steps of their packing.
TS_INLINE uint32_t RangedQueryWords(uint32_t dim) { return RoundUp(dim, 2 * kWordLanes); }

// A head's queries, times the steps of each page of a block.
struct alignas(64) HeadQueries {
  // Words, then bytes where those are multiplied, in the order of channels.
  uint8_t codes[kBlockUnits][2 * kRangesHeadDimMax];
  // logit = sum of products with key codes * step + base
  alignas(16) float step[kBlockUnits];
  alignas(16) float base[kBlockUnits];
};

// Before sums over lanes, which are made of four vectors together.
template <uint32_t kHeads>
struct LaneSums {
  VI middle[kHeads][kBlockUnits];  // of queries times middles
  VI total[kHeads][kBlockUnits];   // of codes
  VI top[RoundUp(kHeads, 4)];      // largest magnitudes of a block's words
};

// Words of q * reach / 2^8, rounded.
template <uint32_t kHeads>
TS_INLINE void ScaleByReaches(const uint8_t* range, uint32_t channels, const int16_t* q,
                              uint32_t words, uint32_t u, HeadQueries* out,
                              LaneSums<kHeads>* sums) {
  const uint8_t* middles = range + sizeof(RangeScales);
  VI middle_sum[kHeads];
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) middle_sum[h] = ZeroInt();
  for (uint32_t c = 0; c < words; c += kWordLanes) {
    VI middle = ZeroInt(), reach = ZeroInt();
    if (c < channels) {
      middle = LoadWordsSigned(middles + c, channels - c);
      reach = ShiftLeftWords(LoadWordsUnsigned(middles + channels + c, channels - c), 7);
    }
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      const VI code = LoadInt(q + h * words + c);
      const VI scaled = MulHighWords(code, reach);
      middle_sum[h] = DotInt16(middle_sum[h], code, middle);
      sums->top[h] = MaxWords(sums->top[h], AbsWords(scaled));
      StoreInt(out[h].codes[u] + 2 * c, scaled);
    }
  }
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) sums->middle[h][u] = middle_sum[h];
}

TS_INLINE VI SumOfBytes(VI bytes) {
  if constexpr (kHasByteDot) return DotBytes(ZeroInt(), SetByte(1), bytes);
  return DotInt16(ZeroInt(), PairDot(SetByte(1), bytes), SetInt16(1));
}

// Words to bytes in place, times factor / 2^15; returns the sum of the bytes.
TS_INLINE VI WordsToBytes(uint8_t* codes, uint32_t words, VI factor) {
  VI total = ZeroInt();
  for (uint32_t c = 0; c < words; c += 2 * kWordLanes) {
    const VI low = MulHighWords(LoadInt(codes + 2 * c), factor);
    const VI high = MulHighWords(LoadInt(codes + 2 * c + kVectorBytes), factor);
    const VI bytes = PackWordsInOrder(low, high);
    StoreInt(codes + c, bytes);
    total = AddInt(total, SumOfBytes(bytes));
  }
  return total;
}
TS_INLINE VI SumOfWords(const uint8_t* codes, uint32_t words) {
  VI total = ZeroInt();
  for (uint32_t c = 0; c < words; c += kWordLanes) {
    total = DotInt16(total, LoadInt(codes + 2 * c), SetInt16(1));
  }
  return total;
}

// The larger of the two words of each lane, none of them negative.
TS_INLINE VF LargerWords(VI a) {
  return ToFloat(And(MaxWords(a, ShiftRight(a, 16)), SetInt(0xffff)));
}
// By head, the factor over 2^15 by which the largest word of a block becomes 127 in bytes, or stays
// what it is where it is less, and its inverse.
template <uint32_t kHeads>
TS_INLINE void ByteFactors(const LaneSums<kHeads>& sums, float* factors, float* inverses) {
  for (uint32_t h = 0; h < kHeads; h += 4) {
    const VF larger[4] = {LargerWords(sums.top[h]), LargerWords(sums.top[h + 1]),
                          LargerWords(sums.top[h + 2]), LargerWords(sums.top[h + 3])};
    const V4 most = _mm_div_ps(_mm_set1_ps(127.0f * 32768), FoldFour<MaxOp>(larger));
    const V4 factor = _mm_min_ps(_mm_floor_ps(most), _mm_set1_ps(kWordTop));
    _mm_store_ps(factors + h, factor);
    _mm_store_ps(inverses + h, _mm_div_ps(_mm_set1_ps(32768), factor));
  }
}

TS_INLINE V4 FoldToFloat(const VI (&a)[4]) {
  return _mm_cvtepi32_ps(FoldFourInt(a[0], a[1], a[2], a[3]));
}

// q: words [kHeads][words]; q_scale: what a word stands for, in logits of base 2.
template <uint32_t kHeads, uint32_t kBits>
TS_INLINE void ScaleForBlock(const RangedBlock& block, uint32_t channels, const int16_t* q,
                             uint32_t words, const float* q_scale, HeadQueries* out) {
  LaneSums<kHeads> sums;
  alignas(16) float middle_scale[kBlockUnits] = {}, reach_scale[kBlockUnits] = {};
  for (uint32_t h = 0; h < RoundUp(kHeads, 4); ++h) sums.top[h] = ZeroInt();
  for (uint32_t u = 0; u < block.count; ++u) {
    RangeScales scales;
    __builtin_memcpy(&scales, block.ranges[u], sizeof scales);
    middle_scale[u] = scales.key_middle;
    reach_scale[u] = scales.key_reach;
    ScaleByReaches<kHeads>(block.ranges[u], channels, q, words, u, out, &sums);
  }
  for (uint32_t u = block.count; u < kBlockUnits; ++u) {
    for (uint32_t h = 0; h < kHeads; ++h) sums.middle[h][u] = sums.total[h][u] = ZeroInt();
  }
  alignas(16) float factors[RoundUp(kHeads, 4)], inverses[RoundUp(kHeads, 4)];
  if constexpr (kDotsBytes<kBits>) ByteFactors<kHeads>(sums, factors, inverses);
  const float half = HalfRange(kBits);
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
    float unit = q_scale[h] * (256 / half);
    if constexpr (kDotsBytes<kBits>) {
      const VI factor = SetInt16((int16_t)factors[h]);
      unit *= inverses[h];
      for (uint32_t u = 0; u < block.count; ++u) {
        sums.total[h][u] = WordsToBytes(out[h].codes[u], words, factor);
      }
    } else {
      for (uint32_t u = 0; u < block.count; ++u) {
        sums.total[h][u] = SumOfWords(out[h].codes[u], words);
      }
    }
    const V4 step = _mm_mul_ps(_mm_load_ps(reach_scale), _mm_set1_ps(unit));
    const V4 middle = _mm_mul_ps(FoldToFloat(sums.middle[h]),
                                 _mm_mul_ps(_mm_load_ps(middle_scale), _mm_set1_ps(q_scale[h])));
    const V4 total = _mm_mul_ps(FoldToFloat(sums.total[h]), _mm_set1_ps(half));
    _mm_store_ps(out[h].step, step);
    _mm_store_ps(out[h].base, _mm_fnmadd_ps(step, total, middle));
  }
}

// ---- keys ----

// sums += codes of four channels times the coded queries at q, the first of them.
template <uint32_t kHeads, uint32_t kBits, uint32_t kSums>
TS_INLINE void AddKeys(VI codes, const uint8_t* const (&q)[kHeads], uint32_t channel, uint32_t s,
                       VI (&sums)[kHeads][kSums]) {
  if constexpr (kHasByteDot) {
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      sums[h][s] = DotBytesAt(sums[h][s], codes, q[h] + channel);
      Pin(sums[h][s]);
    }
  } else if constexpr (kBits == 4) {
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      sums[h][s] = AddInt16(sums[h][s], PairDot(codes, BroadcastInt(q[h] + channel)));
      Pin(sums[h][s]);
    }
  } else {
    const VI low = UnsignedBytes<0, 1>(codes), high = UnsignedBytes<2, 3>(codes);
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      sums[h][s] = DotInt16(sums[h][s], low, BroadcastInt(q[h] + 2 * channel));
      sums[h][s] = DotInt16(sums[h][s], high, BroadcastInt(q[h] + 2 * channel + 4));
      Pin(sums[h][s]);
    }
  }
}

// Sums over channels of a page's key codes times the coded queries, by token.
template <uint32_t kHeads, uint32_t kBits>
TS_INLINE void SumKeys(const uint8_t* k, uint32_t channels, const uint8_t* const (&q)[kHeads],
                       LinesAhead& ahead, bool first_pass, VI (&sums)[kHeads][kTokenVectors]) {
  // Where a vector holds all tokens, there are registers for a second sum: a dot waits for the one
  // before it.
  constexpr uint32_t kChains = 2;
  constexpr uint32_t kLines = kBits == 8 ? 4 : 2;  // of 16 channels
  // 16-bit sums of four products of 15 * 127 each two are widened after 16 channels.
  constexpr bool kWidens = !kDotsBytes<8> && kBits == 4;
  static_assert(!kWidens || 4 * 2 * 15 * 127 < 1 << 15);
  VI chains[kHeads][kChains], wide[kHeads][kChains];
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
    TS_UNROLL for (uint32_t s = 0; s < kChains; ++s) chains[h][s] = wide[h][s] = ZeroInt();
  }
  for (uint32_t c = 0; c < channels; c += 16, k += kLines * kLineBytes) {
    PrefetchAhead<kLines * kLineBytes>(ahead, first_pass);
    TS_UNROLL for (uint32_t line = 0; line < kLines; ++line) {
      TS_UNROLL for (uint32_t v = 0; v < kTokenVectors; ++v) {
        const VI packed = LoadInt(k + line * kLineBytes + v * kVectorBytes);
        const uint32_t s = kTokenVectors == 1 ? line % kChains : v;
        if constexpr (kBits == 8) {
          AddKeys<kHeads, kBits>(packed, q, c + 4 * line, s, chains);
        } else {
          const VI low = SetByte(15);
          AddKeys<kHeads, kBits>(And(packed, low), q, c + 8 * line, s, chains);
          AddKeys<kHeads, kBits>(And(ShiftRight(packed, 4), low), q, c + 8 * line + 4, s, chains);
        }
      }
    }
    if constexpr (kWidens) {
      TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
        TS_UNROLL for (uint32_t s = 0; s < kChains; ++s) {
          wide[h][s] = DotInt16(wide[h][s], chains[h][s], SetInt16(1));
          chains[h][s] = ZeroInt();
        }
      }
    }
  }
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
    const auto& of = kWidens ? wide[h] : chains[h];
    if constexpr (kTokenVectors == 1) {
      sums[h][0] = AddInt(of[0], of[1]);
    } else {
      TS_UNROLL for (uint32_t v = 0; v < kTokenVectors; ++v) sums[h][v] = of[v];
    }
  }
}

// Logits of a block, [kHeads][kBlockTokens]; those past its pages are left as they are.
template <uint32_t kHeads, uint32_t kBits>
void RangedLogits(const RangedBlock& block, const RangesLayout& at, const HeadQueries* q,
                  LinesAhead* ahead, bool first_pass, float* logits) {
  LinesAhead lines = *ahead;
  for (uint32_t u = 0; u < block.count; ++u) {
    const uint8_t* codes[kHeads];
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) codes[h] = q[h].codes[u];
    VI sums[kHeads][kTokenVectors];
    SumKeys<kHeads, kBits>(block.pages[u] + at.k_at, at.channels, codes, lines, first_pass, sums);
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      const VF step = Set(q[h].step[u]), base = Set(q[h].base[u]);
      TS_UNROLL for (uint32_t v = 0; v < kTokenVectors; ++v) {
        Store(logits + h * kBlockTokens + u * kUnitTokens + v * kLanes,
              Fma(ToFloat(sums[h][v]), step, base));
      }
    }
  }
  *ahead = lines;
}

// ---- values ----

// The weights of a block's tokens, times the steps of their values in a group of channels.
template <uint32_t kHeads>
struct ValueWeights {
  static constexpr uint32_t kRows = RoundUp(kHeads, 4);
  // Bytes, or words, in the order of tokens.
  alignas(64) uint8_t codes[kHeads][kRangeGroupsMax][2 * kBlockTokens];
  // output = sum of products with value codes * step + base
  alignas(16) float step[kRangeGroupsMax][kRows];
  alignas(16) float base[kRangeGroupsMax][kRows];
};

// Steps and middles of the values of a block's tokens in one group.
constexpr uint32_t kBlockVectors = kBlockTokens / kLanes;
struct BlockRanges {
  VF step[kBlockVectors], middle[kBlockVectors];
};
template <uint32_t kBits>
TS_INLINE void LoadRanges(const RangedBlock& block, const RangesLayout& at, uint32_t group,
                          BlockRanges* out) {
  for (uint32_t u = 0; u < kBlockUnits; ++u) {
    if (u >= block.count) {
      TS_UNROLL for (uint32_t v = 0; v < kTokenVectors; ++v) {
        out->step[u * kTokenVectors + v] = out->middle[u * kTokenVectors + v] = Zero();
      }
      continue;
    }
    RangeScales scales;
    __builtin_memcpy(&scales, block.ranges[u], sizeof scales);
    const VF step = Set(scales.value_reach * (1 / HalfRange(kBits)));
    const VF middle = Set(scales.value_middle);
    const uint8_t* codes = block.pages[u] + group * kRangesTokens;
    TS_UNROLL for (uint32_t v = 0; v < kTokenVectors; ++v) {
      const VI reaches = LoadBytesUnsigned(codes + at.v_reach_at + v * kLanes);
      const VI middles = LoadBytesSigned((const int8_t*)codes + at.v_middle_at + v * kLanes);
      out->step[u * kTokenVectors + v] = Mul(ToFloat(reaches), step);
      out->middle[u * kTokenVectors + v] = Mul(ToFloat(middles), middle);
    }
  }
}

// Codes the weights of a block, [kHeads][kBlockTokens], for one group.
template <uint32_t kHeads, uint32_t kBits>
TS_INLINE void CodeBlockWeights(const BlockRanges& ranges, const float* weights, uint32_t group,
                                ValueWeights<kHeads>* out) {
  constexpr uint32_t kRows = ValueWeights<kHeads>::kRows;
  constexpr float kTop = kDotsBytes<kBits> ? 255 : kWordTop;
  // What the codes of values lack of code - half.
  constexpr float kOffset = (kBits == 8 ? 128.0f : 0.0f) - HalfRange(kBits);
  VF scaled[kHeads][kBlockVectors], top[kRows], middle[kRows];
  TS_UNROLL for (uint32_t h = 0; h < kRows; ++h) top[h] = middle[h] = Zero();
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
    TS_UNROLL for (uint32_t i = 0; i < kBlockVectors; ++i) {
      const VF weight = Load(weights + h * kBlockTokens + i * kLanes);
      scaled[h][i] = Mul(weight, ranges.step[i]);
      middle[h] = Fma(weight, ranges.middle[i], middle[h]);
      top[h] = Max(top[h], scaled[h][i]);
    }
  }
  alignas(16) float to_codes[kRows];
  TS_UNROLL for (uint32_t h = 0; h < kRows; h += 4) {
    const VF four[4] = {top[h], top[h + 1], top[h + 2], top[h + 3]};
    const V4 highest = FoldFour<MaxOp>(four);
    const V4 present = _mm_cmpge_ps(highest, _mm_set1_ps(kTinyTop));
    _mm_store_ps(to_codes + h, _mm_and_ps(present, _mm_div_ps(_mm_set1_ps(kTop), highest)));
    _mm_store_ps(out->step[group] + h, _mm_mul_ps(highest, _mm_set1_ps(1 / kTop)));
  }
  VI total[kRows];
  TS_UNROLL for (uint32_t h = 0; h < kRows; ++h) total[h] = ZeroInt();
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
    uint8_t* codes = out->codes[h][group];
    const VF factor = Set(to_codes[h]);
    TS_UNROLL for (uint32_t i = 0; i < kBlockVectors; i += 4) {
      VI four[4];
      TS_UNROLL for (uint32_t j = 0; j < 4; ++j) {
        four[j] = ToInt(Mul(scaled[h][i + j], factor));
        total[h] = AddInt(total[h], four[j]);
        if (!kDotsBytes<kBits>) StoreWords(codes + 2 * (i + j) * kLanes, four[j]);
      }
      if (kDotsBytes<kBits>) StoreInt(codes + i * kLanes, PackFourInts(four));
    }
  }
  TS_UNROLL for (uint32_t h = 0; h < kRows; h += 4) {
    const VF four[4] = {middle[h], middle[h + 1], middle[h + 2], middle[h + 3]};
    const V4 totals =
        _mm_cvtepi32_ps(FoldFourInt(total[h], total[h + 1], total[h + 2], total[h + 3]));
    const V4 offset = _mm_mul_ps(_mm_load_ps(out->step[group] + h), _mm_set1_ps(kOffset));
    _mm_store_ps(out->base[group] + h, _mm_fmadd_ps(totals, offset, FoldFour<SumOp>(four)));
  }
}

// sums += value codes of four tokens times their weights, from token t of the block on. weights: of
// the group of vector i at weights[h][i / kShare].
template <uint32_t kHeads, uint32_t kBits, uint32_t kVectors, uint32_t kGroups>
TS_INLINE void AddValues(const VI (&codes)[kVectors],
                         const uint8_t* const (&weights)[kHeads][kGroups], uint32_t t,
                         VI (&sums)[kHeads][kVectors]) {
  constexpr uint32_t kShare = kVectors / kGroups;
  if constexpr (!kDotsBytes<kBits>) {
    VI low[kVectors], high[kVectors];
    TS_UNROLL for (uint32_t i = 0; i < kVectors; ++i) {
      low[i] = SignedBytes<0, 1>(codes[i]);
      high[i] = SignedBytes<2, 3>(codes[i]);
    }
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      TS_UNROLL for (uint32_t i = 0; i < kVectors; ++i) {
        const uint8_t* weight = weights[h][i / kShare] + 2 * t;
        sums[h][i] = DotInt16(sums[h][i], low[i], BroadcastInt(weight));
        sums[h][i] = DotInt16(sums[h][i], high[i], BroadcastInt(weight + 4));
        Pin(sums[h][i]);
      }
    }
    return;
  }
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
    TS_UNROLL for (uint32_t i = 0; i < kVectors; ++i) {
      const VI weight = BroadcastInt(weights[h][i / kShare] + t);
      if constexpr (kHasByteDot) {
        sums[h][i] = DotBytes(sums[h][i], weight, codes[i]);
      } else {
        sums[h][i] = AddInt16(sums[h][i], PairDot(weight, codes[i]));
      }
      Pin(sums[h][i]);
    }
  }
}

// o = o * rescale + weights * values for kVectors vectors of channels from `channel` on.
template <uint32_t kHeads, uint32_t kBits, uint32_t kVectors>
TS_INLINE void RangedColumns(const RangedBlock& block, const RangesLayout& at, uint32_t channel,
                             const ValueWeights<kHeads>& weights, const float* rescale,
                             LinesAhead& ahead, bool first_pass, float* o) {
  constexpr uint32_t kGroups =
      kVectors * kLanes > kRangeChannels ? kVectors * kLanes / kRangeChannels : 1;
  constexpr uint32_t kRows = kBits == 8 ? 4 : 2;  // of four or eight tokens
  // 16-bit sums of a page's products, 255 * 15 each at most, are widened.
  constexpr bool kWidens = !kDotsBytes<8> && kBits == 4;
  static_assert(!kWidens || 2 * kRows * 2 * 255 * 15 < 1 << 15);
  const uint32_t group = channel / kRangeChannels;
  VI sums[kHeads][kVectors];
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
    TS_UNROLL for (uint32_t i = 0; i < kVectors; ++i) sums[h][i] = ZeroInt();
  }
  for (uint32_t u = 0; u < block.count; ++u) {
    const uint8_t* v = block.pages[u] + at.v_at + 4 * channel;
    const uint8_t* of_page[kHeads][kGroups];
    VI narrow[kHeads][kVectors];
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      TS_UNROLL for (uint32_t g = 0; g < kGroups; ++g) {
        of_page[h][g] = weights.codes[h][group + g] + u * kUnitTokens * (kDotsBytes<kBits> ? 1 : 2);
      }
      TS_UNROLL for (uint32_t i = 0; i < kVectors; ++i) narrow[h][i] = ZeroInt();
    }
    auto& page_sums = kWidens ? narrow : sums;
    TS_UNROLL for (uint32_t row = 0; row < kRows; ++row, v += 4 * at.channels) {
      VI codes[kVectors], upper[kVectors];
      PrefetchAhead<kVectors * kVectorBytes>(ahead, first_pass);
      TS_UNROLL for (uint32_t i = 0; i < kVectors; ++i) {
        codes[i] = LoadInt(v + i * kVectorBytes);
        if constexpr (kBits == 4) {
          upper[i] = And(ShiftRight(codes[i], 4), SetByte(15));
          codes[i] = And(codes[i], SetByte(15));
        }
      }
      const uint32_t t = row * kUnitTokens / kRows;
      AddValues<kHeads, kBits, kVectors, kGroups>(codes, of_page, t, page_sums);
      if constexpr (kBits == 4) {
        AddValues<kHeads, kBits, kVectors, kGroups>(upper, of_page, t + 4, page_sums);
      }
    }
    if constexpr (kWidens) {
      TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
        TS_UNROLL for (uint32_t i = 0; i < kVectors; ++i) {
          sums[h][i] = DotInt16(sums[h][i], narrow[h][i], SetInt16(1));
        }
      }
    }
  }
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
    TS_UNROLL for (uint32_t i = 0; i < kVectors; ++i) {
      const uint32_t g = group + i / (kVectors / kGroups);
      float* to = o + h * at.channels + channel + i * kLanes;
      const VF before = Fma(Load(to), Set(rescale[h]), Set(weights.base[g][h]));
      Store(to, Fma(ToFloat(sums[h][i]), Set(weights.step[g][h]), before));
    }
  }
}

// Vectors of channels that a pass over kHeads heads takes at a time: what the registers hold.
template <uint32_t kHeads, uint32_t kBits>
constexpr uint32_t kRangedVectors = (kLanes == 16 || kHeads <= 3 ? 4 : 2) /
                                    (kBits == 4 && !kHasByteDot ? 2 : 1);

// Codes the weights of a block, [kHeads][kBlockTokens], for all groups.
template <uint32_t kHeads, uint32_t kBits>
TS_INLINE void CodeAllWeights(const RangedBlock& block, const RangesLayout& at,
                              const float* weights, ValueWeights<kHeads>* out) {
  for (uint32_t group = 0; group < at.groups; ++group) {
    BlockRanges ranges;
    LoadRanges<kBits>(block, at, group, &ranges);
    CodeBlockWeights<kHeads, kBits>(ranges, weights, group, out);
  }
}

// o = o * rescale + weights * values, [kHeads][channels].
template <uint32_t kHeads, uint32_t kBits>
TS_INLINE void RangedValues(const RangedBlock& block, const RangesLayout& at,
                            const ValueWeights<kHeads>& weights, const float* rescale,
                            LinesAhead* ahead, bool first_pass, float* o) {
  constexpr uint32_t kVectors = kRangedVectors<kHeads, kBits>;
  LinesAhead lines = *ahead;
  // The lines of the pages that are neither keys nor values.
  for (uint32_t u = 0; u < kBlockUnits; ++u) PrefetchAhead<4 * kLineBytes>(lines, first_pass);
  uint32_t c = 0;
  for (; c + kVectors * kLanes <= at.channels; c += kVectors * kLanes) {
    RangedColumns<kHeads, kBits, kVectors>(block, at, c, weights, rescale, lines, first_pass, o);
  }
  for (; c < at.channels; c += kLanes) {
    RangedColumns<kHeads, kBits, 1>(block, at, c, weights, rescale, lines, first_pass, o);
  }
  *ahead = lines;
}

}  // namespace
}  // namespace tinyserve

#endif  // TINYSERVE_KERNELS_CPU_ATTENTION_RANGES_INL_
