// Decode attention: the g query heads of one KV head over one split, memory once through.
//
// Blocks of 64 tokens with a running maximum. Logits of a block go to scratch, then its values are
// weighed; meanwhile the next block's pages are prefetched. Heads are taken up to six at a time,
// each number of them a kernel of its own.
#include "kernels/cpu/attention_ahead.inl"
#include "kernels/cpu/attention_math.inl"
#include "kernels/cpu/attention_page.inl"
#include "kernels/cpu/attention_ranges.inl"
#include "kernels/cpu/coded.inl"

namespace tinyserve {
namespace {

constexpr uint32_t kHeadsMax = 6;  // of one pass

// Scratch of a decode call; g is rounded up to whole vectors.
struct DecodeScratch {
  float* q;        // per pass [head_dim][heads of the pass], scaled; pass of head h at h * head_dim
  float* logits;   // [g][kBlockTokens], then the weights
  float* o;        // [g][padded dim]
  float* m;        // [g], base 2
  float* d;        // [g]
  float* rescale;  // [g] what the block's new maximum makes of o and d
  float* pages;    // of pages in planes: a block of them unpacked; of small pages: joined to units
  // Of pages of codes within ranges:
  int16_t* words;        // [g][RangedQueryWords] coded queries
  float* q_scale;        // [g] what a word stands for, in logits of base 2
  HeadQueries* queries;  // [g] of the block whose logits come next
};

template <class Page>
struct Block {
  Unit<Page> units[kBlockUnits];
  uint32_t count;   // units that exist; the others repeat the last one
  uint32_t tokens;  // of the block
};

template <class Page>
TS_INLINE Block<Page> BlockAt(const DecodeArgs& args, uint32_t first_token, uint32_t tokens,
                              float* unpacked) {
  Block<Page> block;
  block.tokens = Smaller(kBlockTokens, tokens - first_token);
  block.count = (block.tokens + kUnitTokens - 1) / kUnitTokens;
  if constexpr (__is_same(Page, PageF32)) {
    if (args.shape.type == KvType::kPlanes) {
      UnpackUnits(args.shape, args.slab, args.records, args.layout,
                  args.view.pages + first_token / kUnitTokens, block.count, unpacked, block.units);
      for (uint32_t u = block.count; u < kBlockUnits; ++u) {
        block.units[u] = block.units[block.count - 1];
      }
      return block;
    }
  }
  if (IsPartOfUnit(args.shape)) {
    JoinUnits<Page>(args.shape, args.slab, args.view, first_token, block.tokens, unpacked,
                    block.units);
    for (uint32_t u = block.count; u < kBlockUnits; ++u) {
      block.units[u] = block.units[block.count - 1];
    }
    return block;
  }
  for (uint32_t u = 0; u < kBlockUnits; ++u) {
    const uint32_t unit = first_token / kUnitTokens + Smaller(u, block.count - 1);
    block.units[u] = UnitAt<Page>(args.shape, args.slab, args.view, unit);
  }
  return block;
}

// Bytes of a page that a step over kVectors vectors reads, and so prefetches.
template <class Page, uint32_t kVectors>
constexpr uint32_t kStepBytes = kVectors* kLanes * sizeof(typename Page::Elem);

// Vectors of tokens that a pass over kHeads heads takes at a time: what the registers hold.
template <uint32_t kHeads>
constexpr uint32_t kStripVectors = kLanes == 16  ? 4
                                   : kHeads <= 3 ? 4
                                                 : 2;

// acc[h][i] += factors[h * stride] * load(i).
template <uint32_t kHeads, uint32_t kVectors, class LoadVector>
TS_INLINE void AddProducts(const float* factors, uint32_t stride, const LoadVector& load,
                           VF (&acc)[kHeads][kVectors]) {
  // What there is less of is held while the other goes by: with 12 sums that leaves no register.
  if constexpr (kHeads <= kVectors) {
    VF factor[kHeads];
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) factor[h] = Broadcast(factors + h * stride);
    TS_UNROLL for (uint32_t i = 0; i < kVectors; ++i) {
      const VF x = load(i);
      TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) acc[h][i] = Fma(x, factor[h], acc[h][i]);
    }
  } else {
    VF x[kVectors];
    TS_UNROLL for (uint32_t i = 0; i < kVectors; ++i) x[i] = load(i);
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      const VF factor = Broadcast(factors + h * stride);
      TS_UNROLL for (uint32_t i = 0; i < kVectors; ++i) acc[h][i] = Fma(x[i], factor, acc[h][i]);
    }
  }
}

