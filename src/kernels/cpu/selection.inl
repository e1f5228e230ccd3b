// Page selection: records of pages, and their scores. docs/kernels/selection.md has the limits, the
// figures and what was tried; kernels/ref/selection.h defines records bit for bit.
//
// A record's rows have channels in their lanes, so a score needs a sum over lanes; those of four
// pages are made together.
#include "kernels/cpu/attention_math.inl"
#include "kernels/cpu/attention_page.inl"
#include "kernels/cpu/coded.inl"
#include "kernels/cpu/fold.inl"

namespace tinyserve {
namespace {

// ---- records ----

constexpr float kF16Max = 65504.0f;
constexpr uint32_t kChannelsAtOnce = 4;

// NaN becomes kF16Max.
TS_INLINE V4 ClampToF16(V4 a) {
  return _mm_max_ps(_mm_min_ps(a, _mm_set1_ps(kF16Max)), _mm_set1_ps(-kF16Max));
}
// The first n of four halves; n is 4 but for the last channels of odd head sizes.
TS_INLINE void StoreHalves(uint16_t* p, __m128i halves, uint32_t n) {
  uint64_t bits = (uint64_t)_mm_cvtsi128_si64(halves);
  if (n < kChannelsAtOnce) bits &= ((uint64_t)1 << 16 * n) - 1;
  __builtin_memcpy(p, &bits, sizeof bits);
}

// Where four channels' keys lie, [page_tokens] each. Past the last channel it is repeated.
template <class Page>
struct FourChannels {
  const typename Page::Elem* k[kChannelsAtOnce];
  uint32_t tokens;
};

template <class Page>
TS_INLINE void SummariseBox(const FourChannels<Page>& keys, uint32_t n, uint16_t* low_row,
                            uint16_t* high_row) {
  VF low[kChannelsAtOnce], high[kChannelsAtOnce];
  TS_UNROLL for (uint32_t i = 0; i < kChannelsAtOnce; ++i) {
    low[i] = high[i] = Page::LoadLanes(keys.k[i]);
  }
  for (uint32_t t = kLanes; t < keys.tokens; t += kLanes) {
    TS_UNROLL for (uint32_t i = 0; i < kChannelsAtOnce; ++i) {
      const VF x = Page::LoadLanes(keys.k[i] + t);
      low[i] = Min(low[i], x);
      high[i] = Max(high[i], x);
    }
  }
  // Adding 0 turns a -0 into 0: which of two zeros is the least would depend on their order.
  const V4 least = ClampToF16(_mm_add_ps(FoldFour<MinOp>(low), _mm_setzero_ps()));
  const V4 greatest = ClampToF16(_mm_add_ps(FoldFour<MaxOp>(high), _mm_setzero_ps()));
  StoreHalves(low_row, _mm_cvtps_ph(least, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC), n);
  StoreHalves(high_row, _mm_cvtps_ph(greatest, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC), n);
}

// Sums of each channel's term(x, i) over its tokens, those kUnitTokens apart first.
template <class Page, class Term>
TS_INLINE V4 SumTokens(const FourChannels<Page>& keys, const Term& term) {
  constexpr uint32_t kParts = kUnitTokens / kLanes;
  VF sums[kChannelsAtOnce];
  TS_UNROLL for (uint32_t i = 0; i < kChannelsAtOnce; ++i) {
    VF part[kParts];
    TS_UNROLL for (uint32_t j = 0; j < kParts; ++j) {
      part[j] = Zero();
      for (uint32_t t = j * kLanes; t < keys.tokens; t += kUnitTokens) {
        part[j] = Add(part[j], term(Page::LoadLanes(keys.k[i] + t), i));
      }
    }
    sums[i] = part[0];
    if constexpr (kParts == 2) sums[i] = Add(part[0], part[1]);
  }
  return FoldFour<SumOp>(sums);
}

template <class Page>
TS_INLINE void SummariseMoments(const FourChannels<Page>& keys, uint32_t n, uint16_t* mean_row,
                                uint16_t* variance_row) {
  const V4 scale = _mm_set1_ps(1.0f / (float)keys.tokens);
  const V4 mean = _mm_mul_ps(SumTokens<Page>(keys, [](VF x, uint32_t) { return x; }), scale);
  float means[kChannelsAtOnce];
  _mm_storeu_ps(means, mean);
  const V4 squares = SumTokens<Page>(keys, [&means](VF x, uint32_t i) {
    const VF distance = Sub(x, Set(means[i]));
    return Mul(distance, distance);
  });
  const V4 variance = _mm_mul_ps(squares, scale);
  StoreHalves(mean_row, _mm_cvtps_ph(ClampToF16(mean), _MM_FROUND_TO_NEAREST_INT), n);
  StoreHalves(variance_row, _mm_cvtps_ph(ClampToF16(variance), _MM_FROUND_TO_NEAREST_INT), n);
}

template <class Page>
void SummariseKeys(const SummariseArgs& args) {
  using Elem = typename Page::Elem;
  const KvShape& shape = args.shape;
  const MetaLayout& layout = args.layout;
  const Elem* k = (const Elem*)PageAt(args.slab, args.page);
  uint8_t* record = PageAt(args.records, args.page);
  uint16_t* box = (uint16_t*)(record + layout.box_at);
  uint16_t* moments = (uint16_t*)(record + layout.moments_at);
  uint32_t c = 0;
  for (; c < shape.head_dim; c += kChannelsAtOnce) {
    FourChannels<Page> keys = {{}, shape.page_tokens};
    TS_UNROLL for (uint32_t i = 0; i < kChannelsAtOnce; ++i) {
      keys.k[i] = k + (uint64_t)Smaller(c + i, shape.head_dim - 1) * shape.page_tokens;
    }
    const uint32_t n = Smaller(kChannelsAtOnce, shape.head_dim - c);
    if ((layout.kinds & kMetaBox) != 0) {
      SummariseBox<Page>(keys, n, box + c, box + layout.channels + c);
    }
    if ((layout.kinds & kMetaMoments) != 0) {
      SummariseMoments<Page>(keys, n, moments + c, moments + layout.channels + c);
    }
  }
  for (; c < layout.channels; c += kChannelsAtOnce) {
    for (uint32_t row = 0; row < 2; ++row) {
      const __m128i zero = _mm_setzero_si128();
      if ((layout.kinds & kMetaBox) != 0) StoreHalves(box + row * layout.channels + c, zero, 4);
      if ((layout.kinds & kMetaMoments) != 0) {
        StoreHalves(moments + row * layout.channels + c, zero, 4);
      }
    }
  }
}

// A coded page is decoded to a page of f32 first.
void SummariseCoded(const SummariseArgs& args) {
  const uint32_t dim = args.shape.head_dim;
  if (dim > kCodedHeadDimMax) __builtin_trap();
  alignas(64) float k[kCodedHeadDimMax * kCodedTokens], v[kCodedHeadDimMax * kCodedTokens];
  const uint8_t* spread = PageAt(args.records, args.page) + args.layout.spread_at;
  UnpackPage(args.shape, PageAt(args.slab, args.page), spread, k, v);
  SummariseArgs decoded = args;
  decoded.shape.type = KvType::kF32;
  // Every page of this slab is this one.
  decoded.slab = {(uint8_t*)k, 0, 31, 0, 0};
  SummariseKeys<PageF32>(decoded);
}

// The largest head size, which keys and query forms on the stack have room for; model files are
// refused beyond it.
constexpr uint32_t kHeadDimMax = 1024;

// A page smaller than a unit, as often as fills one: that changes neither bounds nor moments.
template <class Page>
void SummarisePart(const SummariseArgs& args) {
  using Elem = typename Page::Elem;
  const uint32_t dim = args.shape.head_dim, tokens = args.shape.page_tokens;
  if (dim > kHeadDimMax) __builtin_trap();
  alignas(64) Elem k[kHeadDimMax * kUnitTokens];
  const Elem* from = (const Elem*)PageAt(args.slab, args.page);
  for (uint32_t c = 0; c < dim; ++c) {
    for (uint32_t t = 0; t < kUnitTokens; ++t) {
      k[c * kUnitTokens + t] = from[c * tokens + t % tokens];
    }
  }
  SummariseArgs whole = args;
  whole.shape.page_tokens = kUnitTokens;
  // Every page of this slab is this one.
  whole.slab = {(uint8_t*)k, 0, 31, 0, 0};
  SummariseKeys<Page>(whole);
}

template <class Page>
void SummariseRaw(const SummariseArgs& args) {
  return IsPartOfUnit(args.shape) ? SummarisePart<Page>(args) : SummariseKeys<Page>(args);
}

// ---- scores ----

constexpr uint32_t kPagesAtOnce = 4;
// Heads of one pass: what the registers hold of sums of four pages.
constexpr uint32_t kScoreHeadsMax = kLanes == 16 ? 6 : 3;
// Pages that all passes go over before the next ones: their records stay in the caches.
constexpr uint32_t kPassPages = 128;
// Pages between those scored and those prefetched.
constexpr uint32_t kPagesAhead = 16;

// The rows of a record that scores are made of.
enum class ScoreRows : uint8_t { kBox, kMoments, kRange };
TS_INLINE ScoreRows RowsOf(const ScoreArgs& args) {
  if (args.kind == ScoreKind::kMoments) return ScoreRows::kMoments;
  return (args.layout.kinds & kMetaRange) != 0 ? ScoreRows::kRange : ScoreRows::kBox;
}

// Two forms of the queries of a pass, [form][channels / kLanes][heads][kLanes], zero past the head
// size. Box: max(q, 0) for greatest values, min(q, 0) for least ones: of a channel's two products
// one is 0, and the other is the larger of q * low and q * high. Moments: q for means, q^2 for
// variances. Range: q for middles, |q| for reaches.
template <uint32_t kHeads>
struct QueryForms {
  alignas(64) float form[2][kHeadDimMax * kHeads];

