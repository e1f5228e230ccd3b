// The cascade's phases behind its candidates where there are no byte dots: logits and weights of
// candidates are 16-bit words, sixteen of a vector.
//
// A logit is a word in 1/128 octave over the best score of its head's pages; what is further from
// it than 256 octaves is as far. A weight is a bfloat16, whose bits are such a logit but for the
// bend of its mantissa. Both are far more exact than the keys' upper two bits. Tokens that are read
// in full have f32 logits and weights.
#ifndef TINYSERVE_KERNELS_CPU_CASCADE_WORDS_INL_
#define TINYSERVE_KERNELS_CPU_CASCADE_WORDS_INL_

#include "kernels/cpu/cascade_exact.inl"
#include "kernels/cpu/cascade_upper.inl"

namespace tinyserve {
namespace {

constexpr float kWordsPerOctave = 128;

// ---- 2: approximate logits ----

// What turns a page's upper codes into words: ((sum of codes * q8 + 2 * start) * step >> shift) +
// base by head, each twice in 32 bits.
template <uint32_t kHeads>
struct WordQueries {
  alignas(64) int8_t q8[kHeads][kPlanesHeadDimMax];
  alignas(16) int32_t start[4], step[4], base[4];
};

// The largest shift at which no page's step leaves 15 bits. A page's distances have a scale of
// radius * sqrt(dim) / 255 at most: the largest has the code 255.
TS_INLINE int32_t StepShift(float largest_step) {
  int32_t bits;
  __builtin_memcpy(&bits, &largest_step, sizeof bits);
  const int32_t shift = 14 - ((bits >> 23) - 127);
  return shift < 0 ? 0 : shift > 24 ? 24 : shift;
}
TS_INLINE float LargestRadius(const CascadeCall& call) {
  VF top = Zero();
  for (uint32_t p = 0; p < call.args.count; p += kLanes) {
    top = Max(top,
              SelectFirst(Smaller(call.args.count - p, kLanes), Load(call.s.radius + p), Zero()));
  }
  return MaxLanes(top);
}

// Each of four numbers as int16, twice; of a and then of b.
TS_INLINE void StoreTwice(V4 a, V4 b, int32_t* p) {
  const __m128i words = _mm_packs_epi32(_mm_cvtps_epi32(a), _mm_cvtps_epi32(b));
  _mm_store_si128((__m128i*)p, _mm_unpacklo_epi16(words, words));
  _mm_store_si128((__m128i*)(p + 4), _mm_unpackhi_epi16(words, words));
}
TS_INLINE void StoreTwice(V4 a, int32_t* p) {
  const __m128i lanes = _mm_cvtps_epi32(a), words = _mm_packs_epi32(lanes, lanes);
  _mm_store_si128((__m128i*)p, _mm_unpacklo_epi16(words, words));
}

template <uint32_t kHeads, uint32_t kChannels>
TS_PHASE void ApproximateWords(const CascadeCall& call, uint32_t head, float radius) {
  // Queries are scaled for some pages before the first of them is read: bytes that are read right
  // after vectors of them were written would wait for the writes to settle.
  constexpr uint32_t kAtOnce = 4;
  const CascadeScratch& s = call.s;
  const PlanesLayout at = kChannels != 0 ? PlanesLayoutOf(kChannels) : call.at;
  const uint64_t row = s.pages * kPlanesTokens;
  const int16_t* q = s.q + (uint64_t)head * at.channels;
  const float* mean_dot = s.mean_dot + head * s.pages;
  uint16_t* words = s.words + head * row;
  WordQueries<kHeads> scaled[kAtOnce];
  VI top[kHeads];
  float scale[4] = {}, reference[4] = {}, up[4] = {};
  __m128i shifts[kHeads];
  const float distance = radius * Sqrt((float)call.args.shape.head_dim) * (1.0f / 255.0f);
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
    top[h] = SetInt16(INT16_MIN);
    // Levels are (2 * code - 3) / 3 of the distance: in all 2/3 (sum of codes - 3/2 sum of ones).
    scale[h] = s.q_scale[head + h] * (32768.0f * 2 / 3 * kWordsPerOctave);
    reference[h] = s.m[head + h];
    const int32_t shift = StepShift(scale[h] * distance);
    shifts[h] = _mm_cvtsi32_si128(shift);
    up[h] = (float)(1 << shift);
  }
  const V4 scales = _mm_loadu_ps(scale), references = _mm_loadu_ps(reference),
           ups = _mm_loadu_ps(up);
  for (uint32_t first = 0; first < call.candidates; first += kAtOnce) {
    const uint32_t count = Smaller(kAtOnce, call.candidates - first);
    for (uint32_t j = 0; j < count; ++j) {
      const uint32_t p = s.candidates[first + j];
      const V4 dots = HeadsAt<kHeads>(mean_dot + p, s.pages);
      const V4 totals = ScaleQueries<kHeads>(s.page[first + j], at, q, scaled[j].q8);
      const V4 steps = _mm_mul_ps(scales, _mm_set1_ps(DistanceScale(s.page[first + j], at)));
      // The middle of the codes, half of it in each of a token's two sums.
      const V4 starts = _mm_mul_ps(totals, _mm_set1_ps(-0.75f));
      StoreTwice(starts, _mm_mul_ps(steps, ups), scaled[j].start);
      // The shift rounds down.
      StoreTwice(_mm_fmadd_ps(_mm_sub_ps(dots, references), _mm_set1_ps(kWordsPerOctave),
                              _mm_set1_ps(0.5f)),
                 scaled[j].base);
    }
    for (uint32_t j = 0; j < count; ++j, words += kPlanesTokens) {
      PrefetchUpper(s.page[first + j + kCandidatesAhead], at.low_at);
      VI sums[kHeads][2];
      TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) sums[h][0] = sums[h][1] =
          BroadcastInt(scaled[j].start + h);
      AddUpperCodes<kHeads, kChannels>(s.page[first + j] + at.upper_at, at.channels, scaled[j].q8,
                                       sums);
      TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
        const VI step = BroadcastInt(scaled[j].step + h);
        const VI low = _mm256_sra_epi32(DotInt16(ZeroInt(), sums[h][0], step), shifts[h]);
        const VI high = _mm256_sra_epi32(DotInt16(ZeroInt(), sums[h][1], step), shifts[h]);
        const VI x = AddWordsSaturated(PackInts(low, high), BroadcastInt(scaled[j].base + h));
        StoreInt(words + h * row, x);
        top[h] = MaxWords(top[h], x);
      }
    }
  }
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) s.top_word[head + h] = MaxLanesWords(top[h]);
}