// Logits of kHeads heads for one strip of tokens.
template <class Page, uint32_t kHeads>
TS_INLINE void StripLogits(const Unit<Page>* units, uint32_t dim, uint32_t stride, const float* q,
                           LinesAhead& ahead, bool first_pass, float* logits) {
  using Elem = typename Page::Elem;
  constexpr uint32_t kVectors = kStripVectors<kHeads>;
  constexpr uint32_t kUnits = kVectors * kLanes / kUnitTokens;
  constexpr uint32_t kPerUnit = kUnitTokens / kLanes;
  VF acc[kHeads][kVectors];
  const Elem* k[kUnits];
  for (uint32_t h = 0; h < kHeads; ++h) {
    for (uint32_t i = 0; i < kVectors; ++i) acc[h][i] = Zero();
  }
  for (uint32_t u = 0; u < kUnits; ++u) k[u] = units[u].k;
  for (uint32_t c = 0; c < dim; ++c) {
    PrefetchAhead<kStepBytes<Page, kVectors>>(ahead, first_pass);
    const auto keys = [&](uint32_t i) __attribute__((always_inline)) {
      return Page::LoadLanes(k[i / kPerUnit] + i % kPerUnit * kLanes);
    };
    AddProducts<kHeads, kVectors>(q, 1, keys, acc);
    for (uint32_t u = 0; u < kUnits; ++u) k[u] += stride;
    q += kHeads;
  }
  for (uint32_t h = 0; h < kHeads; ++h) {
    for (uint32_t i = 0; i < kVectors; ++i) {
      Store(logits + h * kBlockTokens + i * kLanes, acc[h][i]);
    }
  }
}

template <class Page, uint32_t kHeads>
void BlockLogits(const Block<Page>& block, uint32_t dim, uint32_t stride, const float* q,
                 LinesAhead* ahead, bool first_pass, float* logits) {
  constexpr uint32_t kTokens = kStripVectors<kHeads> * kLanes;
  LinesAhead lines = *ahead;
  for (uint32_t t = 0; t < block.tokens; t += kTokens) {
    StripLogits<Page, kHeads>(block.units + t / kUnitTokens, dim, stride, q, lines, first_pass,
                              logits + t);
  }
  *ahead = lines;
}

// Moves the running maxima of all heads, and says what that makes of their sums. Lanes past the
// block's tokens become -inf. Sums and maxima over lanes are made of four heads together.
TS_INLINE void MoveBlockMaxima(const DecodeScratch& s, uint32_t group, uint32_t tokens) {
  const VF lowest = Set(-__builtin_inff());
  for (uint32_t first = 0; first < group; first += 4) {
    VF top[4] = {lowest, lowest, lowest, lowest};
    for (uint32_t h = first; h < Smaller(first + 4, group); ++h) {
      float* logits = s.logits + (uint64_t)h * kBlockTokens;
      if (tokens < kBlockTokens) {
        for (uint32_t t = tokens / kLanes * kLanes; t < kBlockTokens; t += kLanes) {
          const uint32_t n = tokens > t ? tokens - t : 0;
          Store(logits + t, SelectFirst(n, Load(logits + t), lowest));
        }
      }
      VF& of_head = top[h - first];
      TS_UNROLL for (uint32_t t = 0; t < kBlockTokens; t += kLanes) {
        of_head = Max(of_head, Load(logits + t));
      }
    }
    const V4 before = _mm_loadu_ps(s.m + first), m = _mm_max_ps(FoldFour<MaxOp>(top), before);
    _mm_storeu_ps(s.m + first, m);
    _mm_storeu_ps(s.rescale + first, _mm_sub_ps(before, m));
  }
  for (uint32_t h = 0; h < group; h += kLanes) {
    Store(s.rescale + h, ExpTwo<6>(Load(s.rescale + h)));
  }
}