  QueryForms(const float* q, uint32_t head_dim, uint32_t channels, ScoreRows rows) {
    for (uint32_t c = 0; c < channels; c += kLanes) {
      const uint32_t n = c < head_dim ? Smaller(kLanes, head_dim - c) : 0;
      for (uint32_t h = 0; h < kHeads; ++h) {
        const VF x = LoadFirst(q + (uint64_t)h * head_dim + c, n);
        const uint32_t at = c * kHeads + h * kLanes;
        Store(form[0] + at, rows == ScoreRows::kBox ? Max(x, Zero()) : x);
        Store(form[1] + at, rows == ScoreRows::kBox     ? Min(x, Zero())
                            : rows == ScoreRows::kRange ? Abs(x)
                                                        : Mul(x, x));
      }
    }
  }
};

// sums[h][p] += q of head h times the row of page p, by increasing channel. Meanwhile the records
// of two pages are prefetched, no faster than these are read, and in the order of memory where a
// row has enough vectors for that.
template <uint32_t kHeads>
TS_INLINE void AddRowProducts(const uint8_t* const (&records)[kPagesAtOnce], uint32_t row_at,
                              uint32_t channels, const uint8_t* const* next, const float* q,
                              VF (&sums)[kHeads][kPagesAtOnce]) {
  // A stretch of a row has as many vectors as a record has lines.
  constexpr uint32_t kStretches = 16 / kLanes;
  const uint32_t stretch = channels / kStretches;
  for (uint32_t s = 0; s < kStretches; ++s) {
    for (uint32_t i = 0; i < stretch; i += kLanes) {
      TS_UNROLL for (uint32_t n = s; n < 2; n += kStretches) {
        PrefetchLine(next[n] + i / kLanes * kLineBytes);
      }
      VF factor[kHeads];
      TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) factor[h] = Load(q + h * kLanes);
      TS_UNROLL for (uint32_t p = 0; p < kPagesAtOnce; ++p) {
        const VF x = LoadF16((const uint16_t*)(records[p] + row_at) + s * stretch + i);
        TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) sums[h][p] = Fma(x, factor[h], sums[h][p]);
      }
      q += kHeads * kLanes;
    }
  }
}

