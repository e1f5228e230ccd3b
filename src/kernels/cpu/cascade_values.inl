// The cascade's last two phases: exact logits of the tokens that are read in full, and the values.
#include "kernels/cpu/cascade_call.inl"

namespace tinyserve {
namespace {

// ---- 4: exact logits ----

// Sixteen crumbs at p as bytes, in the order of channels.
TS_INLINE __m128i ExpandCrumbs(const uint8_t* p) {
  int32_t bits;
  __builtin_memcpy(&bits, p, 4);
  const __m128i shifted = _mm_srlv_epi32(_mm_set1_epi32(bits), _mm_setr_epi32(0, 2, 4, 6));
  return _mm_and_si128(shifted, _mm_set1_epi8(3));
}

// The page's distances times q over 2^8, [head][channels], for exact logits.
template <uint32_t kHeads>
TS_INLINE void ScaleQueriesExactly(const uint8_t* distances, uint32_t channels, const int16_t* q,
                                   int16_t (*out)[kPlanesHeadDimMax]) {
  for (uint32_t c = 0; c < channels; c += 16) {
    const __m256i distance = _mm256_slli_epi16(UnsignedToWords(distances + c), 7);
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      const __m256i code = LoadWords(q + (uint64_t)h * channels + c);
      _mm256_store_si256((__m256i*)(out[h] + c), _mm256_mulhrs_epi16(code, distance));
    }
  }
}

// Sums over channels of a token's codes, less 128, times q16, a lane for each head.
template <uint32_t kHeads>
TS_INLINE V4 ExactSums(const PlanesLayout& at, const uint8_t* page, uint32_t t,
                       const int16_t (*q16)[kPlanesHeadDimMax]) {
  const uint8_t* low = page + at.low_at + t * at.low_bytes;
  __m256i sums[4];
  TS_UNROLL for (uint32_t h = 0; h < 4; ++h) sums[h] = _mm256_setzero_si256();
  for (uint32_t group = 0; group < at.channels / 16; ++group) {
    const __m128i upper = ExpandCrumbs(page + at.upper_at + group * 64 + t * 4);
    const __m128i crumbs = ExpandCrumbs(low + at.channels / 2 + group * 4);
    const __m128i packed = _mm_loadl_epi64((const __m128i*)(low + group * 8));
    const __m128i nibbles =
        _mm_and_si128(_mm_unpacklo_epi64(packed, _mm_srli_epi16(packed, 4)), _mm_set1_epi8(15));
    const __m128i code =
        _mm_or_si128(_mm_or_si128(_mm_slli_epi16(upper, 6), _mm_slli_epi16(crumbs, 4)), nibbles);
    const __m256i offset = _mm256_cvtepi8_epi16(_mm_xor_si128(code, _mm_set1_epi8((char)0x80)));
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      sums[h] =
          _mm256_add_epi32(sums[h], _mm256_madd_epi16(offset, LoadWords(q16[h] + group * 16)));
    }
  }
  return _mm_cvtepi32_ps(FoldFourInt(sums[0], sums[1], sums[2], sums[3]));
}

// Replaces the weights of the page's tokens in `mask` by those of their exact logits. i: the
// candidate.
template <uint32_t kHeads, uint32_t kChannels>
TS_PHASE void WeighExactly(const CascadeCall& call, uint32_t head, uint32_t i, uint32_t mask) {
  const CascadeScratch& s = call.s;
  const PlanesLayout at = kChannels != 0 ? PlanesLayoutOf(kChannels) : call.at;
  const uint32_t p = s.candidates[i], channels = at.channels;
  const uint64_t row = s.pages * kPlanesTokens;
  const uint8_t* spread = call.Spread(p);
  SpreadScales scales;
  __builtin_memcpy(&scales, spread, sizeof scales);
  alignas(64) int16_t q16[kHeads][kPlanesHeadDimMax];
  ScaleQueriesExactly<kHeads>(spread + sizeof scales + channels, channels,
                              s.q + (uint64_t)head * channels, q16);
  float step[kLanes] = {}, base[kLanes] = {};
  for (uint32_t h = 0; h < kHeads; ++h) {
    step[h] = s.q_scale[head + h] * scales.distance * (256.0f / kPlanesTop);
    base[h] = s.mean_dot[(head + h) * s.pages + p] - s.m[head + h];
  }
  const VF steps = Load(step), bases = Load(base);
  float* weights = s.logits + head * row + i * kPlanesTokens;
  for (uint32_t left = mask; left != 0; left &= left - 1) {
    const uint32_t t = (uint32_t)__builtin_ctz(left);
    const VF sums = Widen(ExactSums<kHeads>(at, s.page[i], t, q16));
    // A weight may pass 1, where the approximate logits missed the largest: by less than 2^126.
    const VF y = Min(Fma(sums, steps, bases), Set(100.0f));
    float exact[kLanes];
    Store(exact, ExpTwo<6>(y));
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      s.d[head + h] += exact[h] - weights[h * row + t];
      weights[h * row + t] = exact[h];
    }
  }
}