// Turns the logits of all heads into weights, and adds them to their sums.
TS_INLINE void WeighBlock(const DecodeScratch& s, uint32_t group) {
  for (uint32_t first = 0; first < group; first += 4) {
    VF sum[4] = {Zero(), Zero(), Zero(), Zero()};
    for (uint32_t h = first; h < Smaller(first + 4, group); ++h) {
      float* logits = s.logits + (uint64_t)h * kBlockTokens;
      const VF m = Set(s.m[h]);
      VF& of_head = sum[h - first];
      TS_UNROLL for (uint32_t t = 0; t < kBlockTokens; t += kLanes) {
        const VF p = ExpTwo<6>(Sub(Load(logits + t), m));
        Store(logits + t, p);
        of_head = Add(of_head, p);
      }
    }
    const V4 d = _mm_mul_ps(_mm_loadu_ps(s.d + first), _mm_loadu_ps(s.rescale + first));
    _mm_storeu_ps(s.d + first, _mm_add_ps(d, FoldFour<SumOp>(sum)));
  }
}

// o = o * rescale + weights * V for kVectors vectors of channels of kHeads heads.
template <class Page, uint32_t kHeads, uint32_t kVectors>
TS_INLINE void ColumnValues(const Block<Page>& block, uint32_t v_stride, uint32_t channel,
                            const float* weights, const float* rescale, LinesAhead& ahead,
                            bool first_pass, float* o) {
  VF acc[kHeads][kVectors];
  for (uint32_t h = 0; h < kHeads; ++h) {
    for (uint32_t i = 0; i < kVectors; ++i) {
      acc[h][i] = Mul(Load(o + h * v_stride + channel + i * kLanes), Set(rescale[h]));
    }
  }
  for (uint32_t u = 0; u < block.count; ++u) {
    const typename Page::Elem* v = block.units[u].v + channel;
    const float* w = weights + u * kUnitTokens;
    const uint32_t rows = Smaller(kUnitTokens, block.tokens - u * kUnitTokens);
    for (uint32_t t = 0; t < rows; ++t) {
      PrefetchAhead<kStepBytes<Page, kVectors>>(ahead, first_pass);
      const auto values = [&](uint32_t i) __attribute__((always_inline)) {
        return Page::LoadLanes(v + i * kLanes);
      };
      AddProducts<kHeads, kVectors>(w + t, kBlockTokens, values, acc);
      v += v_stride;
    }
  }
  for (uint32_t h = 0; h < kHeads; ++h) {
    for (uint32_t i = 0; i < kVectors; ++i) {
      Store(o + h * v_stride + channel + i * kLanes, acc[h][i]);
    }
  }
}

template <class Page, uint32_t kHeads>
void BlockValues(const Block<Page>& block, uint32_t v_stride, const float* weights,
                 const float* rescale, LinesAhead* ahead, bool first_pass, float* o) {
  constexpr uint32_t kVectors = kStripVectors<kHeads>;
  LinesAhead lines = *ahead;
  uint32_t c = 0;
  for (; c + kVectors * kLanes <= v_stride; c += kVectors * kLanes) {
    ColumnValues<Page, kHeads, kVectors>(block, v_stride, c, weights, rescale, lines, first_pass,
                                         o);
  }
  for (; c < v_stride; c += kLanes) {
    ColumnValues<Page, kHeads, 1>(block, v_stride, c, weights, rescale, lines, first_pass, o);
  }
  *ahead = lines;
}

// Calls f with the number of heads of the pass that begins at `head`, as a constant, and returns
// it.
template <class F>
TS_INLINE uint32_t WithHeads(uint32_t left, F f) {
  // 7 heads are taken as 4 + 3 and 8 as 5 + 3: few heads have too few sums to hide a latency.
  const uint32_t heads = left <= kHeadsMax ? left : left <= 8 ? left - 3 : kHeadsMax;
  switch (heads) {
    case 1:
      f.template operator()<1>();
      break;
    case 2:
      f.template operator()<2>();
      break;
    case 3:
      f.template operator()<3>();
      break;
    case 4:
      f.template operator()<4>();
      break;
    case 5:
      f.template operator()<5>();
      break;
    case 6:
      f.template operator()<6>();
      break;
  }
  return heads;
}