template <uint32_t kHeads>
TS_INLINE void ClearSums(VF (&sums)[kHeads][kPagesAtOnce]) {
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
    TS_UNROLL for (uint32_t p = 0; p < kPagesAtOnce; ++p) sums[h][p] = Zero();
  }
}

// Scores of four pages for the heads of a pass, to scores[h * stride].
template <uint32_t kHeads>
TS_INLINE void ScoreBoxes(const uint8_t* const (&records)[kPagesAtOnce], const uint8_t* const* next,
                          uint32_t channels, const QueryForms<kHeads>& q, float* scores,
                          uint64_t stride) {
  VF sums[kHeads][kPagesAtOnce];
  ClearSums<kHeads>(sums);
  AddRowProducts<kHeads>(records, 0, channels, next, q.form[1], sums);
  AddRowProducts<kHeads>(records, channels * 2, channels, next + 2, q.form[0], sums);
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
    _mm_storeu_ps(scores + h * stride, FoldFour<SumOp>(sums[h]));
  }
}
template <uint32_t kHeads>
TS_INLINE void ScoreMoments(const uint8_t* const (&records)[kPagesAtOnce],
                            const uint8_t* const* next, uint32_t channels,
                            const QueryForms<kHeads>& q, float alpha, float* scores,
                            uint64_t stride) {
  VF sums[kHeads][kPagesAtOnce];
  ClearSums<kHeads>(sums);
  AddRowProducts<kHeads>(records, 0, channels, next, q.form[0], sums);
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
    _mm_storeu_ps(scores + h * stride, FoldFour<SumOp>(sums[h]));
  }
  ClearSums<kHeads>(sums);
  AddRowProducts<kHeads>(records, channels * 2, channels, next + 2, q.form[1], sums);
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
    const V4 spread = _mm_mul_ps(_mm_set1_ps(alpha), _mm_sqrt_ps(FoldFour<SumOp>(sums[h])));
    float* to = scores + h * stride;
    _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), spread));
  }
}