// ---- 3: weights of tokens ----

// Weights of 2^y as bfloat16, y in words over -127 octaves: a word is the result's bits but for its
// mantissa, which lies below the word's by 0.343 f (1 - f) of an octave for a fraction f.
TS_INLINE VI WeightsOfWords(VI y) {
  const VI above = MaxWords(y, ZeroInt());
  const VI f = And(above, SetInt16(127));
  const VI bend = _mm256_mullo_epi16(f, _mm256_sub_epi16(SetInt16(128), f));
  return _mm256_sub_epi16(above, MulHighWords(bend, SetInt16(88)));
}
// Words of bfloat16 as f32: of the first and of the second half of each eight.
TS_INLINE VF LowOfWords(VI words) { return (VF)PairLowWords(ZeroInt(), words); }
TS_INLINE VF HighOfWords(VI words) { return (VF)PairHighWords(ZeroInt(), words); }

// Logits of head h's tokens become weights relative to s.m, which is set; so is s.share.
TS_INLINE void WeighHead(const CascadeCall& call, uint32_t h, uint32_t tokens) {
  constexpr int32_t kOne = 127 * 128;  // the bits of a weight of 1
  const CascadeScratch& s = call.s;
  const float reference = s.m[h], open_d = call.args.open.d[h];
  int32_t top = s.top_word[h];
  float m = reference + (float)top * (1 / kWordsPerOctave), open = 0;
  const float open_m = open_d == 0 ? -__builtin_inff() : call.args.open.m[h] * kLog2E;
  if (open_m > m) {
    // Above what words hold, candidates weigh nothing.
    m = open_m;
    const float over = (open_m - reference) * kWordsPerOctave;
    top = over < INT16_MAX ? (int32_t)over : INT16_MAX;
    if (top < INT16_MAX) m = reference + (float)top * (1 / kWordsPerOctave);
  }
  // Far below the scores weights are relative to more than the largest.
  if (top < kOne - INT16_MAX) {
    top = kOne - INT16_MAX;
    m = reference + (float)top * (1 / kWordsPerOctave);
  }
  s.m[h] = m;
  const VI over = SetInt16((int16_t)(kOne - top));
  uint16_t* words = s.words + h * s.pages * kPlanesTokens;
  VF sums[2] = {Zero(), Zero()};
#pragma GCC unroll 2
  for (uint32_t t = 0; t < tokens; t += kPlanesTokens) {
    const VI weights = WeightsOfWords(AddWordsSaturated(LoadInt(words + t), over));
    StoreInt(words + t, InTokenOrder(weights));
    sums[0] = Add(sums[0], LowOfWords(weights));
    sums[1] = Add(sums[1], HighOfWords(weights));
  }
  const float d = SumLanes(Add(sums[0], sums[1]));
  if (open_d != 0) StoreFirst(&open, 1, Mul(Set(open_d), ExpTwo<6>(Set(open_m - m))));
  s.share[h] = 1.0f / (d + open);
  s.d[h] = 0;  // summed up anew, with exact weights
}

