// The cascade over coded pages: pages, then tokens, then the rest by its mean.
// docs/kernels/cascade.md has the limits, the figures and what was tried.
#include "kernels/cpu/cascade_call.inl"
#include "kernels/cpu/cascade_values.inl"

namespace tinyserve {
namespace {

// ---- 1: pages ----

// Sums of q * mean of some pages.
template <uint32_t kHeads>
TS_INLINE void MeanSums(const uint8_t* const* spread, uint32_t channels, const int16_t* q,
                        VI (&dots)[kHeads][kPagesScored]) {
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
    TS_UNROLL for (uint32_t i = 0; i < kPagesScored; ++i) dots[h][i] = ZeroInt();
  }
  for (uint32_t c = 0; c < channels; c += kWordLanes) {
    TS_UNROLL for (uint32_t i = 0; i < kPagesScored; ++i) {
      const VI mean = LoadWordsSigned(spread[i] + sizeof(SpreadScales) + c, channels - c);
      TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
        dots[h][i] = DotInt16(dots[h][i], mean, LoadInt(q + (uint64_t)h * channels + c));
        Pin(dots[h][i]);
      }
    }
  }
}

// Where the records of all pages lie.
TS_PHASE void FindSpreads(const CascadeCall& call) {
  const KvSlab slab = call.args.records;
  const uint32_t count = call.args.count, at = call.args.layout.spread_at;
  const uint32_t* pages = call.args.pages;
  const uint8_t** spread = call.s.spread;
  for (uint32_t p = 0; p < count; ++p) {
    spread[p] = PageAt(slab, pages[p]) + at;
    if (p < kRecordsAhead) {
      PrefetchLine(spread[p]);
      PrefetchLine(spread[p] + kLineBytes);
    }
  }
  for (uint32_t p = count; p < count + kPagesScored + kRecordsAhead; ++p) {
    spread[p] = spread[count - 1];
  }
}

// Sums for the scores of all pages, for kHeads heads from `head` on.
template <uint32_t kHeads, uint32_t kChannels>
TS_PHASE void ScoreSpreads(const CascadeCall& call, uint32_t head) {
  constexpr uint32_t kPages = kPagesScored;
  const CascadeScratch& s = call.s;
  const uint32_t channels = kChannels != 0 ? kChannels : call.at.channels;
  const uint32_t count = call.args.count;
  const int16_t* q = s.q + (uint64_t)head * channels;
  for (uint32_t p = 0; p < count; p += kPages) {
    TS_UNROLL for (uint32_t i = 0; i < kPages; ++i) {
      const uint8_t* spread = s.spread[p + i];
      const uint8_t* ahead = s.spread[p + i + kRecordsAhead];
      PrefetchLine(ahead);
      PrefetchLine(ahead + kLineBytes);
      SpreadScales of_page;
      __builtin_memcpy(&of_page, spread, sizeof of_page);
      s.mean_scale[p + i] = of_page.mean;
      s.radius[p + i] = of_page.radius;
    }
    VI dots[kHeads][kPages];
    MeanSums<kHeads>(s.spread + p, channels, q, dots);
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      _mm_storeu_si128((__m128i*)(s.mean_dot + (head + h) * s.pages + p),
                       FoldFourInt(dots[h][0], dots[h][1], dots[h][2], dots[h][3]));
    }
  }
}

// Turns one head's sums into q.mean and scores, -inf past the last page. Returns the best score.
TS_INLINE float FinishScores(const CascadeCall& call, uint32_t h) {
  const CascadeScratch& s = call.s;
  const VF dot_scale = Set(s.q_scale[h]), far_scale = Set(s.q_far[h]);
  const VF lowest = Set(-__builtin_inff());
  VF top = lowest;
  for (uint32_t p = 0; p < call.args.count; p += kLanes) {
    float* dots = s.mean_dot + h * s.pages + p;
    float* scores = s.scores + h * s.pages + p;
    const VF dot = Mul(Mul(ToFloat(LoadInt(dots)), Load(s.mean_scale + p)), dot_scale);
    const VF highest = Fma(Load(s.radius + p), far_scale, dot);
    const VF score = SelectFirst(Smaller(call.args.count - p, kLanes), highest, lowest);
    Store(dots, dot);
    Store(scores, score);
    top = Max(top, score);
  }
  return MaxLanes(top);
}

