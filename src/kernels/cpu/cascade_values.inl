// The cascade's last two phases: exact logits of the tokens that are read in full, and the values.
#include "kernels/cpu/cascade_call.inl"

namespace tinyserve {
namespace {

// ---- 4: exact logits ----

// The page's distances times q over 2^8, for exact logits: [head][channels], then zeros up to whole
// steps of ExactSums.
template <uint32_t kHeads>
TS_INLINE void ScaleQueriesExactly(const uint8_t* distances, uint32_t channels, const int16_t* q,
                                   int16_t (*out)[kPlanesHeadDimMax]) {
  for (uint32_t c = 0; c < RoundUp(channels, 16 * kCodeGroups); c += kWordLanes) {
    const VI distance = c < channels
                            ? ShiftLeftWords(LoadWordsUnsigned(distances + c, channels - c), 7)
                            : ZeroInt();
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      const VI code = LoadInt(q + (uint64_t)h * channels + Smaller(c, channels));
      StoreInt(out[h] + c, MulHighWords(code, distance));
    }
  }
}

// Sums over channels of a token's codes, less 128, times q16, a lane for each head.
template <uint32_t kHeads>
TS_INLINE V4 ExactSums(const PlanesLayout& at, const uint8_t* page, uint32_t t,
                       const int16_t (*q16)[kPlanesHeadDimMax]) {
  constexpr uint32_t kVectors = 16 * kCodeGroups / kWordLanes;
  const uint8_t* low = page + at.low_at + t * at.low_bytes;
  VI sums[4];
  TS_UNROLL for (uint32_t h = 0; h < 4; ++h) sums[h] = ZeroInt();
  for (uint32_t group = 0; group < at.channels / 16; group += kCodeGroups) {
    VI codes[kVectors];
    JoinCodes(page + at.upper_at + group * 64 + t * 4, low + at.channels / 2 + group * 4,
              low + group * 8, codes);
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      TS_UNROLL for (uint32_t v = 0; v < kVectors; ++v) {
        sums[h] = DotInt16(sums[h], codes[v], LoadInt(q16[h] + group * 16 + v * kWordLanes));
      }
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
  float base[4] = {}, q_scale[4] = {};
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
    q_scale[h] = s.q_scale[head + h];
    base[h] = s.mean_dot[(head + h) * s.pages + p] - s.m[head + h];
  }
  const V4 steps = _mm_mul_ps(_mm_setr_ps(q_scale[0], q_scale[1], q_scale[2], q_scale[3]),
                              _mm_set1_ps(scales.distance * (256.0f / kPlanesTop)));
  const V4 bases = _mm_setr_ps(base[0], base[1], base[2], base[3]);
  float* weights = s.logits + head * row + i * kPlanesTokens;
  V4 gained = _mm_setzero_ps();
  for (uint32_t left = mask; left != 0; left &= left - 1) {
    const uint32_t t = (uint32_t)__builtin_ctz(left);
    const V4 sums = ExactSums<kHeads>(at, s.page[i], t, q16);
    // A weight may pass 1, where the approximate logits missed the largest: by less than 2^126.
    const V4 y = _mm_min_ps(_mm_fmadd_ps(sums, steps, bases), _mm_set1_ps(100.0f));
    const V4 exact = FirstFour(ExpTwo<6>(Widen(y)));
    float of_heads[4], before[4] = {};
    _mm_storeu_ps(of_heads, exact);
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      before[h] = weights[h * row + t];
      weights[h * row + t] = of_heads[h];
    }
    gained = _mm_add_ps(gained,
                        _mm_sub_ps(exact, _mm_setr_ps(before[0], before[1], before[2], before[3])));
  }
  float gains[4];
  _mm_storeu_ps(gains, gained);
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) s.d[head + h] += gains[h];
}

// ---- 5: values ----

// Rows of signed bytes with a weight for each head, on their way to the sums.
template <uint32_t kHeads>
struct ValueRows {
  const int8_t* rows[kValueRows];
  // Whole pages of weights are written, of which the first count.
  alignas(64) float weights[kHeads][kValueRows + kPlanesTokens];
  uint32_t count;
};

// Outputs are summed as the products' operands come out of their interleaving: in blocks of
// kOutputBlock columns, vector v holds columns 4 v .. 4 v + 3 of each kOutputRun.
constexpr uint32_t kOutputVectors = kHasByteDot ? 4 : 2;
constexpr uint32_t kOutputBlock = kOutputVectors * kLanes;
constexpr uint32_t kOutputRun = 4 * kOutputVectors;