// q [g][head_dim] to [head_dim][heads] of each pass, times the scale of logits in base 2.
TS_INLINE void TransposeQueries(const DecodeArgs& args, float* q) {
  const uint32_t dim = args.shape.head_dim;
  const float scale = args.scale * kLog2E;
  for (uint32_t head = 0; head < args.group;) {
    head += WithHeads(args.group - head, [&]<uint32_t kHeads>() {
      for (uint32_t c = 0; c < dim; ++c) {
        for (uint32_t h = 0; h < kHeads; ++h) {
          q[(uint64_t)head * dim + c * kHeads + h] = args.q[(uint64_t)(head + h) * dim + c] * scale;
        }
      }
    });
  }
}

// What a split's pages are to the walk over its blocks: pages of numbers, or in planes, which are
// unpacked first, ...
template <class Page>
struct NumberPages {
  const DecodeArgs& args;
  const DecodeScratch& s;
  const uint32_t tokens;
  const uint32_t dim = args.shape.head_dim, row = PaddedDim(args.shape);

  void CodeQueries() const { TransposeQueries(args, s.q); }
  TS_INLINE Block<Page> BlockFrom(uint32_t first) const {
    return BlockAt<Page>(args, first, tokens, s.pages);
  }
  template <uint32_t kHeads>
  TS_INLINE void Logits(const Block<Page>& block, uint32_t head, LinesAhead* ahead) const {
    BlockLogits<Page, kHeads>(block, dim, UnitStride(args.shape), s.q + (uint64_t)head * dim, ahead,
                              head == 0, s.logits + (uint64_t)head * kBlockTokens);
  }
  template <uint32_t kHeads>
  TS_INLINE void Values(const Block<Page>& block, uint32_t head, LinesAhead* ahead) const {
    BlockValues<Page, kHeads>(block, row, s.logits + (uint64_t)head * kBlockTokens,
                              s.rescale + head, ahead, head == 0, s.o + (uint64_t)head * row);
  }
};

// ... or pages of codes within ranges. The queries of the next block are scaled between its weights
// and its values: neither waits for the other, and bytes that are read right after vectors of them
// were written would wait for the writes to settle.
template <uint32_t kKeyBits, uint32_t kValueBits>
struct RangedPages {
  struct Blocks {
    RangedBlock now, next;
  };

  const DecodeArgs& args;
  const DecodeScratch& s;
  const uint32_t tokens;
  const RangesLayout at = RangesLayoutOf(args.shape.type, args.shape.head_dim);
  const uint32_t row = at.channels, words = RangedQueryWords(args.shape.head_dim);