// The n largest of some ranks: all above the threshold, and the first `ties` of those at it.
struct RankCut {
  uint32_t threshold, ties;
};

// How many ranks are `least` or more. Whole vectors are read: ranks past `count` are 0.
template <class T>
TS_INLINE uint32_t CountAtLeast(const T* ranks, uint32_t count, uint32_t least) {
  constexpr uint32_t kPerVector = kVectorBytes / sizeof(T);
  // Counts of a byte's lane stay below 256.
  constexpr uint32_t kStretch = 252 * kPerVector;
  const VI leasts = sizeof(T) == 1 ? SetByte((int8_t)least) : SetInt16((int16_t)least);
  VI sums = ZeroInt();
  for (uint32_t begin = 0; begin < count; begin += kStretch) {
    const uint32_t end = Smaller(count, begin + kStretch);
    VI lanes = ZeroInt();
#pragma GCC unroll 4
    for (uint32_t i = begin; i < end; i += kPerVector) {
      const VI x = LoadInt(ranks + i);
      lanes = sizeof(T) == 1 ? CountBytesAtLeast(lanes, x, leasts)
                             : CountWordsAtLeast(lanes, x, leasts);
    }
    sums = AddInt64(sums, SumBytes(lanes));
  }
  // Sums of a call's tokens fit 32 bits: the upper halves are 0.
  return (uint32_t)SumLanesInt(sums);
}

// REQUIRES: 0 < n <= count.
template <class T>
TS_INLINE RankCut CutRanks(const T* ranks, uint32_t count, uint32_t n) {
  uint32_t threshold = 0, above = 0;
  for (uint32_t bit = 1u << (8 * sizeof(T) - 1); bit != 0; bit >>= 1) {
    const uint32_t tried = threshold | bit;
    const uint32_t reached = CountAtLeast(ranks, count, tried);
    if (reached >= n) {
      threshold = tried;
    } else {
      above = reached;  // the last one that is too large is the threshold's successor
    }
  }
  return {threshold, n - above};
}

// Marks those of largest rank, sixteen at a time in order, the first of equals: n of them at most,
// and none of a rank below `least`. Ranks that are given are at least 1 where `least` is.
template <class T>
struct RankChoice {
  RankCut cut;

  TS_PHASE RankChoice(const T* ranks, uint32_t count, uint32_t n, uint32_t least)
      : cut{least, UINT32_MAX} {
    if (n >= count) return;
    // Most often few reach it: then one pass does for the eight that look for a threshold.
    if (least > 0 && CountAtLeast(ranks, count, least) <= n) return;
    cut = n == 0 ? RankCut{(T)~0u, 0} : CutRanks<T>(ranks, count, n);
  }

  TS_INLINE uint32_t Mask(const T* ranks) {
    const uint32_t chosen = AtLeastOfSixteen(ranks, (T)cut.threshold);
    const uint32_t tied = EqualOfSixteen(ranks, (T)cut.threshold);
    const uint32_t kept = _pdep_u32((1u << Smaller(cut.ties, 16)) - 1, tied);
    cut.ties -= (uint32_t)__builtin_popcount(kept);
    return chosen ^ tied ^ kept;
  }
};

