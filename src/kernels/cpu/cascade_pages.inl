// The cascade's first phase: pages are scored, and the best become candidates. Ranks of pages and
// of tokens are cut here.
#ifndef TINYSERVE_KERNELS_CPU_CASCADE_PAGES_INL_
#define TINYSERVE_KERNELS_CPU_CASCADE_PAGES_INL_

#include "kernels/cpu/cascade_call.inl"

namespace tinyserve {
namespace {

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
  // Chosen are ranks from `threshold` on, from the token `ties_end` on those above it.
  uint32_t threshold, ties_end = UINT32_MAX;

  TS_PHASE RankChoice(const T* ranks, uint32_t count, uint32_t n, uint32_t least)
      : threshold(least) {
    if (n >= count) return;
    // Most often few reach it: then one pass does for the eight that look for a threshold.
    if (least > 0 && CountAtLeast(ranks, count, least) <= n) return;
    const RankCut cut = n == 0 ? RankCut{(T)~0u, 0} : CutRanks<T>(ranks, count, n);
    threshold = cut.threshold;
    uint32_t left = cut.ties;
    for (uint32_t i = 0; i < count; i += 16) {
      const uint32_t tied = EqualOfSixteen(ranks + i, (T)threshold);
      const uint32_t n_tied = (uint32_t)__builtin_popcount(tied);
      if (n_tied >= left) {
        // Up to the last one that is taken.
        const uint32_t last = left == 0 ? 0 : _pdep_u32(1u << (left - 1), tied);
        ties_end = i + (left == 0 ? 0 : (uint32_t)__builtin_ctz(last) + 1);
        return;
      }
      left -= n_tied;
    }
  }

  // Of those from `first` on, a multiple of 16; ranks: theirs.
  TS_INLINE uint32_t Mask(const T* ranks, uint32_t first) const {
    const uint32_t chosen = AtLeastOfSixteen(ranks, (T)threshold);
    if (first + 16 <= ties_end) return chosen;
    const uint32_t tied = EqualOfSixteen(ranks, (T)threshold);
    const uint32_t taken = first >= ties_end ? 0 : (1u << (ties_end - first)) - 1;
    return chosen & ~(tied & ~taken);
  }
};

TS_PHASE uint32_t ChooseCandidates(const CascadeCall& call) {
  const CascadeScratch& s = call.s;
  const uint32_t count = call.args.count, padded = RoundUp(count, kWordLanes);
  for (uint32_t h = 0; h < call.args.group; ++h) {
    float* row = s.scores + h * s.pages;
    s.m[h] = FinishScores(call, h);
    const VF highest = Set(s.m[h]);
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
  const RankChoice<uint16_t> choice(s.page_rank, count, call.args.candidates, 0);
  uint32_t n = 0;
  for (uint32_t p = 0; p < count; p += 16) {
    const uint32_t mask = choice.Mask(s.page_rank + p, p);
    VI pages[kTokenVectors];
    CountFrom(p, pages);
    StoreChosen(mask, pages, s.candidates + n);
    n += (uint32_t)__builtin_popcount(mask);
  }
  return n;
}

}  // namespace
}  // namespace tinyserve

#endif  // TINYSERVE_KERNELS_CPU_CASCADE_PAGES_INL_
