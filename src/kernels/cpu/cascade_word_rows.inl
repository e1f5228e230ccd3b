// The cascade's last two phases beside cascade_words.inl: exact logits of the tokens that are read
// in full, and the values.
//
// Rows of values are added up as signed bytes, two at a time. Tokens that are read in full have
// weights in 15 bits, and sums in 32. The others' weights, of which the upper two bits of keys say
// little, and those of means are coded as parts of what 32 rows weigh together, so that all 32 fit
// 16-bit sums.
#include "kernels/cpu/cascade_words.inl"

namespace tinyserve {
namespace {

// ---- 4: exact logits ----

// Of 64 channels, four at a time as a byte of crumbs has them: channels 16 g + 4 i + j by i, g and
// j. In this order a row's bits come apart by four groups at once.

// Four groups' bytes, [g][i][j], as vectors of each i.
TS_INLINE void SplitGroups(const uint8_t* p, __m128i (&fours)[4]) {
  __m128i groups[4];
  TS_UNROLL for (uint32_t g = 0; g < 4; ++g) groups[g] = _mm_loadu_si128((const __m128i*)p + g);
  const __m128i low = _mm_unpacklo_epi32(groups[0], groups[1]);
  const __m128i next_low = _mm_unpacklo_epi32(groups[2], groups[3]);
  const __m128i high = _mm_unpackhi_epi32(groups[0], groups[1]);
  const __m128i next_high = _mm_unpackhi_epi32(groups[2], groups[3]);
  fours[0] = _mm_unpacklo_epi64(low, next_low);
  fours[1] = _mm_unpackhi_epi64(low, next_low);
  fours[2] = _mm_unpacklo_epi64(high, next_high);
  fours[3] = _mm_unpackhi_epi64(high, next_high);
}
TS_INLINE void OrderByFours(const int16_t* q, int16_t* out) {
  for (uint32_t i = 0; i < 4; ++i) {
    for (uint32_t g = 0; g < 4; ++g) {
      __builtin_memcpy(out + 16 * i + 4 * g, q + 16 * g + 4 * i, 4 * sizeof *q);
    }
  }
}
// As ScaleQueriesExactly, queries and what becomes of them by fours.
template <uint32_t kHeads>
TS_INLINE void ScaleFours(const uint8_t* distances, const int16_t (&q)[kHeads][64],
                          int16_t (*out)[kPlanesHeadDimMax]) {
  __m128i fours[4];
  SplitGroups(distances, fours);
  TS_UNROLL for (uint32_t i = 0; i < 4; ++i) {
    const VI distance = ShiftLeftWords(_mm256_cvtepu8_epi16(fours[i]), 7);
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      StoreInt(out[h] + 16 * i, MulHighWords(LoadInt(q[h] + 16 * i), distance));
    }
  }
}
// As ExactSums, of what ScaleFours has made.
template <uint32_t kHeads>
TS_INLINE V4 SumFours(const PlanesLayout& at, const uint8_t* page, uint32_t t,
                      const int16_t (*q16)[kPlanesHeadDimMax]) {
  const uint8_t* low = page + at.low_at + t * at.low_bytes;
  int32_t tops[4];
  TS_UNROLL for (uint32_t g = 0; g < 4; ++g) {
    __builtin_memcpy(tops + g, page + at.upper_at + g * 64 + t * 4, 4);
  }
  const VI upper = _mm256_broadcastsi128_si256(_mm_setr_epi32(tops[0], tops[1], tops[2], tops[3]));
  const VI crumbs =
      _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)(low + at.channels / 2)));
  const VI nibbles =
      _mm256_permutevar8x32_epi32(LoadInt(low), _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
  const VI in_upper = SetByte((int8_t)0xc0), in_crumbs = SetByte(0x30), in_nibbles = SetByte(15);
  const VI first_upper =
      And(_mm256_sllv_epi32(upper, _mm256_setr_epi32(6, 6, 6, 6, 4, 4, 4, 4)), in_upper);
  const VI second_upper =
      And(_mm256_sllv_epi32(upper, _mm256_setr_epi32(2, 2, 2, 2, 0, 0, 0, 0)), in_upper);
  const VI first_crumbs =
      And(_mm256_sllv_epi32(crumbs, _mm256_setr_epi32(4, 4, 4, 4, 2, 2, 2, 2)), in_crumbs);
  const VI second_crumbs =
      And(_mm256_srlv_epi32(crumbs, _mm256_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2)), in_crumbs);
  const VI codes[2] = {
      Or(Or(first_upper, first_crumbs), And(nibbles, in_nibbles)),
      Or(Or(second_upper, second_crumbs), And(ShiftRight(nibbles, 4), in_nibbles))};
  VI sums[4];
  TS_UNROLL for (uint32_t h = 0; h < 4; ++h) sums[h] = ZeroInt();
  TS_UNROLL for (uint32_t i = 0; i < 4; ++i) {
    const VI less = _mm256_xor_si256(codes[i / 2], SetByte((int8_t)0x80));
    const VI words = _mm256_cvtepi8_epi16(i % 2 == 0 ? _mm256_castsi256_si128(less)
                                                     : _mm256_extracti128_si256(less, 1));
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      sums[h] = DotInt16(sums[h], words, LoadInt(q16[h] + 16 * i));
    }
  }
  return _mm_cvtepi32_ps(FoldFourInt(sums[0], sums[1], sums[2], sums[3]));
}