// Ranks tokens by the sums of their weights, each times its head's share.
TS_INLINE void RankWeights(const CascadeCall& call, uint32_t tokens) {
  constexpr uint32_t kAtOnce = 2;  // pages; of an odd number the last one is followed by another
  const CascadeScratch& s = call.s;
  const uint64_t row = s.pages * kPlanesTokens;
  for (uint32_t t = 0; t < tokens; t += kAtOnce * kPlanesTokens) {
    VF low[kAtOnce], high[kAtOnce];
    TS_UNROLL for (uint32_t i = 0; i < kAtOnce; ++i) low[i] = high[i] = Zero();
    const uint16_t* words = s.words + t;
    for (uint32_t h = 0; h < call.args.group; ++h, words += row) {
      const VF share = Broadcast(s.share + h);
      TS_UNROLL for (uint32_t i = 0; i < kAtOnce; ++i) {
        const VI weights = LoadInt(words + i * kPlanesTokens);
        low[i] = Fma(LowOfWords(weights), share, low[i]);
        high[i] = Fma(HighOfWords(weights), share, high[i]);
      }
    }
    TS_UNROLL for (uint32_t i = 0; i < kAtOnce; ++i) {
      const VI bins = PackInts(ShiftRight((VI)low[i], 20), ShiftRight((VI)high[i], 20));
      StoreWordsClamped(s.rank + t + i * kPlanesTokens,
                        _mm256_sub_epi16(bins, SetInt16(kLowestBin)), kLowestRank, kHighestRank);
    }
  }
}

TS_PHASE void RankTokens(const CascadeCall& call) {
  const uint32_t tokens = call.candidates * kPlanesTokens;
  for (uint32_t h = 0; h < call.args.group; ++h) WeighHead(call, h, tokens);
  RankWeights(call, tokens);
  ForceRanks(call, tokens);
}

// ---- what is read of which token, and what it weighs ----

// Rows whose weights are coded together.
constexpr uint32_t kCodedRows = 32;

// Tokens between the one whose logit is made exact and the one that is prefetched.
constexpr uint32_t kExactAhead = 24;
static_assert(kExactAhead + kPlanesTokens <= kListSlack);

// The lower bits of the k-th token that is read in full, and its value.
TS_INLINE void PrefetchExact(const CascadeScratch& s, const PlanesLayout& at, uint32_t k) {
  const uint32_t id = s.exact[k];
  const uint8_t* low = s.page[id / kPlanesTokens] + at.low_at + id % kPlanesTokens * at.low_bytes;
  PrefetchLine(low);
  PrefetchLine(low + at.low_bytes - 1);
  for (uint32_t b = 0; b < at.channels; b += kLineBytes) PrefetchLine(s.exact_rows[k] + b);
}

// Values are on their way while there is something else to do.
template <uint32_t kRows>
TS_INLINE void PrefetchRows(CascadeCall& call, uint32_t channels) {
  if (call.rows_prefetched == call.value_rows) return;
  const uint8_t* const* rows = call.s.rows + call.rows_prefetched;
  TS_UNROLL for (uint32_t r = 0; r < kRows; ++r) {
    for (uint32_t b = 0; b < channels; b += kLineBytes) PrefetchLine(rows[r] + b);
  }
  call.rows_prefetched = Smaller(call.rows_prefetched + kRows, call.value_rows);
}