TS_PHASE uint32_t ChooseCandidates(const CascadeCall& call) {
  const CascadeScratch& s = call.s;
  const uint32_t count = call.args.count, padded = RoundUp(count, kWordLanes);
  for (uint32_t h = 0; h < call.args.group; ++h) {
    float* row = s.scores + h * s.pages;
    const VF highest = Set(FinishScores(call, h));
    for (uint32_t p = RoundUp(count, kLanes); p < padded; ++p) row[p] = -__builtin_inff();
    VF sum = Zero();
    for (uint32_t p = 0; p < padded; p += kLanes) {
      const VF e = ExpTwo<6>(Sub(Load(row + p), highest));
      Store(row + p, e);
      sum = Add(sum, e);
    }
    const VF scale = Set(1.0f / SumLanes(sum));
    for (uint32_t p = 0; p < padded; p += kLanes) {
      const VF share = Mul(Load(row + p), scale);
      Store(s.scores + p, h == 0 ? share : Add(Load(s.scores + p), share));
    }
  }
  if (call.args.candidates >= count) {
    for (uint32_t p = 0; p < count; ++p) s.candidates[p] = p;
    return count;
  }
  for (uint32_t p = 0; p < padded; p += kLanes) {
    StoreWords((int16_t*)s.page_rank + p, ShiftRight((VI)Load(s.scores + p), 16));
  }
  for (uint32_t p = count; p < padded; ++p) s.page_rank[p] = 0;
  for (uint32_t p = 0; p < call.args.sink; ++p) s.page_rank[p] = 0xffff;
  for (uint32_t p = count - call.args.recent; p < count; ++p) s.page_rank[p] = 0xffff;
  RankChoice<uint16_t> choice(s.page_rank, count, call.args.candidates, 0);
  uint32_t n = 0;
  for (uint32_t p = 0; p < count; p += 16) {
    const uint32_t mask = choice.Mask(s.page_rank + p);
    VI pages[kTokenVectors];
    CountFrom(p, pages);
    StoreChosen(mask, pages, s.candidates + n);
    n += (uint32_t)__builtin_popcount(mask);
  }
  return n;
}

// ---- 2: approximate logits ----

// What of a candidate gives approximate logits: the upper plane, distances and their scale, and
// with them the mean value and the other scales, which are read later.
TS_INLINE void PrefetchUpper(const uint8_t* page, uint32_t low_at) {
  for (uint32_t b = 0; b < low_at; b += kLineBytes) PrefetchLine(page + b);
}

// Where the candidates lie. The first of them are asked for here: nothing else would.
TS_PHASE void FindCandidates(const CascadeCall& call) {
  const CascadeScratch& s = call.s;
  for (uint32_t i = 0; i < kCandidatesAhead; ++i) {
    s.candidates[call.candidates + i] = s.candidates[call.candidates - 1];
  }
  for (uint32_t i = 0; i < call.candidates + kCandidatesAhead; ++i) {
    s.page[i] = call.Page(s.candidates[i]);
    if (i < kCandidatesAhead) PrefetchUpper(s.page[i], call.at.low_at);
  }
}

// c + the four products u8 * s8 of each lane, of which pairs are summed apart on a target without
// byte dots.
TS_INLINE VI AddUpperProducts(VI c, VI upper, VI q) {
  return kHasByteDot ? DotBytes(c, upper, q) : AddInt16(c, PairDot(upper, q));
}
TS_INLINE VI WidenUpperSums(VI sums) {
  return kHasByteDot ? sums : DotInt16(ZeroInt(), sums, SetInt16(1));
}

// Where the four bytes of channels 16 * group .. + 3 lie, as int32, once two vectors of words are
// packed to bytes; those of the next channels follow at PackedNext.
TS_INLINE constexpr uint32_t PackedDword(uint32_t group) {
  const uint32_t channel = group * 16, block = channel / (2 * kWordLanes) * (kWordLanes / 2);
  return block + channel % kWordLanes / 8 * 4 + channel / kWordLanes % 2 * 2;
}
TS_INLINE constexpr uint32_t PackedNext(uint32_t i) { return i / 2 * 4 + i % 2; }

// What turns a page's upper codes into logits: x = sum of codes * q8 * step + base by head.
template <uint32_t kHeads>
struct ScaledQueries {
  alignas(64) int8_t q8[kHeads][kPlanesHeadDimMax];  // in the order of PackedDword
  float step[4], base[4];
};

