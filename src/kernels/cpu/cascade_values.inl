// The cascade's last two phases with weights in f32: exact logits of the tokens that are read in
// full, and the values.
#include "kernels/cpu/cascade_exact.inl"

namespace tinyserve {
namespace {

// ---- what is read of which token ----

// Tokens between the one whose logit is made exact and the one that is prefetched.
constexpr uint32_t kExactAhead = 24;
static_assert(kExactAhead + kPlanesTokens <= kListSlack);

// The lower bits of the k-th of those tokens.
TS_INLINE void PrefetchExact(const CascadeScratch& s, const PlanesLayout& at, uint32_t k) {
  const uint32_t id = s.exact[k];
  const uint8_t* low =
      s.page[s.exact_page[id / kPlanesTokens]] + at.low_at + id % kPlanesTokens * at.low_bytes;
  PrefetchLine(low);
  PrefetchLine(low + at.low_bytes - 1);
}

// Lists the candidates' tokens that are read in full, and the rows of values: those of the tokens
// whose value is read, then the page's mean. Without branches that hang on what was chosen: nothing
// foretells them.
TS_PHASE void ListTokens(CascadeCall& call) {
  const CascadeScratch& s = call.s;
  uint32_t pages = 0, tokens = 0, rows = 0;
  for (uint32_t i = 0; i < call.candidates; ++i) {
    const TokenMasks masks = s.masks[i];
    VI ids[kTokenVectors];
    CountFrom(pages * kPlanesTokens, ids);
    StoreChosen(masks.full, ids, s.exact + tokens);
    s.exact_page[pages] = i;
    pages += masks.full != 0;
    tokens += (uint32_t)__builtin_popcount(masks.full);
    StoreChosenRows(masks.value, s.page[i] + call.at.v_at, call.at.channels, s.rows + rows);
    rows += (uint32_t)__builtin_popcount(masks.value);
    s.rows[rows++] = s.page[i] + call.at.mean_v_at;
  }
  // Whole steps are read, and prefetched ahead.
  for (uint32_t k = 0; k < kListSlack; ++k) {
    s.exact[tokens + k] = tokens == 0 ? 0 : s.exact[tokens - 1];
    s.rows[rows + k] = s.rows[rows - 1];
  }
  for (uint32_t k = 0; k < kExactAhead; ++k) PrefetchExact(s, call.at, k);
  call.exact_pages = pages;
  call.exact_tokens = tokens;
  call.value_rows = rows;
  call.rows_prefetched = 0;
}

// Values are on their way while there is something else to do.
template <uint32_t kRows>
TS_INLINE void PrefetchRows(CascadeCall& call, uint32_t channels) {
  const uint8_t* const* rows = call.s.rows + call.rows_prefetched;
  TS_UNROLL for (uint32_t r = 0; r < kRows; ++r) {
    for (uint32_t b = 0; b < channels; b += kLineBytes) PrefetchLine(rows[r] + b);
  }
  call.rows_prefetched = Smaller(call.rows_prefetched + kRows, call.value_rows);
}

// ---- 4: exact logits ----

// Replaces the weights of the listed tokens by those of their exact logits.
template <uint32_t kHeads, uint32_t kChannels>
TS_PHASE void WeighExactly(CascadeCall& call, uint32_t head) {
  constexpr uint32_t kAtOnce = 8;  // pages whose queries are scaled before their tokens are read
  const CascadeScratch& s = call.s;
  const PlanesLayout at = kChannels != 0 ? PlanesLayoutOf(kChannels) : call.at;
  const uint64_t row = s.pages * kPlanesTokens;
  float* weights = s.logits + head * row;
  alignas(64) int16_t q16[kAtOnce][kHeads][kPlanesHeadDimMax];
  alignas(64) float y[kAtOnce * kPlanesTokens + kLanes / 4][4];
  V4 steps[kAtOnce], bases[kAtOnce];
  V4 gained = _mm_setzero_ps();
  for (uint32_t first = 0, token = 0; first < call.exact_pages; first += kAtOnce) {
    const uint32_t begin = token, pages = Smaller(kAtOnce, call.exact_pages - first);
    uint32_t end = begin;
    for (uint32_t j = 0; j < pages; ++j) {
      const uint32_t i = s.exact_page[first + j], p = s.candidates[i];
      ScaleQueriesExactly<kHeads>(s.page[i] + at.distances_at, at.channels,
                                  s.q + (uint64_t)head * at.channels, q16[j]);
      float base[4] = {}, q_scale[4] = {};
      TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
        q_scale[h] = s.q_scale[head + h];
        base[h] = s.mean_dot[(head + h) * s.pages + p] - s.m[head + h];
      }
      steps[j] = _mm_mul_ps(_mm_loadu_ps(q_scale),
                            _mm_set1_ps(DistanceScale(s.page[i], at) * (256.0f / kPlanesTop)));
      bases[j] = _mm_loadu_ps(base);
      end += (uint32_t)__builtin_popcount(s.masks[i].full);
    }
    for (; token < end; ++token) {
      const uint32_t id = s.exact[token];
      PrefetchExact(s, at, token + kExactAhead);
      PrefetchRows<4>(call, at.channels);
      const uint32_t j = id / kPlanesTokens - first;
      const uint8_t* page = s.page[s.exact_page[id / kPlanesTokens]];
      const V4 sums = ExactSums<kHeads>(at, page, id % kPlanesTokens, q16[j]);
      // A weight may pass 1, where the approximate logits missed the largest: by less than 2^126.
      _mm_store_ps(y[token - begin],
                   _mm_min_ps(_mm_fmadd_ps(sums, steps[j], bases[j]), _mm_set1_ps(100.0f)));
    }
    for (uint32_t k = 0; k < end - begin; k += kLanes / 4) Store(y[k], ExpTwo<6>(Load(y[k])));
    for (uint32_t k = begin; k < end; ++k) {
      const uint32_t id = s.exact[k];
      float* to = weights + s.exact_page[id / kPlanesTokens] * kPlanesTokens + id % kPlanesTokens;
      float before[4] = {};
      TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
        before[h] = to[h * row];
        to[h * row] = y[k - begin][h];
      }
      gained = _mm_add_ps(gained, _mm_sub_ps(_mm_load_ps(y[k - begin]), _mm_loadu_ps(before)));
    }
  }
  float gains[4];
  _mm_storeu_ps(gains, gained);
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) s.d[head + h] += gains[h];
}