// Whole steps are read of the lists, and prefetched ahead: what is past their ends weighs nothing.
template <uint32_t kHeads>
TS_INLINE void EndLists(const CascadeCall& call) {
  const CascadeScratch& s = call.s;
  const uint32_t tokens = call.exact_tokens, rows = call.value_rows;
  for (uint32_t k = 0; k < kListSlack; ++k) {
    s.exact[tokens + k] = tokens == 0 ? 0 : s.exact[tokens - 1];
    s.exact_rows[tokens + k] = tokens == 0 ? s.page[0] : s.exact_rows[tokens - 1];
    s.rows[rows + k] = rows == 0 ? s.page[0] : s.rows[rows - 1];
  }
  TS_UNROLL for (uint32_t n = 0; n < kCodedRows; n += 16) {
    StoreInt(s.row_scales + rows + n, ZeroInt());
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      StoreInt(s.row_words + h * s.row_count + rows + n, ZeroInt());
    }
  }
  for (uint32_t r = 0; r < kCodedRows; ++r) {
    _mm_store_ps(s.mean_weights + (call.candidates + r) * kCascadeHeads, _mm_setzero_ps());
  }
  for (uint32_t k = 0; k < kExactAhead; ++k) PrefetchExact(s, call.at, k);
}

// Lists the candidates' tokens that are read in full, the rows of values of the others that give
// theirs, with weights and scales, and what the others of each page weigh together: its mean's
// weight, which is added to s.d.
template <uint32_t kHeads, uint32_t kChannels>
TS_PHASE void ListTokens(CascadeCall& call, uint32_t head) {
  const CascadeScratch s = call.s;  // a copy, which no vector that is stored may change
  const PlanesLayout at = kChannels != 0 ? PlanesLayoutOf(kChannels) : call.at;
  const uint64_t row = s.pages * kPlanesTokens;
  const VI bits = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192,
                                    16384, INT16_MIN);
  const uint16_t* words = s.words + head * row;
  V4 sum = _mm_setzero_ps();
  uint32_t pages = 0, tokens = 0, rows = 0;
  for (uint32_t i = 0; i < call.candidates; ++i, words += kPlanesTokens) {
    const uint8_t* page = s.page[i];
    const uint32_t full = s.masks[i].full, value = s.masks[i].value;
    s.exact_page[pages] = i;
    pages += full != 0;
    for (uint32_t left = full; left != 0; left &= left - 1, ++tokens) {
      const uint32_t t = (uint32_t)__builtin_ctz(left);
      s.exact[tokens] = i * kPlanesTokens + t;
      s.exact_rows[tokens] = page + at.v_at + t * at.channels;
    }
    const uint16_t* scales =
        (const uint16_t*)(page + at.scales_at + offsetof(PlanesScales, values));
    const uint32_t read = value ^ full;
    StoreChosenRows(read, page + at.v_at, at.channels, s.rows + rows);
    uint32_t n = rows;
    TS_UNROLL for (uint32_t half = 0; half < 2; ++half) {
      const uint32_t eight = read >> 8 * half & 255;
      const __m128i order = _mm_load_si128((const __m128i*)kWordOrders.of[eight]);
      const auto move = [&](const uint16_t* from, uint16_t* to) __attribute__((always_inline)) {
        const __m128i all = _mm_loadu_si128((const __m128i*)(from + 8 * half));
        _mm_storeu_si128((__m128i*)to, _mm_shuffle_epi8(all, order));
      };
      move(scales, s.row_scales + n);
      TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
        move(words + h * row, s.row_words + h * s.row_count + n);
      }
      n += (uint32_t)__builtin_popcount(eight);
    }
    rows = n;
    const VI other = _mm256_cmpeq_epi16(And(SetInt16((int16_t)value), bits), ZeroInt());
    VF others[4];
    TS_UNROLL for (uint32_t h = 0; h < 4; ++h) others[h] = Zero();
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      const VI weights = And(LoadInt(words + h * row), other);
      others[h] = Add(LowOfWords(weights), HighOfWords(weights));
    }
    float mean_scale;
    __builtin_memcpy(&mean_scale, page + at.scales_at + offsetof(PlanesScales, mean_value), 4);
    const V4 together = FoldFour<SumOp>(others);
    sum = _mm_add_ps(sum, together);
    _mm_store_ps(s.mean_weights + i * kCascadeHeads, _mm_mul_ps(together, _mm_set1_ps(mean_scale)));
  }
  AddToHeads<kHeads>(sum, s.d + head);
  call.exact_pages = pages;
  call.exact_tokens = tokens;
  call.value_rows = rows;
  call.rows_prefetched = 0;
  EndLists<kHeads>(call);
}

}  // namespace
}  // namespace tinyserve

#endif  // TINYSERVE_KERNELS_CPU_CASCADE_WORDS_INL_
