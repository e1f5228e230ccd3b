// Decode attention: the g query heads of one KV head over one split, memory once through.
//
// Blocks of 64 tokens with a running maximum. Logits of a block go to scratch, then its values are
// weighed. While K of a block is read, its V is prefetched line by line, and while V is read, K of
// the next block: a page is shorter than what the hardware prefetcher needs to start. Heads are
// taken up to four at a time, each number of them a kernel of its own.
#include "kernels/cpu/attention_page.inl"

namespace tinyserve {
namespace {

constexpr uint32_t kBlockTokens = 64;
constexpr uint32_t kBlockUnits = kBlockTokens / kUnitTokens;
constexpr uint32_t kHeadsMax = 4;  // of one pass

// Scratch of a decode call. Shapes: g heads padded to kHeadsMax more.
struct DecodeScratch {
  float* q;        // per pass [head_dim][heads of the pass], scaled; pass of head h at h * head_dim
  float* logits;   // [g][kBlockTokens], then the weights
  float* o;        // [g][padded dim]
  float* m;        // [g]
  float* d;        // [g]
  float* rescale;  // [g] what the block's new maximum makes of o and d
};

template <class Page>
struct Block {
  Unit<Page> units[kBlockUnits];
  uint32_t count;   // units that exist; the others repeat the last one
  uint32_t tokens;  // of the block
};

template <class Page>
TS_INLINE Block<Page> BlockAt(const DecodeArgs& args, uint32_t first_token, uint32_t tokens) {
  Block<Page> block;
  block.tokens = Smaller(kBlockTokens, tokens - first_token);
  block.count = (block.tokens + kUnitTokens - 1) / kUnitTokens;
  for (uint32_t u = 0; u < kBlockUnits; ++u) {
    const uint32_t unit = first_token / kUnitTokens + Smaller(u, block.count - 1);
    block.units[u] = UnitAt<Page>(args.shape, args.slab, args.view, unit);
  }
  return block;
}

// Vectors of tokens that a pass over kHeads heads takes at a time: what the registers hold.
template <uint32_t kHeads>
constexpr uint32_t kStripVectors = kLanes == 16  ? 4
                                   : kHeads <= 3 ? 4
                                                 : 2;

// Logits of kHeads heads for one strip of tokens; prefetches the strip's values as it goes.
template <class Page, uint32_t kHeads>
TS_INLINE void StripLogits(const Unit<Page>* units, uint32_t dim, uint32_t stride, const float* q,
                           float* logits) {
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
  // Half of the channels prefetch the values of half of the units: two channels of a unit's tokens
  // are a line of f16 or two of f32, and so are two of its values' channels.
  constexpr uint32_t kAhead = kUnits > 1 ? kUnits / 2 : 1;
  constexpr uint32_t kAheadBytes = (kUnits > 1 ? 2 : 1) * kUnitTokens * sizeof(Elem);
  for (uint32_t half = 0; half < 2; ++half) {
    const char* v[kAhead];
    for (uint32_t u = 0; u < kAhead; ++u) v[u] = (const char*)units[half * (kUnits / 2) + u].v;
    if (kUnits == 1) v[0] += half * (dim / 2) * kAheadBytes;
    const uint32_t channels = half == 0 ? dim / 2 : dim - dim / 2;
#pragma GCC unroll 1
    for (uint32_t c = 0; c < channels; ++c) {
#pragma GCC unroll 4
      for (uint32_t u = 0; u < kAhead; ++u) {
        for (uint32_t b = 0; b < kAheadBytes; b += kLineBytes) PrefetchLine(v[u] + b);
        v[u] += kAheadBytes;
      }
      VF qc[kHeads];
#pragma GCC unroll 4
      for (uint32_t h = 0; h < kHeads; ++h) qc[h] = Broadcast(q + h);
#pragma GCC unroll 8
      for (uint32_t i = 0; i < kVectors; ++i) {
        const VF x = Page::LoadLanes(k[i / kPerUnit] + i % kPerUnit * kLanes);
#pragma GCC unroll 4
        for (uint32_t h = 0; h < kHeads; ++h) acc[h][i] = Fma(x, qc[h], acc[h][i]);
      }
      for (uint32_t u = 0; u < kUnits; ++u) k[u] += stride;
      q += kHeads;
    }
  }
  for (uint32_t h = 0; h < kHeads; ++h) {
    for (uint32_t i = 0; i < kVectors; ++i) {
      Store(logits + h * kBlockTokens + i * kLanes, acc[h][i]);
    }
  }
}

template <class Page, uint32_t kHeads>
void BlockLogits(const Block<Page>& block, uint32_t dim, uint32_t stride, const float* q,
                 float* logits) {
  constexpr uint32_t kTokens = kStripVectors<kHeads> * kLanes;
  for (uint32_t t = 0; t < block.tokens; t += kTokens) {
    StripLogits<Page, kHeads>(block.units + t / kUnitTokens, dim, stride, q, logits + t);
  }
}

// Turns the logits of head h into weights, and moves its running maximum and sum.
TS_INLINE void BlockSoftmax(const DecodeScratch& s, uint32_t h, uint32_t tokens) {
  float* logits = s.logits + (uint64_t)h * kBlockTokens;
  const VF lowest = Set(-__builtin_inff());
  VF top = lowest;
  for (uint32_t t = 0; t < kBlockTokens; t += kLanes) {
    const uint32_t n = tokens > t ? Smaller(tokens - t, kLanes) : 0;
    const VF x = SelectFirst(n, Load(logits + t), lowest);
    Store(logits + t, x);
    top = Max(top, x);
  }
  const float block_m = MaxLanes(top);
  const float m = s.m[h] > block_m ? s.m[h] : block_m;
  VF sum = Zero();
  for (uint32_t t = 0; t < kBlockTokens; t += kLanes) {
    const VF p = Exp(Sub(Load(logits + t), Set(m)));
    Store(logits + t, p);
    sum = Add(sum, p);
  }
  float rescale[kLanes];
  Store(rescale, Exp(Set(s.m[h] - m)));
  s.rescale[h] = rescale[0];
  s.d[h] = s.d[h] * rescale[0] + SumLanes(sum);
  s.m[h] = m;
}

// o = o * rescale + weights * V for kVectors vectors of channels of kHeads heads.
template <class Page, uint32_t kHeads, uint32_t kVectors>
TS_INLINE void ColumnValues(const Block<Page>& block, const Block<Page>& next, uint32_t v_stride,
                            uint32_t channel, uint32_t prefetch_first, uint32_t prefetch_step,
                            const float* weights, const float* rescale, float* o) {
  VF acc[kHeads][kVectors];
  for (uint32_t h = 0; h < kHeads; ++h) {
    for (uint32_t i = 0; i < kVectors; ++i) {
      acc[h][i] = Mul(Load(o + h * v_stride + channel + i * kLanes), Set(rescale[h]));
    }
  }
  for (uint32_t u = 0; u < block.count; ++u) {
    const typename Page::Elem* v = block.units[u].v + channel;
    const uint8_t* ahead = (const uint8_t*)next.units[u].k_lines + prefetch_first;
    const float* w = weights + u * kUnitTokens;
    const uint32_t rows = Smaller(kUnitTokens, block.tokens - u * kUnitTokens);
    for (uint32_t t = 0; t < rows; ++t) {
      PrefetchLine(ahead);
      ahead += prefetch_step;
      VF p[kHeads];
#pragma GCC unroll 4
      for (uint32_t h = 0; h < kHeads; ++h) p[h] = Broadcast(w + h * kBlockTokens + t);
#pragma GCC unroll 8
      for (uint32_t i = 0; i < kVectors; ++i) {
        const VF x = Page::LoadLanes(v + i * kLanes);
#pragma GCC unroll 4
        for (uint32_t h = 0; h < kHeads; ++h) acc[h][i] = Fma(x, p[h], acc[h][i]);
      }
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
void BlockValues(const Block<Page>& block, const Block<Page>& next, uint32_t v_stride,
                 const float* weights, const float* rescale, float* o) {
  constexpr uint32_t kVectors = kStripVectors<kHeads>;
  // A pass over some columns of a unit's rows prefetches the same share of the next unit's K.
  const uint32_t bytes = sizeof(typename Page::Elem);
  uint32_t c = 0;
  for (; c + kVectors * kLanes <= v_stride; c += kVectors * kLanes) {
    ColumnValues<Page, kHeads, kVectors>(block, next, v_stride, c, c * bytes * kUnitTokens,
                                         kVectors * kLanes * bytes, weights, rescale, o);
  }
  for (; c < v_stride; c += kLanes) {
    ColumnValues<Page, kHeads, 1>(block, next, v_stride, c, c * bytes * kUnitTokens, kLanes * bytes,
                                  weights, rescale, o);
  }
}

// Calls f with the number of heads of the pass that begins at `head`, as a constant, and returns
// it.
template <class F>
TS_INLINE uint32_t WithHeads(uint32_t left, F f) {
  // 5 heads are taken as 3 + 2 and 6 as 3 + 3, not 4 + 1 and 4 + 2.
  const uint32_t heads = left <= kHeadsMax ? left : left <= 6 ? 3 : kHeadsMax;
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
  }
  return heads;
}

// q [g][head_dim] to [head_dim][heads] of each pass, times the scale of logits.
TS_INLINE void TransposeQueries(const DecodeArgs& args, float* q) {
  const uint32_t dim = args.shape.head_dim;
  for (uint32_t head = 0; head < args.group;) {
    head += WithHeads(args.group - head, [&]<uint32_t kHeads>() {
      for (uint32_t c = 0; c < dim; ++c) {
        for (uint32_t h = 0; h < kHeads; ++h) {
          q[(uint64_t)head * dim + c * kHeads + h] =
              args.q[(uint64_t)(head + h) * dim + c] * args.scale;
        }
      }
    });
  }
}

template <class Page>
void DecodeSplit(const DecodeArgs& args, const DecodeScratch& s) {
  const uint32_t tokens = TokensOf(args.shape, args.view);
  const uint32_t dim = args.shape.head_dim, v_stride = PaddedDim(args.shape);
  TransposeQueries(args, s.q);
  for (uint32_t h = 0; h < args.group; ++h) {
    s.m[h] = -__builtin_inff();
    s.d[h] = 0;
  }
  for (uint64_t i = 0; i < (uint64_t)args.group * v_stride; i += kLanes) Store(s.o + i, Zero());
  if (tokens == 0) return;
  Block<Page> block = BlockAt<Page>(args, 0, tokens);
  for (uint32_t first = 0; first < tokens; first += kBlockTokens) {
    for (uint32_t head = 0; head < args.group;) {
      head += WithHeads(args.group - head, [&]<uint32_t kHeads>() {
        BlockLogits<Page, kHeads>(block, dim, args.shape.page_tokens, s.q + (uint64_t)head * dim,
                                  s.logits + (uint64_t)head * kBlockTokens);
      });
    }
    for (uint32_t h = 0; h < args.group; ++h) BlockSoftmax(s, h, block.tokens);
    const bool last = first + kBlockTokens >= tokens;
    const Block<Page> next = last ? block : BlockAt<Page>(args, first + kBlockTokens, tokens);
    for (uint32_t head = 0; head < args.group;) {
      head += WithHeads(args.group - head, [&]<uint32_t kHeads>() {
        BlockValues<Page, kHeads>(block, next, v_stride, s.logits + (uint64_t)head * kBlockTokens,
                                  s.rescale + head, s.o + (uint64_t)head * v_stride);
      });
    }
    block = next;
  }
}

// Lays the scratch out from `at`; returns its bytes. Null `at`: only the bytes.
TS_INLINE uint64_t LayDecodeScratch(const KvShape& shape, uint32_t group, void* at,
                                    DecodeScratch* out) {
  const uint64_t heads = RoundUp(group, kLanes);
  uint64_t bytes = 0;
  const auto take = [&](float** field, uint64_t floats) {
    *field = (float*)((uintptr_t)at + bytes);
    bytes += (floats * sizeof(float) + kLineBytes - 1) / kLineBytes * kLineBytes;
  };
  take(&out->q, heads * shape.head_dim);
  take(&out->logits, heads * kBlockTokens);
  take(&out->o, heads * PaddedDim(shape));
  take(&out->m, heads);
  take(&out->d, heads);
  take(&out->rescale, heads);
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
    case KvType::kF32:
      DecodeSplit<PageF32>(*args, s);
      break;
    case KvType::kF16:
      DecodeSplit<PageF16>(*args, s);
      break;
    case KvType::kBF16:
      DecodeSplit<PageBF16>(*args, s);
      break;
  }
  const uint32_t dim = args->shape.head_dim, v_stride = PaddedDim(args->shape);
  for (uint32_t h = 0; h < args->group; ++h) {
    args->out.m[h] = s.m[h];
    args->out.d[h] = s.d[h];
    for (uint32_t c = 0; c < dim; c += kLanes) {
      StoreFirst(args->out.o + (uint64_t)h * dim + c, Smaller(kLanes, dim - c),
                 Load(s.o + (uint64_t)h * v_stride + c));
    }
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