// Weights of the listed tokens by their exact logits, times their values' scales; they are added to
// s.d.
template <uint32_t kHeads, uint32_t kChannels>
TS_PHASE void WeighExactly(CascadeCall& call, uint32_t head) {
  constexpr uint32_t kAtOnce = 8;  // pages whose queries are scaled before their tokens are read
  const CascadeScratch& s = call.s;
  const PlanesLayout at = kChannels != 0 ? PlanesLayoutOf(kChannels) : call.at;
  alignas(64) int16_t q16[kAtOnce][kHeads][kPlanesHeadDimMax];
  float* weights = s.exact_weights;
  const V4 q_scales =
      _mm_mul_ps(HeadsAt<kHeads>(s.q_scale + head, 1), _mm_set1_ps(256.0f / kPlanesTop));
  const int16_t* q = s.q + (uint64_t)head * at.channels;
  alignas(64) int16_t by_fours[kHeads][64];
  if constexpr (kChannels == 64) {
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) OrderByFours(q + h * 64, by_fours[h]);
  }
  uint32_t token = 0;
  for (uint32_t first = 0; first < call.exact_pages; first += kAtOnce) {
    const uint32_t pages = Smaller(kAtOnce, call.exact_pages - first);
    for (uint32_t j = 0; j < pages; ++j) {
      const uint8_t* distances = s.page[s.exact_page[first + j]] + at.distances_at;
      if constexpr (kChannels == 64) {
        ScaleFours<kHeads>(distances, by_fours, q16[j]);
      } else {
        ScaleQueriesExactly<kHeads>(distances, at.channels, q, q16[j]);
      }
    }
    for (uint32_t j = 0; j < pages; ++j) {
      const uint32_t i = s.exact_page[first + j], p = s.candidates[i];
      const uint8_t* page = s.page[i];
      const V4 base = _mm_sub_ps(HeadsAt<kHeads>(s.mean_dot + head * s.pages + p, s.pages),
                                 HeadsAt<kHeads>(s.m + head, 1));
      const V4 step = _mm_mul_ps(q_scales, _mm_set1_ps(DistanceScale(page, at)));
      for (uint32_t left = s.masks[i].full; left != 0; left &= left - 1, ++token) {
        PrefetchExact(s, at, token + kExactAhead);
        PrefetchRows<4>(call, at.channels);
        const uint32_t t = (uint32_t)__builtin_ctz(left);
        const V4 sums = kChannels == 64 ? SumFours<kHeads>(at, page, t, q16[j])
                                        : ExactSums<kHeads>(at, page, t, q16[j]);
        // A weight may pass 1, where the approximate logits missed the largest: by less than 2^126.
        _mm_store_ps(weights + token * kCascadeHeads,
                     _mm_min_ps(_mm_fmadd_ps(sums, step, base), _mm_set1_ps(100.0f)));
      }
    }
  }
  for (uint32_t k = 0; k < token; k += kLanes / kCascadeHeads) {
    Store(weights + k * kCascadeHeads, ExpTwo<6>(Load(weights + k * kCascadeHeads)));
  }
  V4 sum = _mm_setzero_ps();
  for (uint32_t k = 0; k < token; ++k) {
    const uint32_t id = s.exact[k];
    const uint8_t* scales =
        s.page[id / kPlanesTokens] + at.scales_at + offsetof(PlanesScales, values);
    uint16_t bits;
    __builtin_memcpy(&bits, scales + 2 * (id % kPlanesTokens), sizeof bits);
    const V4 weight = _mm_load_ps(weights + k * kCascadeHeads);
    sum = _mm_add_ps(sum, weight);
    const V4 scale = _mm_castsi128_ps(_mm_set1_epi32(bits << 16));
    _mm_store_ps(weights + k * kCascadeHeads, _mm_mul_ps(weight, scale));
  }
  AddToHeads<kHeads>(sum, s.d + head);
}

// ---- 5: values ----