  void CodeQueries() const {
    const uint32_t dim = args.shape.head_dim;
    PrefetchRanges(0);
    PrefetchRanges(kBlockUnits);
    for (uint32_t h = 0; h < args.group; ++h) {
      const float unit = CodeQuery(args.q + (uint64_t)h * dim, dim, words, kWordTop,
                                   s.words + (uint64_t)h * words);
      s.q_scale[h] = args.scale * kLog2E * unit;
    }
    const RangedBlock block = At(0);
    for (uint32_t head = 0; head < args.group;) {
      head += WithHeads(args.group - head, [&]<uint32_t kHeads>() { Scale<kHeads>(block, head); });
    }
  }
  TS_INLINE const uint8_t* Range(uint32_t page) const {
    return PageAt(args.records, args.view.pages[page]) + args.layout.spread_at;
  }
  // Of the block from this page on.
  TS_INLINE void PrefetchRanges(uint32_t page) const {
    for (uint32_t p = page; p < Smaller(page + kBlockUnits, args.view.count); ++p) {
      const uint8_t* range = Range(p);
      const uint32_t bytes = sizeof(RangeScales) + 2 * at.channels;
      for (uint32_t b = 0; b < bytes; b += kLineBytes) PrefetchLine(range + b);
      PrefetchLine(range + bytes - 1);
    }
  }
  TS_INLINE RangedBlock At(uint32_t first) const {
    RangedBlock block;
    const uint32_t page = first / kRangesTokens;
    block.tokens = first < tokens ? Smaller(kBlockTokens, tokens - first) : 0;
    block.count = (block.tokens + kRangesTokens - 1) / kRangesTokens;
    for (uint32_t u = 0; u < block.count; ++u) {
      block.pages[u] = PageAt(args.slab, args.view.pages[page + u]);
      block.ranges[u] = Range(page + u);
    }
    return block;
  }
  TS_INLINE Blocks BlockFrom(uint32_t first) const {
    PrefetchRanges(first / kRangesTokens + 2 * kBlockUnits);
    return {At(first), At(first + kBlockTokens)};
  }
  template <uint32_t kHeads>
  TS_INLINE void Scale(const RangedBlock& block, uint32_t head) const {
    const int16_t* q = s.words + (uint64_t)head * words;
    const auto scale = [&](uint32_t channels, uint32_t count) __attribute__((always_inline)) {
      ScaleForBlock<kHeads, kKeyBits>(block, channels, q, count, s.q_scale + head,
                                      s.queries + head);
    };
    if (at.channels == 64) return scale(64, RangedQueryWords(64));
    scale(at.channels, words);
  }
  template <uint32_t kHeads>
  TS_INLINE void Logits(const Blocks& block, uint32_t head, LinesAhead* ahead) const {
    RangedLogits<kHeads, kKeyBits>(block.now, at, s.queries + head, ahead, head == 0,
                                   s.logits + (uint64_t)head * kBlockTokens);
  }
  template <uint32_t kHeads>
  void Values(const Blocks& block, uint32_t head, LinesAhead* ahead) const {
    ValueWeights<kHeads> weights;
    CodeAllWeights<kHeads, kValueBits>(block.now, at, s.logits + (uint64_t)head * kBlockTokens,
                                       &weights);
    if (block.next.count != 0) Scale<kHeads>(block.next, head);
    RangedValues<kHeads, kValueBits>(block.now, at, weights, s.rescale + head, ahead, head == 0,
                                     s.o + (uint64_t)head * row);
  }
};

template <class Pages>
void DecodeSplit(const DecodeArgs& args, const DecodeScratch& s) {
  const uint32_t tokens = TokensOf(args.shape, args.view);
  const Pages pages{args, s, tokens};
  pages.CodeQueries();
  for (uint32_t h = 0; h < args.group; ++h) {
    s.m[h] = -__builtin_inff();
    s.d[h] = 0;
  }
  for (uint64_t i = 0; i < (uint64_t)args.group * pages.row; i += kLanes) Store(s.o + i, Zero());
  for (uint32_t first = 0; first < tokens; first += kBlockTokens) {
    const auto block = pages.BlockFrom(first);
    const uint32_t next = first + kBlockTokens;
    LinesAhead ahead = next < tokens ? PagesAhead(args.shape, args.slab, args.view, next)
                       : args.next_view.count != 0
                           ? PagesAhead(args.shape, args.next_slab, args.next_view, 0)
                           : PagesAhead(args.shape, args.slab, args.view, first);
    for (uint32_t head = 0; head < args.group;) {
      head += WithHeads(args.group - head, [&]<uint32_t kHeads>() {
        pages.template Logits<kHeads>(block, head, &ahead);
      });
    }
    MoveBlockMaxima(s, args.group, Smaller(kBlockTokens, tokens - first));
    WeighBlock(s, args.group);
    for (uint32_t head = 0; head < args.group;) {
      head += WithHeads(args.group - head, [&]<uint32_t kHeads>() {
        pages.template Values<kHeads>(block, head, &ahead);
      });
    }
  }
  for (uint32_t h = 0; h < args.group; ++h) {
    args.out.m[h] = s.m[h] * kLn2;
    args.out.d[h] = s.d[h];
    const uint32_t dim = args.shape.head_dim;
    for (uint32_t c = 0; c < dim; c += kLanes) {
      StoreFirst(args.out.o + (uint64_t)h * dim + c, Smaller(kLanes, dim - c),
                 Load(s.o + (uint64_t)h * pages.row + c));
    }
  }
}