// q times the page's distances over 2^15 as bytes. mean_dots: of the page, by head. scales: what a
// sum of codes times q8 is worth, for a page whose distances have a scale of 1.
template <uint32_t kHeads>
TS_INLINE void ScaleQueries(const uint8_t* page, const PlanesLayout& at, const int16_t* q,
                            V4 mean_dots, V4 scales, ScaledQueries<kHeads>* out) {
  const uint8_t* distances = page + at.distances_at;
  const uint32_t channels = at.channels;
  VI total[4];
  TS_UNROLL for (uint32_t h = 0; h < 4; ++h) total[h] = ZeroInt();
  for (uint32_t c = 0; c < channels; c += 2 * kWordLanes) {
    const uint32_t left = channels - c;
    const bool second = left > kWordLanes;
    const VI low = LoadWordsUnsigned(distances + c, left);
    const VI high =
        second ? LoadWordsUnsigned(distances + c + kWordLanes, left - kWordLanes) : ZeroInt();
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      const int16_t* codes = q + (uint64_t)h * channels + c;
      const VI bytes = PackWords(MulHighWords(LoadInt(codes), low),
                                 MulHighWords(LoadInt(codes + (second ? kWordLanes : 0)), high));
      StoreInt(out->q8[h] + c, bytes);
      if constexpr (kHasByteDot) {
        total[h] = DotBytes(total[h], SetByte(1), bytes);
      } else {
        total[h] = DotInt16(total[h], PairDot(SetByte(1), bytes), SetInt16(1));
      }
    }
  }
  const V4 totals = _mm_cvtepi32_ps(FoldFourInt(total[0], total[1], total[2], total[3]));
  const V4 steps = _mm_mul_ps(scales, _mm_set1_ps(DistanceScale(page, at)));
  _mm_storeu_ps(out->step, steps);
  _mm_storeu_ps(out->base, _mm_fnmadd_ps(_mm_mul_ps(steps, totals), _mm_set1_ps(1.5f), mean_dots));
}

// Sums over channels of the page's upper codes (0 .. 3) times q8, by token.
template <uint32_t kHeads, uint32_t kChannels>
TS_INLINE void UpperSums(const uint8_t* upper, uint32_t runtime_channels,
                         const int8_t (*q8)[kPlanesHeadDimMax], VI (&sums)[kHeads][kTokenVectors]) {
  // Where a vector holds all tokens, there are registers for a second sum: a dot waits for the one
  // before it.
  constexpr uint32_t kChains = 2 / kTokenVectors;
  const uint32_t groups = (kChannels != 0 ? kChannels : runtime_channels) / 16;
  const VI three = SetByte(3);
  VI chains[kHeads][2];
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) chains[h][0] = chains[h][1] = ZeroInt();
  const auto add = [&](uint32_t group) __attribute__((always_inline)) {
    const uint32_t at = PackedDword(group);
    TS_UNROLL for (uint32_t i = 0; i < 4; ++i) {
      TS_UNROLL for (uint32_t v = 0; v < kTokenVectors; ++v) {
        const VI packed = LoadInt(upper + group * 64 + v * kVectorBytes);
        const VI codes = And(ShiftRight(packed, 2 * (int)i), three);
        TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
          const VI q = BroadcastInt(q8[h] + 4 * (at + PackedNext(i)));
          VI& sum = chains[h][v + (kChains == 2 ? i % 2 : 0)];
          sum = AddUpperProducts(sum, codes, q);
          Pin(sum);
        }
      }
    }
  };
  if constexpr (kChannels != 0) {
    TS_UNROLL for (uint32_t group = 0; group < kChannels / 16; ++group) add(group);
  } else {
    for (uint32_t group = 0; group < groups; ++group) add(group);
  }
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
    if constexpr (kChains == 2) {
      const VI both =
          kHasByteDot ? AddInt(chains[h][0], chains[h][1]) : AddInt16(chains[h][0], chains[h][1]);
      sums[h][0] = WidenUpperSums(both);
    } else {
      TS_UNROLL for (uint32_t v = 0; v < kTokenVectors; ++v) {
        sums[h][v] = WidenUpperSums(chains[h][v]);
      }
    }
  }
}