// sums[h][p] += q of head h times the codes of page p, by increasing channel.
template <uint32_t kHeads, class LoadCodes>
TS_INLINE void AddCodeProducts(const uint8_t* const (&records)[kPagesAtOnce], uint32_t row_at,
                               uint32_t channels, const LoadCodes& load, const float* q,
                               VF (&sums)[kHeads][kPagesAtOnce]) {
  for (uint32_t c = 0; c < channels; c += kLanes) {
    VF factor[kHeads];
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) factor[h] = Load(q + h * kLanes);
    TS_UNROLL for (uint32_t p = 0; p < kPagesAtOnce; ++p) {
      const VF x = ToFloat(load(records[p] + row_at + c));
      TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) sums[h][p] = Fma(x, factor[h], sums[h][p]);
    }
    q += kHeads * kLanes;
  }
}

// As ScoreBoxes, of boxes that are ranges: q.middle + |q|.reach.
template <uint32_t kHeads>
TS_INLINE void ScoreRanges(const uint8_t* const (&records)[kPagesAtOnce],
                           const uint8_t* const* next, uint32_t channels,
                           const QueryForms<kHeads>& q, float* scores, uint64_t stride) {
  const uint32_t middles_at = sizeof(RangeScales);
  alignas(16) float middle_scale[kPagesAtOnce], reach_scale[kPagesAtOnce];
  TS_UNROLL for (uint32_t p = 0; p < kPagesAtOnce; ++p) {
    for (uint32_t b = 0; b < middles_at + 2 * channels; b += kLineBytes) PrefetchLine(next[p] + b);
    RangeScales scales;
    __builtin_memcpy(&scales, records[p], sizeof scales);
    middle_scale[p] = scales.key_middle;
    reach_scale[p] = scales.key_reach;
  }
  const auto load_signed = [](const uint8_t* codes) __attribute__((always_inline)) {
    return LoadBytesSigned((const int8_t*)codes);
  };
  VF sums[kHeads][kPagesAtOnce];
  V4 middles[kHeads];
  ClearSums<kHeads>(sums);
  AddCodeProducts<kHeads>(records, middles_at, channels, load_signed, q.form[0], sums);
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
    middles[h] = _mm_mul_ps(FoldFour<SumOp>(sums[h]), _mm_load_ps(middle_scale));
  }
  ClearSums<kHeads>(sums);
  AddCodeProducts<kHeads>(records, middles_at + channels, channels, LoadBytesUnsigned, q.form[1],
                          sums);
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
    const V4 reaches = _mm_mul_ps(FoldFour<SumOp>(sums[h]), _mm_load_ps(reach_scale));
    _mm_storeu_ps(scores + h * stride, _mm_add_ps(middles[h], reaches));
  }
}