// Tokens that are read in full whose weights share a scale: 128 * 2^15 * 2^7 < 2^31.
constexpr uint32_t kExactRows = 128;
// What the codes of kCodedRows rows add up to at most, of which rounding is half a code a row.
constexpr uint32_t kSumOfCodes = INT16_MAX / 127;
constexpr float kSumTop = kSumOfCodes - kCodedRows / 2;

// Weights [rows][kCascadeHeads] of `count` rows, a multiple of 4, by head; each four go to where
// place(r) says.
template <uint32_t kHeads, uint32_t kRows, class Place>
TS_INLINE void SplitHeads(const float* weights, uint32_t count, float (&out)[kHeads][kRows],
                          Place place) {
  for (uint32_t r = 0; r < count; r += 4) {
    V4 rows[4];
    TS_UNROLL for (uint32_t i = 0; i < 4; ++i) rows[i] = _mm_load_ps(weights + (r + i) * 4);
    _MM_TRANSPOSE4_PS(rows[0], rows[1], rows[2], rows[3]);
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) _mm_store_ps(out[h] + place(r), rows[h]);
  }
}

// Codes weights as parts of their sum, each two codes twice; returns what a code stands for. w:
// rows 0-3 and 8-11, 4-7 and 12-15, then the same of 16-31.
TS_INLINE float CodeParts(const VF (&w)[4], uint8_t* codes) {
  const float sum = SumLanes(Add(Add(w[0], w[1]), Add(w[2], w[3])));
  const VF to_codes = Set(CodesPerUnit(sum, kSumTop));
  VI rounded[4];
  TS_UNROLL for (uint32_t i = 0; i < 4; ++i) rounded[i] = ToInt(Mul(w[i], to_codes));
  const VI bytes =
      _mm256_packus_epi16(PackInts(rounded[0], rounded[1]), PackInts(rounded[2], rounded[3]));
  StoreInt(codes, PairLowWords(bytes, bytes));
  StoreInt(codes + kVectorBytes, PairHighWords(bytes, bytes));
  return sum * (1 / kSumTop);
}

// o += back * the rows times their codes for kHeads heads, of up to kCodedRows rows.
template <uint32_t kHeads>
TS_INLINE void AddCodedRows(const uint8_t* const* rows, uint32_t offset, uint32_t count,
                            uint32_t channels, const uint8_t (&codes)[kHeads][2 * kCodedRows],
                            const float (&back)[kHeads], float* o, uint64_t row_channels) {
  for (uint32_t c = 0; c < channels; c += 32) {
    VI sums[kHeads][2];
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) sums[h][0] = sums[h][1] = ZeroInt();
    for (uint32_t r = 0; r < count; r += 2) {
      const VI first = LoadIntFirst(rows[r] + offset + c, channels - c);
      const VI second = LoadIntFirst(rows[r + 1] + offset + c, channels - c);
      const VI values[2] = {PairLowBytes(first, second), PairHighBytes(first, second)};
      TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
        const VI weight = BroadcastInt(codes[h] + 2 * r);
        TS_UNROLL for (uint32_t v = 0; v < 2; ++v) {
          sums[h][v] = AddInt16(sums[h][v], PairDot(weight, values[v]));
          Pin(sums[h][v]);
        }
      }
    }
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      const VF step = Set(back[h]);
      float* to = o + h * row_channels + c;
      TS_UNROLL for (uint32_t v = 0; v < 2; ++v) {
        const VF low = ToFloat(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(sums[h][v])));
        const VF high = ToFloat(_mm256_cvtepi16_epi32(_mm256_extracti128_si256(sums[h][v], 1)));
        Store(to + 8 * v, Fma(low, step, Load(to + 8 * v)));
        Store(to + 16 + 8 * v, Fma(high, step, Load(to + 16 + 8 * v)));
      }
    }
  }
}