TS_INLINE void StoreOutput(const float* o, uint32_t dim, float* out) {
  for (uint32_t c = 0; c < dim; c += 4) {
    const uint32_t block = c / kOutputBlock * kOutputBlock, in_block = c % kOutputBlock;
    const float* four = o + block + in_block % kOutputRun / 4 * kLanes + in_block / kOutputRun * 4;
    for (uint32_t i = 0; i < Smaller(4, dim - c); ++i) out[c + i] = four[i];
  }
}

// Sums over the rows' columns from c on, `left` of which there are, of rows times weights: of four
// rows at a time, weights in bytes, ...
template <uint32_t kHeads>
TS_INLINE void SumFours(const int8_t* const* rows, uint32_t count, uint32_t c, uint32_t left,
                        const uint8_t (&codes)[kHeads][4 * kValueRows],
                        VI (&sums)[kHeads][kOutputVectors]) {
  for (uint32_t r = 0; r < count; r += 4) {
    const VI first = LoadIntFirst(rows[r] + c, left), second = LoadIntFirst(rows[r + 1] + c, left);
    const VI third = LoadIntFirst(rows[r + 2] + c, left),
             fourth = LoadIntFirst(rows[r + 3] + c, left);
    const VI low = PairLowBytes(first, second), high = PairHighBytes(first, second);
    const VI next_low = PairLowBytes(third, fourth), next_high = PairHighBytes(third, fourth);
    const VI values[4] = {PairLowWords(low, next_low), PairHighWords(low, next_low),
                          PairLowWords(high, next_high), PairHighWords(high, next_high)};
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      const VI weight = BroadcastInt(codes[h] + r);
      TS_UNROLL for (uint32_t v = 0; v < kOutputVectors; ++v) {
        sums[h][v] = DotBytes(sums[h][v], weight, values[v]);
        Pin(sums[h][v]);
      }
    }
  }
}

// ... or of two at a time, weights in 15 bits.
template <uint32_t kHeads>
TS_INLINE void SumPairs(const int8_t* const* rows, uint32_t count, uint32_t c, uint32_t left,
                        const uint8_t (&codes)[kHeads][4 * kValueRows],
                        VI (&sums)[kHeads][kOutputVectors]) {
  for (uint32_t r = 0; r < count; r += 2) {
    const VI first = LoadWordsSigned(rows[r] + c, left);
    const VI second = LoadWordsSigned(rows[r + 1] + c, left);
    const VI values[2] = {PairLowWords(first, second), PairHighWords(first, second)};
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      const VI weight = BroadcastInt(codes[h] + 2 * r);
      TS_UNROLL for (uint32_t v = 0; v < 2; ++v) {
        sums[h][v] = DotInt16(sums[h][v], values[v], weight);
        Pin(sums[h][v]);
      }
    }
  }
}

// Codes weights from row `first` on, `count` rows; returns what a code stands for.
TS_INLINE float CodeWeights(const float* weights, uint32_t count, uint8_t* codes) {
  constexpr float kTop = kHasByteDot ? 255 : 32767;
  const float top = TopOf(weights, count), to_codes = CodesPerUnit(top, kTop);
  for (uint32_t r = 0; r < count; r += kPlanesTokens) {
    VI rounded[kTokenVectors];
    TS_UNROLL for (uint32_t v = 0; v < kTokenVectors; ++v) {
      rounded[v] = ToInt(Mul(Load(weights + r + v * kLanes), Set(to_codes)));
      if (!kHasByteDot) StoreWords((int16_t*)codes + r + v * kLanes, rounded[v]);
    }
    if (kHasByteDot) StoreSixteenClamped(codes + r, rounded, 0, 255);
  }
  return top * (1.0f / kTop);
}