TS_INLINE uint64_t HeadScoresStride(const ScoreArgs& args) { return RoundUp(args.count, 16); }

// Where the records of a block of pages begin; past its last one, those of the pages to prefetch.
struct RecordBlock {
  const uint8_t* at[kPassPages + kPagesAhead];
  uint32_t begin, end;  // pages of the call

  RecordBlock(const ScoreArgs& args, uint32_t first)
      : begin(first), end(first + Smaller(kPassPages, args.count - first)) {
    const ScoreRows rows = RowsOf(args);
    const uint32_t kind_at = rows == ScoreRows::kBox     ? args.layout.box_at
                             : rows == ScoreRows::kRange ? args.layout.spread_at
                                                         : args.layout.moments_at;
    const uint32_t padded = RoundUp(end - begin, kPagesAtOnce) + kPagesAhead;
    for (uint32_t i = 0; i < padded; ++i) {
      at[i] = PageAt(args.records, args.pages[Smaller(begin + i, args.count - 1)]) + kind_at;
    }
  }
};

// Heads first_head .. first_head + kHeads - 1 on a block of pages.
template <uint32_t kHeads>
void ScoreHeads(const ScoreArgs& args, uint32_t first_head, const RecordBlock& block) {
  const uint32_t channels = args.layout.channels;
  const uint64_t stride = HeadScoresStride(args);
  const ScoreRows rows = RowsOf(args);
  const QueryForms<kHeads> q(args.q + (uint64_t)first_head * args.head_dim, args.head_dim, channels,
                             rows);
  float* scores = args.head_scores + first_head * stride + block.begin;
  for (uint32_t i = 0; i < block.end - block.begin; i += kPagesAtOnce) {
    const uint8_t* records[kPagesAtOnce];
    TS_UNROLL for (uint32_t p = 0; p < kPagesAtOnce; ++p) records[p] = block.at[i + p];
    if (rows == ScoreRows::kBox) {
      ScoreBoxes<kHeads>(records, block.at + i + kPagesAhead, channels, q, scores + i, stride);
    } else if (rows == ScoreRows::kRange) {
      ScoreRanges<kHeads>(records, block.at + i + kPagesAhead, channels, q, scores + i, stride);
    } else {
      ScoreMoments<kHeads>(records, block.at + i + kPagesAhead, channels, q, args.alpha, scores + i,
                           stride);
    }
  }
}