template <uint32_t kHeads, uint32_t kChannels>
TS_PHASE void ApproximateLogits(const CascadeCall& call, uint32_t head) {
  // Queries are scaled for some pages before the first of them is read: bytes that are read right
  // after vectors of them were written would wait for the writes to settle.
  constexpr uint32_t kAtOnce = 4;
  const CascadeScratch& s = call.s;
  const PlanesLayout at = kChannels != 0 ? PlanesLayoutOf(kChannels) : call.at;
  const uint64_t row = s.pages * kPlanesTokens;
  const int16_t* q = s.q + (uint64_t)head * at.channels;
  const float* mean_dot = s.mean_dot + head * s.pages;
  float* logits = s.logits + head * row;
  ScaledQueries<kHeads> scaled[kAtOnce];
  VF top[kHeads];
  float scale[4] = {};
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
    top[h] = Set(-__builtin_inff());
    // Levels are (2 * code - 3) / 3 of the distance: in all 2/3 (sum of codes - 3/2 sum of ones).
    scale[h] = s.q_scale[head + h] * (32768.0f * 2 / 3);
  }
  const V4 scales = _mm_loadu_ps(scale);
  for (uint32_t first = 0; first < call.candidates; first += kAtOnce) {
    const uint32_t count = Smaller(kAtOnce, call.candidates - first);
    for (uint32_t j = 0; j < count; ++j) {
      const uint32_t p = s.candidates[first + j];
      float dots[4] = {};
      TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) dots[h] = mean_dot[h * s.pages + p];
      ScaleQueries<kHeads>(s.page[first + j], at, q,
                           _mm_setr_ps(dots[0], dots[1], dots[2], dots[3]), scales, scaled + j);
    }
    for (uint32_t j = 0; j < count; ++j, logits += kPlanesTokens) {
      PrefetchUpper(s.page[first + j + kCandidatesAhead], at.low_at);
      VI sums[kHeads][kTokenVectors];
      UpperSums<kHeads, kChannels>(s.page[first + j], at.channels, scaled[j].q8, sums);
      TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
        const VF step = Set(scaled[j].step[h]), base = Set(scaled[j].base[h]);
        TS_UNROLL for (uint32_t v = 0; v < kTokenVectors; ++v) {
          const VF x = Fma(ToFloat(sums[h][v]), step, base);
          Store(logits + h * row + v * kLanes, x);
          top[h] = Max(top[h], x);
        }
      }
    }
  }
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) s.m[head + h] = MaxLanes(top[h]);
}

// ---- 3: weights of tokens, and which of them read what ----

// Ranks of tokens are bins of 1/8 octave up to 2^4, which no weight reaches, from kLowestRank to
// kHighestRank; 255 is left to pages that are forced.
constexpr int32_t kLowestBin = (127 + 4) * 8 - 255;
constexpr uint8_t kLowestRank = 1, kHighestRank = 254;

TS_INLINE uint32_t RankOf(float weight) {
  int32_t bits;
  __builtin_memcpy(&bits, &weight, sizeof bits);
  const int32_t rank = (bits >> 20) - kLowestBin;
  return rank < kLowestRank ? kLowestRank : Smaller((uint32_t)rank, kHighestRank);
}

// Ranks tokens by the sums of their weights, each times its head's share.
TS_INLINE void RankWeights(const CascadeCall& call, uint32_t tokens) {
  const VI lowest = SetInt(kLowestBin);
  const uint64_t row = call.s.pages * kPlanesTokens;
  for (uint32_t t = 0; t < tokens; t += kPlanesTokens) {
    VF sums[kTokenVectors];
    TS_UNROLL for (uint32_t v = 0; v < kTokenVectors; ++v) sums[v] = Zero();
    const float* weights = call.s.logits + t;
    for (uint32_t h = 0; h < call.args.group; ++h, weights += row) {
      const VF factor = Set(call.s.share[h]);
      TS_UNROLL for (uint32_t v = 0; v < kTokenVectors; ++v) {
        const VF weight = Load(weights + v * kLanes);
        sums[v] = Fma(weight, factor, sums[v]);
      }
    }
    VI bins[kTokenVectors];
    TS_UNROLL for (uint32_t v = 0; v < kTokenVectors; ++v) {
      bins[v] = SubInt(ShiftRight((VI)sums[v], 20), lowest);
    }
    StoreSixteenClamped(call.s.rank + t, bins, kLowestRank, kHighestRank);
  }
}