// ---- 5: values ----

// Rows of signed bytes with a weight for each head, on their way to the sums.
template <uint32_t kHeads>
struct ValueRows {
  const int8_t* rows[kValueRows];
  alignas(64) float weights[kHeads][kValueRows];
  uint32_t count;
};

// Sums over pairs of rows, from column c on, of rows times weights: kGroups times 16 columns, as
// [head][group][columns 0-3, 8-11; 4-7, 12-15].
template <uint32_t kHeads, uint32_t kGroups>
TS_INLINE void SumPairs(const int8_t* const* rows, uint32_t pair_count, uint32_t c,
                        const int32_t (&pairs)[kHeads][kValueRows / 2],
                        __m256i (&sums)[kHeads][2 * kGroups]) {
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
    TS_UNROLL for (uint32_t v = 0; v < 2 * kGroups; ++v) sums[h][v] = _mm256_setzero_si256();
  }
  for (uint32_t r = 0; r < pair_count; ++r) {
    const int8_t* a = rows[2 * r] + c;
    const int8_t* b = rows[2 * r + 1] + c;
    TS_UNROLL for (uint32_t group = 0; group < kGroups; ++group) {
      const __m256i x = SignedToWords(a + 16 * group), y = SignedToWords(b + 16 * group);
      const __m256i low = _mm256_unpacklo_epi16(x, y), high = _mm256_unpackhi_epi16(x, y);
      TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
        const __m256i weight = _mm256_set1_epi32(pairs[h][r]);
        __m256i& first = sums[h][2 * group];
        __m256i& then = sums[h][2 * group + 1];
        first = _mm256_add_epi32(first, _mm256_madd_epi16(low, weight));
        then = _mm256_add_epi32(then, _mm256_madd_epi16(high, weight));
        Pin(first);
        Pin(then);
      }
    }
  }
}

// o += weights * rows for kHeads heads; rows become none. Weights are coded in 15 bits with a scale
// for the rows of the call.
template <uint32_t kHeads, uint32_t kChannels>
TS_PHASE void AddRows(ValueRows<kHeads>& rows, uint32_t runtime_channels, float* o) {
  constexpr float kWeightTop = 32767;
  // Sums of two groups of columns and three heads fill the registers.
  constexpr uint32_t kGroups = kChannels != 0 && kHeads <= 3 ? 2 : 1;
  const uint32_t channels = kChannels != 0 ? kChannels : runtime_channels;
  if (rows.count == 0) return;
  alignas(64) int32_t pairs[kHeads][kValueRows / 2];
  float back[kHeads];
  const uint32_t padded = RoundUp(rows.count, kLanes * 2);
  for (uint32_t r = rows.count; r < padded; ++r) {
    rows.rows[r] = rows.rows[0];
    for (uint32_t h = 0; h < kHeads; ++h) rows.weights[h][r] = 0;
  }
  for (uint32_t h = 0; h < kHeads; ++h) {
    const float top = TopOf(rows.weights[h], padded), to_codes = CodesPerUnit(top, kWeightTop);
    back[h] = top * (1.0f / kWeightTop);
    for (uint32_t r = 0; r < padded; r += kLanes) {
      StoreWords((int16_t*)pairs[h] + r, ToInt(Mul(Load(rows.weights[h] + r), Set(to_codes))));
    }
  }
  for (uint32_t c = 0; c < channels; c += 16 * kGroups) {
    __m256i sums[kHeads][2 * kGroups];
    SumPairs<kHeads, kGroups>(rows.rows, (rows.count + 1) / 2, c, pairs, sums);
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      const __m256 scale = _mm256_set1_ps(back[h]);
      TS_UNROLL for (uint32_t group = 0; group < kGroups; ++group) {
        const __m256 low = _mm256_cvtepi32_ps(sums[h][2 * group]);
        const __m256 high = _mm256_cvtepi32_ps(sums[h][2 * group + 1]);
        float* to = o + (uint64_t)h * channels + c + group * 16;
        _mm256_storeu_ps(to, _mm256_fmadd_ps(_mm256_permute2f128_ps(low, high, 0x20), scale,
                                             _mm256_loadu_ps(to)));
        _mm256_storeu_ps(to + 8, _mm256_fmadd_ps(_mm256_permute2f128_ps(low, high, 0x31), scale,
                                                 _mm256_loadu_ps(to + 8)));
      }
    }
  }
  rows.count = 0;
}

