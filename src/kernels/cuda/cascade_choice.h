// For kernels: which pages the cascade goes on with, and which tokens it reads. Blocks of 128
// threads.
#ifndef TINYSERVE_KERNELS_CUDA_CASCADE_CHOICE_H_
#define TINYSERVE_KERNELS_CUDA_CASCADE_CHOICE_H_

#include "kernels/cuda/attention_cascade.h"
#include "kernels/cuda/page_select.h"
#include "kernels/cuda/planes_form.h"
#include "kernels/cuda/simt.h"

namespace tinyserve::cuda {

struct CascadeCall {
  DecodeStep step;
  PagesOfHead pages;  // head: set by the block
  Cascade how;
  uint32_t kv_heads, group;
  uint32_t splits_max;                // that partial results have room for, of a (row, KV head)
  uint64_t item_floats;               // CascadeFloats()
  Array<const uint32_t> open_tokens;  // [rows], whose partial results come after the others
};

TS_DEVICE uint32_t SplitsOf(uint32_t tokens) { return (tokens + kSplitTokens - 1) / kSplitTokens; }
TS_DEVICE uint32_t Least(uint32_t a, uint32_t b) { return a < b ? a : b; }

// What a block sees of its row and KV head.
struct CascadeItem {
  RowOfStep at;
  uint32_t pages;  // of the row, in planes

  TS_DEVICE CascadeItem(const CascadeCall& call, uint32_t head, uint32_t row)
      : at{row, head, call.kv_heads, call.group},
        pages(Global<const uint32_t>(call.step.tokens, "tokens").Get(row) / kPlanesTokens) {}