// Logits of the candidates become exp(logit - m), and each token gets the bin of its weight, summed
// over the heads as shares of the softmax over candidates and open tokens.
TS_PHASE void RankTokens(const CascadeCall& call) {
  const CascadeScratch& s = call.s;
  const uint32_t tokens = call.candidates * kPlanesTokens;
  for (uint32_t h = 0; h < call.args.group; ++h) {
    float* row = s.logits + h * s.pages * kPlanesTokens;
    const float open_d = call.args.open.d[h];
    const float open_m = open_d == 0 ? -__builtin_inff() : call.args.open.m[h] * kLog2E;
    const float m = open_m > s.m[h] ? open_m : s.m[h];
    s.m[h] = m;
    VF sum = Zero();
    for (uint32_t t = 0; t < tokens; t += kLanes) {
      const VF p = ExpTwo<4>(Sub(Load(row + t), Set(m)));
      Store(row + t, p);
      sum = Add(sum, p);
    }
    s.d[h] = SumLanes(sum);
    float open = 0;
    if (open_d != 0) {
      StoreFirst(&open, 1, Mul(Set(open_d), ExpTwo<6>(Set(open_m - m))));
    }
    s.share[h] = 1.0f / (s.d[h] + open);
  }
  RankWeights(call, tokens);
  // Candidates are in order: those that are forced are the first and the last.
  const auto force = [&](uint32_t i) __attribute__((always_inline)) {
    _mm_storeu_si128((__m128i*)(s.rank + i * kPlanesTokens), _mm_set1_epi8((char)255));
  };
  const uint32_t candidates = call.candidates, newest = call.args.count - call.args.recent;
  for (uint32_t i = 0; i < candidates && s.candidates[i] < call.args.sink; ++i) force(i);
  for (uint32_t i = candidates; i > 0 && s.candidates[i - 1] >= newest; --i) force(i - 1);
  for (uint32_t t = tokens; t < RoundUp(tokens, kVectorBytes); ++t) s.rank[t] = 0;
}

// ---- entries of the table ----

uint64_t CascadeScratchBytes(const KvShape* shape, uint32_t group, uint32_t pages_max) {
  CascadeScratch unused;
  return LayCascadeScratch(*shape, group, pages_max, nullptr, &unused);
}

CascadeCounts AttendCascade(const CascadeArgs* args) {
  CascadeScratch s;
  LayCascadeScratch(args->shape, args->group, args->count, args->scratch, &s);
  CascadeCall call = {.args = *args, .s = s, .at = PlanesLayoutOf(args->shape.head_dim)};
  if (call.at.channels > kPlanesHeadDimMax) __builtin_trap();
  const uint32_t group = args->group;
  FindSpreads(call);
  CodeQueries(call);
  ForHeadPasses(call, [&]<uint32_t kHeads, uint32_t kChannels>(uint32_t head) {
    ScoreSpreads<kHeads, kChannels>(call, head);
  });
  call.candidates = ChooseCandidates(call);
  FindCandidates(call);
  ForHeadPasses(call, [&]<uint32_t kHeads, uint32_t kChannels>(uint32_t head) {
    ApproximateLogits<kHeads, kChannels>(call, head);
  });
  RankTokens(call);
  const uint32_t tokens = call.candidates * kPlanesTokens;
  const uint32_t least = RankOf(args->least_share * (float)group);
  RankChoice<uint8_t> full(s.rank, tokens, args->full_tokens, least);
  RankChoice<uint8_t> value(s.rank, tokens, args->value_tokens, least);
  for (uint32_t i = 0; i < call.candidates; ++i) {
    const uint8_t* ranks = s.rank + i * kPlanesTokens;
    const TokenMasks of_page = {(uint16_t)full.Mask(ranks), (uint16_t)value.Mask(ranks)};
    s.masks[i] = of_page;
  }
  ListTokens(call);
  for (uint64_t i = 0; i < group * s.row_channels; i += kLanes) Store(s.o + i, Zero());
  ForHeadPasses(call, [&]<uint32_t kHeads, uint32_t kChannels>(uint32_t head) {
    WeighExactly<kHeads, kChannels>(call, head);
    ScaleWeights<kHeads, kChannels>(call, head);
    AddRows<kHeads, kChannels>(call, head);
  });
  for (uint32_t h = 0; h < group; ++h) {
    args->out.m[h] = s.m[h] * kLn2;
    args->out.d[h] = s.d[h];
    StoreOutput(s.o + h * s.row_channels, args->shape.head_dim,
                args->out.o + (uint64_t)h * args->shape.head_dim);
  }
  if (args->chosen != nullptr) {
    __builtin_memcpy(args->chosen, s.candidates, call.candidates * sizeof(uint32_t));
  }
  return {args->count, call.candidates, call.exact_tokens, call.value_rows - call.candidates};
}

}  // namespace
}  // namespace tinyserve