// ScoreHeads of as many heads as `heads` says, 1 .. kHeads.
template <uint32_t kHeads = kScoreHeadsMax>
void ScoreSomeHeads(const ScoreArgs& args, uint32_t heads, uint32_t first_head,
                    const RecordBlock& block) {
  if (heads == kHeads) return ScoreHeads<kHeads>(args, first_head, block);
  if constexpr (kHeads > 1) ScoreSomeHeads<kHeads - 1>(args, heads, first_head, block);
}

void ScoreAllHeads(const ScoreArgs& args) {
  const uint32_t passes = (args.group + kScoreHeadsMax - 1) / kScoreHeadsMax;
  for (uint32_t begin = 0; begin < args.count; begin += kPassPages) {
    const RecordBlock block(args, begin);
    for (uint32_t pass = 0, head = 0; pass < passes; ++pass) {
      const uint32_t passes_left = passes - pass;
      const uint32_t heads = (args.group - head + passes_left - 1) / passes_left;
      ScoreSomeHeads(args, heads, head, block);
      head += heads;
    }
  }
}

// ---- pooling ----

// Turns a head's scores into their softmax times its sum, and returns 1 / the sum. The row is
// whole vectors.
TS_INLINE float ExponentiateRow(float* row, uint32_t count) {
  VF top = Load(row);
  for (uint32_t i = kLanes; i < count; i += kLanes) top = Max(top, Load(row + i));
  const float highest = MaxLanes(top);
  VF sum = Zero();
  for (uint32_t i = 0; i < count; i += kLanes) {
    const VF e = ExpTwo<6>(Mul(Sub(Load(row + i), Set(highest)), Set(kLog2E)));
    Store(row + i, e);
    sum = Add(sum, e);
  }
  return 1.0f / SumLanes(sum);
}

// Scores of pages from those of their heads, whose rows hold -inf from `count` on.
template <class Combine>
TS_INLINE void PoolRows(const ScoreArgs& args, const Combine& combine) {
  const uint64_t stride = HeadScoresStride(args);
  for (uint32_t i = 0; i < args.count; i += kLanes) {
    VF pooled = Load(args.head_scores + i);
    for (uint32_t h = 1; h < args.group; ++h) {
      pooled = combine(pooled, Load(args.head_scores + h * stride + i));
    }
    const uint32_t n = Smaller(kLanes, args.count - i);
    if (n == kLanes) {
      Store(args.scores + i, pooled);
    } else {
      StoreFirst(args.scores + i, n, pooled);
    }
  }
}

// ---- entries of the table ----

void SummarisePage(const SummariseArgs* args) {
  switch (args->shape.type) {
    case KvType::kF32:
      return SummariseRaw<PageF32>(*args);
    case KvType::kF16:
      return SummariseRaw<PageF16>(*args);
    case KvType::kBF16:
      return SummariseRaw<PageBF16>(*args);
    default:
      return SummariseCoded(*args);
  }
}

void ScorePages(const ScoreArgs* args) {
  if (args->count == 0) return;
  if (args->layout.channels > kHeadDimMax) __builtin_trap();
  ScoreAllHeads(*args);
  const uint64_t stride = HeadScoresStride(*args);
  for (uint32_t h = 0; h < args->group; ++h) {
    float* row = args->head_scores + h * stride;
    for (uint32_t i = args->count; i < stride; ++i) row[i] = -__builtin_inff();
    if (args->pool != ScorePool::kSoftmax) continue;
    const VF scale = Set(ExponentiateRow(row, args->count));
    for (uint32_t i = 0; i < args->count; i += kLanes) Store(row + i, Mul(Load(row + i), scale));
  }
  if (args->pool == ScorePool::kMax) {
    PoolRows(*args, [](VF a, VF b) { return Max(a, b); });
  } else {
    PoolRows(*args, [](VF a, VF b) { return Add(a, b); });
  }
}

}  // namespace
}  // namespace tinyserve