  // A budget of `most` at most.
  TS_DEVICE uint32_t Budget(const CascadeCall& call, const Array<const uint32_t>& budgets,
                            uint32_t most) const {
    return Least(call.how.widen * Global<const uint32_t>(budgets, "budgets").Get(at.row), most);
  }
  // Pages at the ends that are forced.
  TS_DEVICE uint32_t Sink(const CascadeCall& call) const { return Least(call.how.sink, pages); }
  TS_DEVICE uint32_t Recent(const CascadeCall& call) const {
    const uint32_t newer = Global<const uint32_t>(call.how.newer, "newer").Get(at.row);
    const uint32_t recent = call.how.recent - Least(newer, call.how.recent);
    return Least(recent, pages - Sink(call));
  }
  TS_DEVICE uint32_t Candidates(const CascadeCall& call) const {
    return Global<uint32_t>(call.how.chosen.tokens, "chosen tokens").Get(at.Item()) / kPlanesTokens;
  }
  TS_DEVICE Global<float> Logits(const CascadeCall& call) const {
    return Global<float>(call.how.logits, "logits")
        .Part(at.Item() * call.item_floats, call.item_floats);
  }
  TS_DEVICE Global<uint8_t> Reads(const CascadeCall& call) const {
    const uint64_t tokens = uint64_t{call.how.chosen.list_pages} * kPlanesTokens;
    return Global<uint8_t>(call.how.reads, "reads").Part(at.Item() * tokens, tokens);
  }
  TS_DEVICE Global<float> Partials(const CascadeCall& call, uint32_t dim) const {
    const uint64_t floats = uint64_t{call.splits_max} * at.group * (dim + 2);
    return Global<float>(call.step.partials, "partials").Part(at.Item() * floats, floats);
  }
  TS_DEVICE uint32_t OpenSplits(const CascadeCall& call) const {
    return SplitsOf(Global<const uint32_t>(call.open_tokens, "open tokens").Get(at.row));
  }
};

// ---- pages --------------------------------------------------------------------------------------

// Scores of pages first .. end - 1 of the table by each head, to scores [group][pages_max]. q:
// times scale and log2(e), so that they are in units of log2; sizes [group]: |q|.
template <uint32_t kDim, uint32_t kGroup>
TS_DEVICE void ScoreSpreads(const CascadeCall& call, const PagesOfHead& pages, uint32_t group,
                            const Shared<float>& q, const Shared<float>& sizes,
                            const Global<const uint32_t>& table, uint32_t first, uint32_t end,
                            const Global<float>& scores) {
  constexpr uint32_t kLanes = 8;  // of a page
  struct alignas(8) Bytes {
    int8_t at[8];
  };
  const Global<const uint8_t> bytes(pages.records.bytes, "records");
  const uint32_t lane = ThreadIndex() % kLanes;
  for (uint32_t base = first; base < end; base += kDecodeThreads / kLanes) {
    const uint32_t i = base + ThreadIndex() / kLanes;
    float dots[kGroup] = {};
    SpreadScales scales{};
    if (i < end) {
      const uint64_t spread = ItemAt(pages.records, pages.head, table.Get(i)) + pages.spread_at;
      scales = bytes.Get<SpreadScales>(spread);
      for (uint32_t c = lane * 8; c < kDim; c += 8 * kLanes) {
        const auto means = bytes.Get<Bytes>(spread + sizeof(SpreadScales) + c);
        TS_UNROLL
        for (uint32_t h = 0; h < kGroup; ++h) {
          TS_UNROLL
          for (uint32_t j = 0; j < 8; ++j) {
            dots[h] = Fma(q.Get(h * kDim + c + j), static_cast<float>(means.at[j]), dots[h]);
          }
        }
      }
    }
    TS_UNROLL
    for (uint32_t h = 0; h < kGroup; ++h) {
      TS_UNROLL
      for (uint32_t lanes = kLanes / 2; lanes > 0; lanes /= 2) {
        dots[h] += ShuffleXor(dots[h], lanes, kAllLanes);
      }
      if (lane != h % kLanes || h >= group || i >= end) continue;
      scores.Set(uint64_t{h} * call.how.pages_max + i,
                 dots[h] * scales.mean + call.how.alpha * sizes.Get(h) * scales.radius);
    }
  }
}

// keys = ranks of the pages: the upper half of the bits of what the heads' softmaxes sum up to, as
// the CPU compares them. Returns how many have one; forced pages have the highest.
template <uint32_t kGroup>
TS_DEVICE uint32_t RankPages(const CascadeCall& call, const CascadeItem& item,
                             const Global<float>& scores, const Shared<uint32_t>& keys) {
  TS_SHARED(uint32_t, ranked, 1);
  if (ThreadIndex() == 0) ranked.Set(0, 0);
  Selection how{};
  how.pool = ScorePool::kSoftmax;
  how.pages_max = call.how.pages_max;
  PoolScores<kGroup>(how, item.at.group, item.pages, scores, keys);
  const uint32_t sink = item.Sink(call), recent_from = item.pages - item.Recent(call);
  uint32_t own = 0;
  for (uint32_t i = ThreadIndex(); i < item.pages; i += kDecodeThreads) {
    const bool forced = i < sink || i >= recent_from;
    const uint32_t rank = forced ? 0xffffffffu : keys.Get(i) & 0x7fff0000u;
    keys.Set(i, rank);
    own += rank != 0 ? 1 : 0;
  }
  AtomicAdd(ranked, 0, own);
  SyncBlock();
  return ranked.Get(0);
}

// ---- tokens -------------------------------------------------------------------------------------

// Of each head: the largest logit of the candidates' tokens and the open ones, and 1 / the sum of
// the weights relative to it. pairs: [group][pairs of pages][m, d].
template <uint32_t kDim>
TS_DEVICE void HeadTotals(const CascadeCall& call, const CascadeItem& item, uint32_t candidates,
                          const Global<float>& pairs, const Shared<float>& tops,
                          const Shared<float>& shares) {
  const uint32_t group = item.at.group, width = group * (kDim + 2);
  const uint32_t count = (candidates + 1) / 2, stride = (call.how.chosen.list_pages + 1) / 2;
  const uint32_t open = item.OpenSplits(call), first = SplitsOf(candidates * kPlanesTokens);
  const Global<float> partials = item.Partials(call, kDim);
  for (uint32_t h = WarpIndex(); h < group; h += kDecodeWarps) {
    const auto m_of = [&](uint32_t i) {
      return i < count ? pairs.GetFresh<float>(2 * (uint64_t{h} * stride + i))
                       : partials.Get(uint64_t{first + i - count} * width + group * kDim + h);
    };
    const auto d_of = [&](uint32_t i) {
      return i < count ? pairs.GetFresh<float>(2 * (uint64_t{h} * stride + i) + 1)
                       : partials.Get(uint64_t{first + i - count} * width + group * (kDim + 1) + h);
    };
    float top = -INFINITY, sum = 0;
    for (uint32_t i = LaneIndex(); i < count + open; i += kWarpLanes) {
      const float m = m_of(i);
      top = m > top ? m : top;
    }
    top = WarpMax(top);
    for (uint32_t i = LaneIndex(); i < count + open; i += kWarpLanes) {
      sum += d_of(i) * Exp2(m_of(i) - top);
    }
    sum = WarpSum(sum);
    if (LaneIndex() != 0) continue;
    tops.Set(h, top);
    shares.Set(h, 1 / sum);
  }
  SyncBlock();
}

// Bins of 1/8 octave up to 2^4, which no weight reaches, as kernels/ref/planes.cc has them.
TS_DEVICE uint32_t WeightBin(float weight) {
  constexpr uint32_t kLowest = (127 + 4) * 8 - 255;
  const uint32_t bin = Bits(weight) >> 20;
  return bin > kLowest ? Least(bin - kLowest, 253) : 0;  // what is no number too
}

constexpr uint32_t kForcedRank = 255;  // above all bins

// reads = ranks of the candidates' tokens, counts = how many have each: 0 has not been counted, of
// those that weigh too little.
TS_DEVICE void RankTokens(const CascadeCall& call, const CascadeItem& item, uint32_t candidates,
                          const Global<float>& logits, const Shared<float>& tops,
                          const Shared<float>& shares, const Shared<uint32_t>& counts,
                          const Global<uint8_t>& reads) {
  const uint32_t group = item.at.group, tokens = candidates * kPlanesTokens;
  const uint64_t stride = uint64_t{call.how.chosen.list_pages} * kPlanesTokens;
  // The lists are in order of position: the ends are the forced pages.
  const uint32_t sink = item.Sink(call), recent = item.Recent(call);
  const uint32_t least = WeightBin(call.how.least_share * static_cast<float>(group)) + 1;
  for (uint32_t i = ThreadIndex(); i < 256; i += kDecodeThreads) counts.Set(i, 0);
  SyncBlock();
  for (uint32_t t = ThreadIndex(); t < tokens; t += kDecodeThreads) {
    float weight = 0;
    for (uint32_t h = 0; h < group; ++h) {
      weight += Exp2(logits.GetFresh<float>(h * stride + t) - tops.Get(h)) * shares.Get(h);
    }
    const uint32_t page = t / kPlanesTokens, bin = WeightBin(weight) + 1;
    const bool forced = page < sink || page + recent >= candidates;
    const uint32_t rank = forced ? kForcedRank : bin < least ? 0 : bin;
    reads.Set(t, static_cast<uint8_t>(rank));
    if (rank != 0) AtomicAdd(counts, rank, 1u);
  }
  SyncBlock();
}

// The tokens of a budget: all whose rank is above `rank`, and the first `ties` of those at it.
struct TokenCut {
  uint32_t rank, ties;