// Lays the scratch out from `at`; returns its bytes. Null `at`: only the bytes.
TS_INLINE uint64_t LayDecodeScratch(const KvShape& shape, uint32_t group, void* at,
                                    DecodeScratch* out) {
  const uint64_t heads = RoundUp(group, kLanes);
  uint64_t bytes = 0;
  const auto take = [&](auto** field, uint64_t count) {
    *field = (__decltype(*field + 0))((uintptr_t)at + bytes);
    bytes += (count * sizeof(**field) + kLineBytes - 1) / kLineBytes * kLineBytes;
  };
  take(&out->q, heads * shape.head_dim);
  take(&out->logits, heads * kBlockTokens);
  take(&out->o, heads * RoundUp(shape.head_dim, 16));
  take(&out->m, heads);
  take(&out->d, heads);
  take(&out->rescale, heads);
  const bool unpacks = shape.type == KvType::kPlanes || IsPartOfUnit(shape);
  take(&out->pages, unpacks ? UnpackedFloats(shape.head_dim) : 0);
  take(&out->words, IsRanged(shape.type) ? group * RangedQueryWords(shape.head_dim) : 0);
  take(&out->q_scale, heads);
  take(&out->queries, IsRanged(shape.type) ? group : 0);
  return bytes;
}

// ---- entries of the table ----

uint64_t DecodeScratchBytes(const KvShape* shape, uint32_t group, uint32_t) {
  DecodeScratch unused;
  return LayDecodeScratch(*shape, group, nullptr, &unused);
}

void AttendDecode(const DecodeArgs* args) {
  DecodeScratch s;
  LayDecodeScratch(args->shape, args->group, args->scratch, &s);
  switch (args->shape.type) {
    case KvType::kF16:
      return DecodeSplit<NumberPages<PageF16>>(*args, s);
    case KvType::kBF16:
      return DecodeSplit<NumberPages<PageBF16>>(*args, s);
    case KvType::kInt8:
      return DecodeSplit<RangedPages<8, 8>>(*args, s);
    case KvType::kK8V4:
      return DecodeSplit<RangedPages<8, 4>>(*args, s);
    case KvType::kInt4:
      return DecodeSplit<RangedPages<4, 4>>(*args, s);
    default:  // f32, or unpacked to f32
      return DecodeSplit<NumberPages<PageF32>>(*args, s);
  }
}

void MergePartials(const Partial* partials, uint32_t n, uint32_t group, uint32_t head_dim,
                   float* out) {
  for (uint32_t h = 0; h < group; ++h) {
    float* result = out + (uint64_t)h * head_dim;
    for (uint32_t c = 0; c < head_dim; ++c) result[c] = 0;
    float m = -__builtin_inff();
    for (uint32_t i = 0; i < n; ++i) m = partials[i].m[h] > m ? partials[i].m[h] : m;
    float d = 0;
    for (uint32_t i = 0; i < n; ++i) {
      if (partials[i].d[h] == 0) continue;  // empty: -inf less -inf is no number
      const VF weight = Exp(Set(partials[i].m[h] - m));
      float lanes[kLanes];
      Store(lanes, weight);
      d += lanes[0] * partials[i].d[h];
      const float* o = partials[i].o + (uint64_t)h * head_dim;
      for (uint32_t c = 0; c < head_dim; c += kLanes) {
        const uint32_t lane_count = Smaller(kLanes, head_dim - c);
        const VF sum = Fma(LoadFirst(o + c, lane_count), weight, LoadFirst(result + c, lane_count));
        StoreFirst(result + c, lane_count, sum);
      }
    }
    if (d == 0) continue;
    for (uint32_t c = 0; c < head_dim; ++c) result[c] /= d;
  }
}

}  // namespace
}  // namespace tinyserve