// ---- 5: values ----

// Rows whose weights share a scale. In bytes a single large one leaves its neighbours without
// digits; of 15 bits, 128 * 2^15 * 2^7 < 2^31.
constexpr uint32_t kScaleRows = kHasByteDot ? 32 : 128;

// Weights of the listed rows: a token's times its value's scale; a page's mean has what the page's
// other tokens weigh together.
template <uint32_t kHeads, uint32_t kChannels>
TS_PHASE void ScaleWeights(CascadeCall& call, uint32_t head) {
  const CascadeScratch& s = call.s;
  const PlanesLayout at = kChannels != 0 ? PlanesLayoutOf(kChannels) : call.at;
  const uint64_t row = s.pages * kPlanesTokens;
  uint32_t n = 0;
  for (uint32_t i = 0; i < call.candidates; ++i) {
    PrefetchRows<4>(call, at.channels);
    const uint8_t* page = s.page[i];
    const float* weights = s.logits + head * row + i * kPlanesTokens;
    const uint32_t mask = s.masks[i].value;
    VF scales[kTokenVectors], others[4];
    TS_UNROLL for (uint32_t v = 0; v < kTokenVectors; ++v) {
      scales[v] = LoadBF16((const uint16_t*)(page + at.scales_at + offsetof(PlanesScales, values)) +
                           v * kLanes);
    }
    TS_UNROLL for (uint32_t h = 0; h < 4; ++h) others[h] = Zero();
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      VI scaled[kTokenVectors];
      TS_UNROLL for (uint32_t v = 0; v < kTokenVectors; ++v) {
        const VF weight = Load(weights + h * row + v * kLanes);
        scaled[v] = (VI)Mul(weight, scales[v]);
        others[h] = Add(others[h], KeepLanes(~mask >> v * kLanes, weight));
      }
      StoreChosen(mask, scaled, s.row_weights + h * s.row_count + n);
    }
    n += (uint32_t)__builtin_popcount(mask);
    float mean_scale, rest[4];
    __builtin_memcpy(&mean_scale, page + at.scales_at + offsetof(PlanesScales, mean_value), 4);
    _mm_storeu_ps(rest, _mm_mul_ps(FoldFour<SumOp>(others), _mm_set1_ps(mean_scale)));
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) s.row_weights[h * s.row_count + n] = rest[h];
    ++n;
  }
  for (uint32_t h = 0; h < kHeads; ++h) {
    for (uint32_t r = n; r < RoundUp(n, kPlanesTokens); ++r) s.row_weights[h * s.row_count + r] = 0;
  }
}

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
TS_INLINE void SumFours(const uint8_t* const* rows, uint32_t count, uint32_t c, uint32_t left,
                        const uint8_t (&codes)[kHeads][2 * kScaleRows],
                        VI (&sums)[kHeads][kOutputVectors]) {
  for (uint32_t r = 0; r < count; r += 4) {
    VI of_rows[4];
    TS_UNROLL for (uint32_t i = 0; i < 4; ++i) of_rows[i] = LoadIntFirst(rows[r + i] + c, left);
    const VI low = PairLowBytes(of_rows[0], of_rows[1]),
             high = PairHighBytes(of_rows[0], of_rows[1]);
    const VI next_low = PairLowBytes(of_rows[2], of_rows[3]);
    const VI next_high = PairHighBytes(of_rows[2], of_rows[3]);
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
TS_INLINE void SumPairs(const uint8_t* const* rows, uint32_t count, uint32_t c, uint32_t left,
                        const uint8_t (&codes)[kHeads][2 * kScaleRows],
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

// Codes `count` weights; returns what a code stands for.
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

// o += weights * rows for kHeads heads, of the `count` rows that are listed.
template <uint32_t kHeads, uint32_t kChannels>
TS_PHASE void AddRows(CascadeCall& call, uint32_t head) {
  const CascadeScratch& s = call.s;
  const uint32_t channels = kChannels != 0 ? kChannels : call.at.channels;
  float* o = s.o + head * s.row_channels;
  alignas(64) uint8_t codes[kHeads][2 * kScaleRows];
  for (uint32_t first = 0; first < call.value_rows; first += kScaleRows) {
    const uint32_t count = Smaller(kScaleRows, call.value_rows - first);
    for (uint32_t r = 0; r < count; r += 16) PrefetchRows<16>(call, channels);
    float back[kHeads];
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      back[h] = CodeWeights(s.row_weights + h * s.row_count + first, RoundUp(count, kPlanesTokens),
                            codes[h]);
    }
    for (uint32_t c = 0; c < channels; c += kOutputBlock) {
      VI sums[kHeads][kOutputVectors];
      TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
        TS_UNROLL for (uint32_t v = 0; v < kOutputVectors; ++v) sums[h][v] = ZeroInt();
      }
      if constexpr (kHasByteDot) {
        SumFours<kHeads>(s.rows + first, count, c, channels - c, codes, sums);
      } else {
        SumPairs<kHeads>(s.rows + first, count, c, channels - c, codes, sums);
      }
      TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
        TS_UNROLL for (uint32_t v = 0; v < kOutputVectors; ++v) {
          float* to = o + h * s.row_channels + c + v * kLanes;
          Store(to, Fma(ToFloat(sums[h][v]), Set(back[h]), Load(to)));
        }
      }
    }
  }
}

}  // namespace
}  // namespace tinyserve