  TS_DEVICE bool Takes(uint32_t of_token, uint32_t ties_before) const {
    return of_token > rank || (of_token == rank && ties_before < ties);
  }
};

// Of both budgets, full tokens and values.
TS_DEVICE void FindCuts(const Shared<uint32_t>& counts, const uint32_t (&budgets)[2],
                        TokenCut (&cuts)[2]) {
  TS_SHARED(uint32_t, found, 8);
  if (ThreadIndex() < 8) found.Set(ThreadIndex(), 0);  // where all fit: above 0
  SyncBlock();
  const uint32_t budget = WarpIndex() == 0 ? budgets[0] : WarpIndex() == 1 ? budgets[1] : 0;
  if (budget > 0) FindDigit(counts, budget, found.Part(4 * WarpIndex(), 4));
  SyncBlock();
  TS_UNROLL
  for (uint32_t i = 0; i < 2; ++i) {
    cuts[i] = {found.Get(4 * i), found.Get(4 * i + 1)};
    if (budgets[i] == 0) cuts[i] = {256, 0};
  }
}

// reads = TokenReads of the ranks that are there. A warp has a quarter of the tokens, so that ties
// are counted in their order.
TS_DEVICE void CutTokens(uint32_t tokens, const TokenCut (&cuts)[2], const Global<uint8_t>& reads) {
  TS_SHARED(uint32_t, ties_of, 2 * kDecodeWarps);
  constexpr uint32_t kTogether = kDecodeWarps * kWarpLanes;
  const uint32_t each = (tokens + kTogether - 1) / kTogether * kWarpLanes;
  const uint32_t first = Least(WarpIndex() * each, tokens), end = Least(first + each, tokens);
  const auto rank_of = [&](uint32_t t) { return t < end ? uint32_t{reads.Get(t)} : 0; };
  uint32_t ties[2] = {};
  for (uint32_t base = first; base < end; base += kWarpLanes) {
    const uint32_t rank = rank_of(base + LaneIndex());
    TS_UNROLL
    for (uint32_t i = 0; i < 2; ++i) ties[i] += PopCount(Ballot(kAllLanes, rank == cuts[i].rank));
  }
  if (LaneIndex() < 2) {
    ties_of.Set(2 * WarpIndex() + LaneIndex(), LaneIndex() == 0 ? ties[0] : ties[1]);
  }
  SyncBlock();
  TS_UNROLL
  for (uint32_t i = 0; i < 2; ++i) {
    ties[i] = 0;
    for (uint32_t w = 0; w < WarpIndex(); ++w) ties[i] += ties_of.Get(2 * w + i);
  }
  for (uint32_t base = first; base < end; base += kWarpLanes) {
    const uint32_t t = base + LaneIndex(), rank = rank_of(t);
    bool takes[2];
    TS_UNROLL
    for (uint32_t i = 0; i < 2; ++i) {
      const uint32_t at_rank = Ballot(kAllLanes, rank == cuts[i].rank);
      const uint32_t before = PopCount(at_rank & ((1u << LaneIndex()) - 1));
      takes[i] = cuts[i].Takes(rank, ties[i] + before);
      ties[i] += PopCount(at_rank);
    }
    if (t >= end) continue;
    reads.Set(t, static_cast<uint8_t>(takes[0]   ? TokenRead::kFull
                                      : takes[1] ? TokenRead::kValue
                                                 : TokenRead::kMean));
  }
}

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_CASCADE_CHOICE_H_