// Those of the tokens that are read in full.
template <uint32_t kHeads, uint32_t kChannels>
TS_PHASE void AddExactRows(const CascadeCall& call, uint32_t head) {
  const CascadeScratch& s = call.s;
  const uint32_t channels = kChannels != 0 ? kChannels : call.at.channels;
  const uint64_t row_channels = s.row_channels;
  float* o = s.o + head * row_channels;
  alignas(64) float weights[kHeads][kExactRows];
  alignas(64) int16_t codes[kHeads][kExactRows];
  for (uint32_t first = 0; first < call.exact_tokens; first += kExactRows) {
    const uint32_t count = Smaller(kExactRows, call.exact_tokens - first);
    const uint32_t padded = RoundUp(count, kLanes);
    for (uint32_t r = first + count; r < first + padded; ++r) {
      _mm_store_ps(s.exact_weights + r * kCascadeHeads, _mm_setzero_ps());
    }
    SplitHeads<kHeads>(s.exact_weights + first * kCascadeHeads, padded, weights,
                       [](uint32_t r) { return r; });
    float back[kHeads];
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      const float top = TopOf(weights[h], padded);
      const VF to_codes = Set(CodesPerUnit(top, INT16_MAX));
      for (uint32_t r = 0; r < padded; r += kLanes) {
        StoreWords(codes[h] + r, ToInt(Mul(Load(weights[h] + r), to_codes)));
      }
      back[h] = top * (1.0f / INT16_MAX);
    }
    const uint8_t* const* rows = s.exact_rows + first;
    for (uint32_t c = 0; c < channels; c += 16) {
      VI sums[kHeads][2];
      TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) sums[h][0] = sums[h][1] = ZeroInt();
      for (uint32_t r = 0; r < count; r += 2) {
        const VI a = LoadWordsSigned(rows[r] + c, channels - c);
        const VI b = LoadWordsSigned(rows[r + 1] + c, channels - c);
        const VI values[2] = {PairLowWords(a, b), PairHighWords(a, b)};
        TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
          const VI weight = BroadcastInt(codes[h] + r);
          TS_UNROLL for (uint32_t v = 0; v < 2; ++v) {
            sums[h][v] = DotInt16(sums[h][v], values[v], weight);
            Pin(sums[h][v]);
          }
        }
      }
      TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
        const VI ordered[2] = {_mm256_permute2x128_si256(sums[h][0], sums[h][1], 0x20),
                               _mm256_permute2x128_si256(sums[h][0], sums[h][1], 0x31)};
        TS_UNROLL for (uint32_t v = 0; v < 2; ++v) {
          float* to = o + h * row_channels + c + v * kLanes;
          Store(to, Fma(ToFloat(ordered[v]), Set(back[h]), Load(to)));
        }
      }
    }
  }
}

// Those of other tokens that give their value, whose weights are added to s.d, and the pages'
// means.
template <uint32_t kHeads, uint32_t kChannels>
TS_PHASE void AddRows(CascadeCall& call, uint32_t head) {
  const CascadeScratch& s = call.s;
  const uint32_t channels = kChannels != 0 ? kChannels : call.at.channels;
  const uint64_t row_channels = s.row_channels;
  float* o = s.o + head * row_channels;
  alignas(64) uint8_t codes[kHeads][2 * kCodedRows];
  float back[kHeads];
  VF weight[kHeads];
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) weight[h] = Zero();
  for (uint32_t first = 0; first < call.value_rows; first += kCodedRows) {
    PrefetchRows<kCodedRows>(call, channels);
    const VI scales[2] = {LoadInt(s.row_scales + first), LoadInt(s.row_scales + first + 16)};
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      const uint16_t* words = s.row_words + h * s.row_count + first;
      VF w[4];
      TS_UNROLL for (uint32_t i = 0; i < 2; ++i) {
        const VI weights = LoadInt(words + 16 * i);
        w[2 * i] = LowOfWords(weights);
        w[2 * i + 1] = HighOfWords(weights);
      }
      weight[h] = Add(weight[h], Add(Add(w[0], w[1]), Add(w[2], w[3])));
      TS_UNROLL for (uint32_t i = 0; i < 2; ++i) {
        w[2 * i] = Mul(w[2 * i], LowOfWords(scales[i]));
        w[2 * i + 1] = Mul(w[2 * i + 1], HighOfWords(scales[i]));
      }
      back[h] = CodeParts(w, codes[h]);
    }
    AddCodedRows<kHeads>(s.rows + first, 0, Smaller(kCodedRows, call.value_rows - first), channels,
                         codes, back, o, row_channels);
  }
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) s.d[head + h] += SumLanes(weight[h]);
  alignas(64) float weights[kHeads][kCodedRows];
  for (uint32_t first = 0; first < call.candidates; first += kCodedRows) {
    // In the order that codes are made of: of sixteen rows, 8-11 before 4-7.
    SplitHeads<kHeads>(s.mean_weights + first * kCascadeHeads, kCodedRows, weights,
                       [](uint32_t r) { return (r & ~12u) | (r & 4) << 1 | (r & 8) >> 1; });
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      VF w[4];
      TS_UNROLL for (uint32_t i = 0; i < 4; ++i) w[i] = Load(weights[h] + i * kLanes);
      back[h] = CodeParts(w, codes[h]);
    }
    AddCodedRows<kHeads>(s.page + first, call.at.mean_v_at,
                         Smaller(kCodedRows, call.candidates - first), channels, codes, back, o,
                         row_channels);
  }
}

TS_INLINE void StoreOutput(const float* o, uint32_t dim, float* out) {
  __builtin_memcpy(out, o, dim * sizeof(float));
}

}  // namespace
}  // namespace tinyserve