// The weights of a page's tokens times their values' scales, and what the tokens out of `mask`
// weigh together.
template <uint32_t kHeads>
TS_INLINE void ScaleWeights(const float* weights, uint64_t row, const uint8_t* scales,
                            uint32_t mask, float (&scaled)[kHeads][kPlanesTokens],
                            float (&rest)[kHeads]) {
  const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  __m256 others[kHeads];
  TS_UNROLL for (uint32_t half = 0; half < 2; ++half) {
    const __m128i halves = _mm_load_si128((const __m128i*)scales + half);
    const __m256 scale = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
    const __m256i in = _mm256_and_si256(_mm256_set1_epi32((int)(mask >> 8 * half)), bits);
    const __m256 chosen = _mm256_castsi256_ps(_mm256_cmpeq_epi32(in, bits));
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      const __m256 weight = _mm256_loadu_ps(weights + h * row + 8 * half);
      _mm256_store_ps(scaled[h] + 8 * half, _mm256_mul_ps(weight, scale));
      const __m256 other = _mm256_andnot_ps(chosen, weight);
      others[h] = half == 0 ? other : _mm256_add_ps(others[h], other);
    }
  }
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(others[h]), _mm256_extractf128_ps(others[h], 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    rest[h] = _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
  }
}

// Lists the candidate's tokens in `mask` with their values, the others with the page's mean.
template <uint32_t kHeads, uint32_t kChannels>
TS_INLINE void ListRows(const CascadeCall& call, uint32_t head, uint32_t i, uint32_t mask,
                        ValueRows<kHeads>& rows) {
  const PlanesLayout at = kChannels != 0 ? PlanesLayoutOf(kChannels) : call.at;
  const uint64_t row = call.s.pages * kPlanesTokens;
  const uint8_t* page = call.s.page[i];
  alignas(64) float scaled[kHeads][kPlanesTokens];
  float rest[kHeads], mean_scale;
  __builtin_memcpy(&mean_scale, page + at.scales_at + 2 * kPlanesTokens, 4);
  ScaleWeights<kHeads>(call.s.logits + head * row + i * kPlanesTokens, row, page + at.scales_at,
                       mask, scaled, rest);
  uint32_t n = rows.count;
  const uint8_t* values = page + at.v_at;
  for (uint32_t left = mask; left != 0; left &= left - 1, ++n) {
    const uint32_t t = (uint32_t)__builtin_ctz(left);
    const uint8_t* value = values + t * at.channels;
    rows.rows[n] = (const int8_t*)value;
    TS_UNROLL for (uint32_t b = 0; b < at.channels; b += kLineBytes) PrefetchLine(value + b);
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) rows.weights[h][n] = scaled[h][t];
  }
  if (mask != 0xffff) {
    rows.rows[n] = (const int8_t*)page + at.mean_v_at;
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) rows.weights[h][n] = rest[h] * mean_scale;
    ++n;
  }
  rows.count = n;
}

// Tokens chosen to be read in full, and those whose value is read, by candidate.
struct TokenMasks {
  uint16_t full, value;
};

// Candidates between the one whose values are listed and the one whose logits are made exact.
constexpr uint32_t kExactAhead = 2;

template <uint32_t kHeads, uint32_t kChannels>
TS_PHASE void AddCandidates(const CascadeCall& call, uint32_t head, const TokenMasks* masks) {
  ValueRows<kHeads> lists[2];
  lists[0].count = lists[1].count = 0;
  uint32_t filling = 0;
  const uint32_t channels = call.at.channels, low_bytes = call.at.low_bytes;
  float* o = call.s.o + (uint64_t)head * channels;
  // Weights are written one by one and read by the vector: in between, the writes settle.
  const auto weigh = [&](uint32_t i) {
    if (masks[i].full != 0) WeighExactly<kHeads, kChannels>(call, head, i, masks[i].full);
  };
  for (uint32_t i = 0; i < Smaller(kExactAhead, call.candidates); ++i) weigh(i);
  for (uint32_t i = 0; i < call.candidates; ++i) {
    // Rows are added up while those of the other list are on their way to the caches.
    if (lists[filling].count + kPlanesTokens + 1 > kValueRows) {
      filling ^= 1;
      AddRows<kHeads, kChannels>(lists[filling], channels, o);
    }
    const uint32_t ahead = Smaller(i + kExactAhead + kCandidatesAhead, call.candidates - 1);
    for (uint32_t left = masks[ahead].full; left != 0; left &= left - 1) {
      const uint8_t* low =
          call.s.page[ahead] + call.at.low_at + (uint32_t)__builtin_ctz(left) * low_bytes;
      for (uint32_t b = 0; b < low_bytes; b += kLineBytes) PrefetchLine(low + b);
      PrefetchLine(low + low_bytes - 1);
    }
    if (i + kExactAhead < call.candidates) weigh(i + kExactAhead);
    ListRows<kHeads, kChannels>(call, head, i, masks[i].value, lists[filling]);
  }
  AddRows<kHeads, kChannels>(lists[filling ^ 1], channels, o);
  AddRows<kHeads, kChannels>(lists[filling], channels, o);
}

}  // namespace
}  // namespace tinyserve