// o += weights * rows for kHeads heads; rows become none.
template <uint32_t kHeads, uint32_t kChannels>
TS_PHASE void AddRows(ValueRows<kHeads>& rows, uint32_t runtime_channels, uint64_t row_channels,
                      float* o) {
  // Weights in bytes have a scale for every few rows: a single large one leaves its neighbours
  // without digits.
  constexpr uint32_t kScaleRows = kHasByteDot ? 32 : kValueRows;
  const uint32_t channels = kChannels != 0 ? kChannels : runtime_channels;
  const uint32_t padded = RoundUp(rows.count, kPlanesTokens);
  for (uint32_t r = rows.count; r < padded; ++r) {
    rows.rows[r] = rows.rows[0];
    for (uint32_t h = 0; h < kHeads; ++h) rows.weights[h][r] = 0;
  }
  alignas(64) uint8_t codes[kHeads][4 * kValueRows];
  for (uint32_t first = 0; first < rows.count; first += kScaleRows) {
    const uint32_t count = Smaller(kScaleRows, rows.count - first);
    float back[kHeads];
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      back[h] = CodeWeights(rows.weights[h] + first, RoundUp(count, kPlanesTokens), codes[h]);
    }
    for (uint32_t c = 0; c < channels; c += kOutputBlock) {
      VI sums[kHeads][kOutputVectors];
      TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
        TS_UNROLL for (uint32_t v = 0; v < kOutputVectors; ++v) sums[h][v] = ZeroInt();
      }
      if constexpr (kHasByteDot) {
        SumFours<kHeads>(rows.rows + first, count, c, channels - c, codes, sums);
      } else {
        SumPairs<kHeads>(rows.rows + first, count, c, channels - c, codes, sums);
      }
      TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
        TS_UNROLL for (uint32_t v = 0; v < kOutputVectors; ++v) {
          float* to = o + h * row_channels + c + v * kLanes;
          Store(to, Fma(ToFloat(sums[h][v]), Set(back[h]), Load(to)));
        }
      }
    }
  }
  rows.count = 0;
}

// Lists the candidate's tokens in `mask` with their values, the others with the page's mean.
template <uint32_t kHeads, uint32_t kChannels>
TS_INLINE void ListRows(const CascadeCall& call, uint32_t head, uint32_t i, uint32_t mask,
                        ValueRows<kHeads>& rows) {
  const PlanesLayout at = kChannels != 0 ? PlanesLayoutOf(kChannels) : call.at;
  const uint64_t row = call.s.pages * kPlanesTokens;
  const uint8_t* page = call.s.page[i];
  const float* weights = call.s.logits + head * row + i * kPlanesTokens;
  VF scales[kTokenVectors];
  TS_UNROLL for (uint32_t v = 0; v < kTokenVectors; ++v) {
    scales[v] = LoadBF16((const uint16_t*)(page + at.scales_at) + v * kLanes);
  }
  VF others[4];
  TS_UNROLL for (uint32_t h = 0; h < 4; ++h) others[h] = Zero();
  uint32_t n = rows.count;
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
    VF scaled[kTokenVectors];
    TS_UNROLL for (uint32_t v = 0; v < kTokenVectors; ++v) {
      const VF weight = Load(weights + h * row + v * kLanes);
      scaled[v] = Mul(weight, scales[v]);
      const VF other = KeepLanes(~mask >> v * kLanes, weight);
      others[h] = v == 0 ? other : Add(others[h], other);
    }
    StoreChosen(mask, scaled, rows.weights[h] + n);
  }
  const uint8_t* values = page + at.v_at;
  for (uint32_t left = mask; left != 0; left &= left - 1, ++n) {
    const uint8_t* value = values + (uint32_t)__builtin_ctz(left) * at.channels;
    rows.rows[n] = (const int8_t*)value;
    TS_UNROLL for (uint32_t b = 0; b < at.channels; b += kLineBytes) PrefetchLine(value + b);
  }
  if (mask != 0xffff) {
    float mean_scale;
    __builtin_memcpy(&mean_scale, page + at.scales_at + 2 * kPlanesTokens, 4);
    float rest[4];
    _mm_storeu_ps(rest, _mm_mul_ps(FoldFour<SumOp>(others), _mm_set1_ps(mean_scale)));
    rows.rows[n] = (const int8_t*)page + at.mean_v_at;
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) rows.weights[h][n] = rest[h];
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
  const uint64_t row_channels = call.s.row_channels;
  float* o = call.s.o + head * row_channels;
  // Weights are written one by one and read by the vector: in between, the writes settle.
  const auto weigh = [&](uint32_t i) {
    if (masks[i].full != 0) WeighExactly<kHeads, kChannels>(call, head, i, masks[i].full);
  };
  for (uint32_t i = 0; i < Smaller(kExactAhead, call.candidates); ++i) weigh(i);
  for (uint32_t i = 0; i < call.candidates; ++i) {
    // Rows are added up while those of the other list are on their way to the caches.
    if (lists[filling].count + kPlanesTokens + 1 > kValueRows) {
      filling ^= 1;
      AddRows<kHeads, kChannels>(lists[filling], channels, row_channels, o);
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
  AddRows<kHeads, kChannels>(lists[filling ^ 1], channels, row_channels, o);
  AddRows<kHeads, kChannels>(lists[filling], channels, row_channels, o);
}

}  // namespace
}  // namespace tinyserve
