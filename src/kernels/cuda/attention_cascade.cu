#include <string>

#include "kernels/cuda/attention_cascade.h"
#include "kernels/cuda/cascade_choice.h"
#include "kernels/cuda/dispatch.h"

namespace tinyserve::cuda {
namespace {

constexpr uint32_t kScoredAtOnce = 128;                            // pages, by a block
constexpr uint32_t kPagesAtOnce = kDecodeThreads / kPlanesTokens;  // a thread for each token
constexpr uint32_t kSplitPages = kSplitTokens / kPlanesTokens;
constexpr uint32_t kPad = 16;  // floats between pages: two of them are read at once

// ---- candidates ---------------------------------------------------------------------------------

// sizes = |q| of each head.
template <uint32_t kDim, uint32_t kGroup>
TS_DEVICE void MeasureQueries(const Shared<float>& q, const Shared<float>& sizes) {
  for (uint32_t h = WarpIndex(); h < kGroup; h += kDecodeWarps) {
    float squares = 0;
    for (uint32_t c = LaneIndex(); c < kDim; c += kWarpLanes) {
      const float x = q.Get(h * kDim + c);
      squares = Fma(x, x, squares);
    }
    squares = WarpSum(squares);
    if (LaneIndex() == 0) sizes.Set(h, SquareRoot(squares));
  }
}

// Grid: parts of kScoredAtOnce pages, KV heads, rows. The last block of an item lists candidates.
template <uint32_t kDim, uint32_t kGroup>
TS_BOUNDED_KERNEL(kDecodeThreads)
CandidatesKernel(CascadeCall call) {
  const CascadeItem item(call, BlockY(), BlockZ());
  const uint32_t budget = item.Budget(call, call.how.candidates, item.pages);
  const uint32_t scored = budget < item.pages ? item.pages : 0;
  const uint32_t parts = scored == 0 ? 1 : (scored + kScoredAtOnce - 1) / kScoredAtOnce;
  const uint32_t first = BlockX() * kScoredAtOnce;
  if (BlockX() >= parts) return;
  SharedArena arena;
  const Shared<float> q = arena.Take<float>(kGroup * kDim, "q");
  const Shared<float> sizes = arena.Take<float>(8, "sizes");
  const Shared<uint32_t> keys = arena.Take<uint32_t>(call.how.pages_max, "keys");
  const Global<const uint32_t> table = TableOf(call.step, item.at);
  const Global<float> scores = HeadScoresOf(call.how.head_scores, item.at, call.how.pages_max);
  if (scored > 0) {
    LoadQueryTo<kDim, kGroup>(q, Global<const float>(call.step.q, "q"), item.at, call.step.scale);
    SyncBlock();
    MeasureQueries<kDim, kGroup>(q, sizes);
    SyncBlock();
    PagesOfHead pages = call.pages;
    pages.head = item.at.head;
    ScoreSpreads<kDim, kGroup>(call, pages, item.at.group, q, sizes, table, first,
                               Least(scored, first + kScoredAtOnce), scores);
  }
  if (!ArrivesLast(Global<uint32_t>(call.step.arrived, "arrived"), item.at.Item(), parts)) return;
  const Global<uint32_t> list = ListOf(call.how.chosen, item.at);
  const auto store = [&](uint32_t at, uint32_t i) { list.Set(at, table.Get(i)); };
  uint32_t chosen = budget;
  if (scored == 0) {
    for (uint32_t i = ThreadIndex(); i < budget; i += kDecodeThreads) store(i, i);
  } else {
    chosen = Least(budget, RankPages<kGroup>(call, item, scores, keys));
    if (chosen > 0) TopKeys(keys, item.pages, chosen, store);
  }
  if (ThreadIndex() != 0) return;
  Global<uint32_t>(call.how.chosen.tokens, "chosen tokens")
      .Set(item.at.Item(), chosen * kPlanesTokens);
}

// ---- approximate logits -------------------------------------------------------------------------

template <uint32_t kDim, uint32_t kGroup>
struct ApproximateMemory {
  static constexpr uint32_t kOfPage = kGroup * kDim + kPad;
  static constexpr uint32_t kBytes =
      (kGroup * kDim + kPagesAtOnce * kOfPage + 2 * 8) * sizeof(float) + 256 * sizeof(uint32_t);
  Shared<float> q;        // [kGroup][kDim] times scale and log2(e)
  Shared<float> by_page;  // [kPagesAtOnce][kGroup][kDim] times the page's distances
  Shared<float> tops, shares;
  Shared<uint32_t> counts;

  TS_DEVICE explicit ApproximateMemory(SharedArena& arena)
      : q(arena.Take<float>(kGroup * kDim, "q")),
        by_page(arena.Take<float>(kPagesAtOnce * kOfPage, "by_page")),
        tops(arena.Take<float>(8, "tops")),
        shares(arena.Take<float>(8, "shares")),
        counts(arena.Take<uint32_t>(256, "counts")) {}
};

// logits = of a token by the upper plane, of which 0 .. 3 stand for -1, -1/3, 1/3 and 1 times the
// distance. The sixteen threads of a page's tokens share what is the page's. `page`, `spread`:
// bytes to these; without `has` the thread's page is none.
template <uint32_t kDim, uint32_t kGroup>
TS_DEVICE void ApproximateLogits(const ApproximateMemory<kDim, kGroup>& memory,
                                 const PagesOfHead& pages, uint64_t page, uint64_t spread, bool has,
                                 float (&logits)[kGroup]) {
  using Form = PlanesForm<kDim>;
  const Global<const uint8_t> bytes(pages.slabs.bytes, "pages");
  const Global<const uint8_t> records(pages.records.bytes, "records");
  const uint32_t slot = ThreadIndex() % kPlanesTokens;
  const uint32_t of_page = ThreadIndex() / kPlanesTokens * memory.kOfPage;
  TS_UNROLL
  for (uint32_t h = 0; h < kGroup; ++h) logits[h] = 0;
  if (has) {
    const float mean_scale = records.Get<SpreadScales>(spread).mean;
    const float unit = bytes.Get<float>(page + Form::kAt.scales_at + kDistanceAt);
    for (uint32_t c = slot; c < kDim; c += kPlanesTokens) {
      const auto code = static_cast<int8_t>(records.Get(spread + sizeof(SpreadScales) + c));
      const float mean = static_cast<float>(code) * mean_scale;
      const float distance =
          static_cast<float>(bytes.Get(page + Form::kAt.distances_at + c)) * unit;
      TS_UNROLL
      for (uint32_t h = 0; h < kGroup; ++h) {
        const float x = memory.q.Get(h * kDim + c), far = x * distance;
        memory.by_page.Set(of_page + h * kDim + c, far);
        logits[h] += Fma(x, mean, -far);
      }
    }
  }
  TS_UNROLL
  for (uint32_t h = 0; h < kGroup; ++h) {
    TS_UNROLL
    for (uint32_t lanes = kPlanesTokens / 2; lanes > 0; lanes /= 2) {
      logits[h] += ShuffleXor(logits[h], lanes, kAllLanes);
    }
  }
  SyncWarp(kAllLanes);
  if (!has) return;
  float sums[kGroup] = {};
  TS_UNROLL
  for (uint32_t g = 0; g < kDim / 16; ++g) {
    const auto word =
        bytes.Get<uint32_t>(page + Form::kAt.upper_at + (g * kPlanesTokens + slot) * 4);
    TS_UNROLL
    for (uint32_t i = 0; i < 4; ++i) {
      float codes[4];
      TS_UNROLL
      for (uint32_t j = 0; j < 4; ++j) codes[j] = static_cast<float>(word >> (8 * j + 2 * i) & 3);
      TS_UNROLL
      for (uint32_t h = 0; h < kGroup; ++h) {
        const auto q =
            memory.by_page.template Get<Line<float>>(of_page + h * kDim + g * 16 + i * 4);
        TS_UNROLL
        for (uint32_t j = 0; j < 4; ++j) sums[h] = Fma(q.at[j], codes[j], sums[h]);
      }
    }
  }
  TS_UNROLL
  for (uint32_t h = 0; h < kGroup; ++h) logits[h] = Fma(sums[h], 2.0f / 3, logits[h]);
}

// Grid: parts of kPagesAtOnce candidates, KV heads, rows. The last block of an item, whose open
// tokens have been attended to, says how each token is read.
template <uint32_t kDim, uint32_t kGroup>
TS_BOUNDED_KERNEL(kDecodeThreads)
TokensKernel(CascadeCall call) {
  const CascadeItem item(call, BlockY(), BlockZ());
  if (item.pages == 0) return;
  const uint32_t candidates = item.Candidates(call), group = item.at.group;
  const uint32_t parts = (candidates + kPagesAtOnce - 1) / kPagesAtOnce;
  if (BlockX() >= parts) return;
  SharedArena arena;
  const ApproximateMemory<kDim, kGroup> memory(arena);
  LoadQueryTo<kDim, kGroup>(memory.q, Global<const float>(call.step.q, "q"), item.at,
                            call.step.scale);
  SyncBlock();
  const uint32_t i = BlockX() * kPagesAtOnce + ThreadIndex() / kPlanesTokens;
  const bool has = i < candidates;
  const uint32_t index = has ? ListOf(call.how.chosen, item.at).Get(i) : 0;
  float logits[kGroup];
  ApproximateLogits(memory, call.pages, ItemAt(call.pages.slabs, item.at.head, index),
                    ItemAt(call.pages.records, item.at.head, index) + call.pages.spread_at, has,
                    logits);
  const uint64_t list_tokens = uint64_t{call.how.chosen.list_pages} * kPlanesTokens;
  const uint64_t pairs = (call.how.chosen.list_pages + 1) / 2;
  const Global<float> of_item = item.Logits(call);
  const Global<float> of_pairs = of_item.Part(group * list_tokens, 2 * group * pairs);
  TS_UNROLL
  for (uint32_t h = 0; h < kGroup; ++h) {
    const float top = WarpMax(has ? logits[h] : -INFINITY);
    const float sum = WarpSum(has ? Exp2(logits[h] - top) : 0.0f);
    if (h >= group || !has) continue;
    of_item.Set(h * list_tokens + i * kPlanesTokens + ThreadIndex() % kPlanesTokens, logits[h]);
    if (LaneIndex() != 0) continue;
    of_pairs.Set(2 * (h * pairs + i / 2), top);
    of_pairs.Set(2 * (h * pairs + i / 2) + 1, sum);
  }
  // The blocks of the open tokens have counted there, too.
  if (!ArrivesLast(Global<uint32_t>(call.step.arrived, "arrived"), item.at.Item(),
                   parts + item.OpenSplits(call))) {
    return;
  }
  const Global<uint8_t> reads = item.Reads(call);
  HeadTotals<kDim>(call, item, candidates, of_pairs, memory.tops, memory.shares);
  RankTokens(call, item, candidates, of_item, memory.tops, memory.shares, memory.counts, reads);
  const uint32_t tokens = item.pages * kPlanesTokens;
  const uint32_t budgets[2] = {item.Budget(call, call.how.full_tokens, tokens),
                               item.Budget(call, call.how.value_tokens, tokens)};
  TokenCut cuts[2];
  FindCuts(memory.counts, budgets, cuts);
  CutTokens(candidates * kPlanesTokens, cuts, reads);
}

// ---- values -------------------------------------------------------------------------------------

// A split: 256 tokens of the candidates, and what they are read by.
template <uint32_t kDim, uint32_t kGroup>
struct ValueMemory {
  using Shape = TileShape<PlanesForm<kDim>, kGroup>;
  static constexpr uint32_t kBytes =
      Shape::kSumBytes + kGroup * kDim * 4 + kGroup * (kSplitTokens + kSplitPages) * 4 +
      2 * kSplitPages * 8 + (kSplitTokens + kSplitPages) * 4 + 3 * kSplitTokens * 2 + 3 * 8 * 4;
  Shared<float> sums;             // of StorePartial
  Shared<float> q;                // [kGroup][kDim] times scale and log2(e)
  Shared<float> weights;          // [kGroup][256] logits, then weights times the values' scales
  Shared<float> of_means;         // [kGroup][16] the same of the pages' mean values
  Shared<uint64_t> page, spread;  // [16] bytes to these
  Shared<float> scales;           // [256] of values, then [16] of mean values
  Shared<uint16_t> reads;         // [256] TokenReads
  Shared<uint16_t> full, values;  // tokens of the split that are read so, ascending
  Shared<uint32_t> counts;        // of both in each 32 tokens: [2][8]

  TS_DEVICE explicit ValueMemory(SharedArena& arena)
      : sums(arena.Take<float>(Shape::kSumBytes / sizeof(float), "sums")),
        q(arena.Take<float>(kGroup * kDim, "q")),
        weights(arena.Take<float>(kGroup * kSplitTokens, "weights")),
        of_means(arena.Take<float>(kGroup * kSplitPages, "of_means")),
        page(arena.Take<uint64_t>(kSplitPages, "page")),
        spread(arena.Take<uint64_t>(kSplitPages, "spread")),
        scales(arena.Take<float>(kSplitTokens + kSplitPages, "scales")),
        reads(arena.Take<uint16_t>(kSplitTokens, "reads")),
        full(arena.Take<uint16_t>(kSplitTokens, "full")),
        values(arena.Take<uint16_t>(kSplitTokens, "values")),
        counts(arena.Take<uint32_t>(2 * kSplitTokens / kWarpLanes, "counts")) {}
};

// Tokens of a split that are listed.
struct Listed {
  uint32_t full, values;
};

// Loads a split's pages, logits and reads, and lists its tokens.
template <uint32_t kDim, uint32_t kGroup>
TS_DEVICE Listed LoadSplit(const ValueMemory<kDim, kGroup>& memory, const CascadeCall& call,
                           const CascadeItem& item, uint32_t first, uint32_t tokens) {
  using Form = PlanesForm<kDim>;
  constexpr uint32_t kChunks = kSplitTokens / kWarpLanes;
  const Global<const uint8_t> bytes(call.pages.slabs.bytes, "pages");
  const uint64_t list_tokens = uint64_t{call.how.chosen.list_pages} * kPlanesTokens;
  const Global<float> logits = item.Logits(call);
  const Global<uint8_t> reads = item.Reads(call);
  const Global<uint32_t> list = ListOf(call.how.chosen, item.at);
  for (uint32_t i = ThreadIndex(); i < tokens / kPlanesTokens; i += kDecodeThreads) {
    const uint32_t index = list.Get(first / kPlanesTokens + i);
    const uint64_t page = ItemAt(call.pages.slabs, item.at.head, index);
    memory.page.Set(i, page);
    memory.spread.Set(i, ItemAt(call.pages.records, item.at.head, index) + call.pages.spread_at);
    memory.scales.Set(kSplitTokens + i,
                      bytes.Get<float>(page + Form::kAt.scales_at + kMeanValueAt));
  }
  SyncBlock();
  for (uint32_t t = ThreadIndex(); t < kSplitTokens; t += kDecodeThreads) {
    const bool has = t < tokens;
    const uint32_t read = has ? reads.Get(first + t) : 0;
    const uint32_t is_full = Ballot(kAllLanes, read == static_cast<uint32_t>(TokenRead::kFull));
    const uint32_t is_value = Ballot(kAllLanes, read != static_cast<uint32_t>(TokenRead::kMean));
    if (LaneIndex() == 0) memory.counts.Set(t / kWarpLanes, PopCount(is_full));
    if (LaneIndex() == 0) memory.counts.Set(kChunks + t / kWarpLanes, PopCount(is_value));
    memory.reads.Set(t, static_cast<uint16_t>(read));
    TS_UNROLL
    for (uint32_t h = 0; h < kGroup; ++h) {
      const bool of_head = has && h < item.at.group;
      const float idle = has ? 0.0f : -INFINITY;
      memory.weights.Set(h * kSplitTokens + t,
                         of_head ? logits.Get(h * list_tokens + first + t) : idle);
    }
    if (!has) continue;
    const uint64_t scale =
        memory.page.Get(t / kPlanesTokens) + Form::kAt.scales_at + 2 * (t % kPlanesTokens);
    memory.scales.Set(t, Float(bytes.Get<BF16>(scale)));
  }
  SyncBlock();
  Listed listed{0, 0};
  TS_UNROLL
  for (uint32_t chunk = 0; chunk < kChunks; ++chunk) {
    const uint32_t full = listed.full, values = listed.values;
    listed.full += memory.counts.Get(chunk);
    listed.values += memory.counts.Get(kChunks + chunk);
    if (chunk % kDecodeWarps != WarpIndex()) continue;
    const uint32_t t = chunk * kWarpLanes + LaneIndex(), before = (1u << LaneIndex()) - 1;
    const uint32_t read = memory.reads.Get(t);
    const bool is_full = read == static_cast<uint32_t>(TokenRead::kFull);
    const bool is_value = read != static_cast<uint32_t>(TokenRead::kMean);
    const uint32_t full_at = full + PopCount(Ballot(kAllLanes, is_full) & before);
    const uint32_t value_at = values + PopCount(Ballot(kAllLanes, is_value) & before);
    if (is_full) memory.full.Set(full_at, static_cast<uint16_t>(t));
    if (is_value) memory.values.Set(value_at, static_cast<uint16_t>(t));
  }
  SyncBlock();
  return listed;
}

// weights = exact logits of the listed tokens, four lanes each.
template <uint32_t kDim, uint32_t kGroup>
TS_DEVICE void ExactLogits(const ValueMemory<kDim, kGroup>& memory, const CascadeCall& call,
                           uint32_t listed) {
  using Form = PlanesForm<kDim>;
  constexpr uint32_t kLanes = kDecodeThreads / kTileTokens;
  struct alignas(8) Bytes {
    int8_t at[8];
  };
  const Global<const uint8_t> bytes(call.pages.slabs.bytes, "pages");
  const Global<const uint8_t> records(call.pages.records.bytes, "records");
  const uint32_t lane = ThreadIndex() % kLanes;
  for (uint32_t base = 0; base < listed; base += kTileTokens) {
    const uint32_t e = base + ThreadIndex() / kLanes;
    const uint32_t t = e < listed ? memory.full.Get(e) : 0;
    float sums[kGroup] = {};
    if (e < listed) {
      const uint64_t page = memory.page.Get(t / kPlanesTokens);
      const uint64_t spread = memory.spread.Get(t / kPlanesTokens);
      const float mean_scale = records.Get<SpreadScales>(spread).mean;
      const float step =
          bytes.Get<float>(page + Form::kAt.scales_at + kDistanceAt) * (1 / kPlanesTop);
      for (uint32_t piece = lane; piece < kDim / 16; piece += kLanes) {
        const KeyWords words = Form::Words(bytes, page, t % kPlanesTokens, piece);
        const auto distances = bytes.Get<Line<uint8_t>>(page + Form::kAt.distances_at + piece * 16);
        TS_UNROLL
        for (uint32_t half = 0; half < 2; ++half) {
          const auto means =
              records.Get<Bytes>(spread + sizeof(SpreadScales) + piece * 16 + half * 8);
          TS_UNROLL
          for (uint32_t c = 0; c < 8; ++c) {
            const uint32_t channel = half * 8 + c;
            const uint32_t code = KeyCodes(words, channel / 4) >> 8 * (channel % 4) & 255;
            const float key = Fma(static_cast<float>(code) - 128,
                                  static_cast<float>(distances.at[channel]) * step,
                                  static_cast<float>(means.at[c]) * mean_scale);
            TS_UNROLL
            for (uint32_t h = 0; h < kGroup; ++h) {
              sums[h] = Fma(memory.q.Get(h * kDim + piece * 16 + channel), key, sums[h]);
            }
          }
        }
      }
    }
    TS_UNROLL
    for (uint32_t h = 0; h < kGroup; ++h) {
      sums[h] += ShuffleXor(sums[h], 1, kAllLanes);
      sums[h] += ShuffleXor(sums[h], 2, kAllLanes);
      if (h % kLanes == lane && e < listed) memory.weights.Set(h * kSplitTokens + t, sums[h]);
    }
  }
  SyncBlock();
}

// weights, of_means = what the split's rows of values are multiplied with.
template <uint32_t kDim, uint32_t kGroup>
TS_DEVICE void WeighRows(const ValueMemory<kDim, kGroup>& memory, uint32_t tokens,
                         HeadSums<kGroup>* sums) {
  TS_UNROLL
  for (uint32_t i = 0; i < HeadSums<kGroup>::kHeads; ++i) {
    const uint32_t h = WarpIndex() + i * kDecodeWarps;
    if (h >= kGroup) break;
    float top = -INFINITY, sum = 0;
    for (uint32_t t = LaneIndex(); t < kSplitTokens; t += kWarpLanes) {
      const float logit = memory.weights.Get(h * kSplitTokens + t);
      top = logit > top ? logit : top;
    }
    top = WarpMax(top);
    for (uint32_t t = LaneIndex(); t < kSplitTokens; t += kWarpLanes) {
      const bool has = t < tokens;
      const float weight = Exp2(memory.weights.Get(h * kSplitTokens + t) - top);
      sum += weight;
      const bool by_mean = has && memory.reads.Get(t) == static_cast<uint32_t>(TokenRead::kMean);
      float of_mean = by_mean ? weight : 0.0f;
      TS_UNROLL
      for (uint32_t lanes = kPlanesTokens / 2; lanes > 0; lanes /= 2) {
        of_mean += ShuffleXor(of_mean, lanes, kAllLanes);
      }
      if (!has) continue;
      memory.weights.Set(h * kSplitTokens + t, weight * memory.scales.Get(t));
      if (LaneIndex() % kPlanesTokens != 0) continue;
      const uint32_t page = t / kPlanesTokens;
      memory.of_means.Set(h * kSplitPages + page, of_mean * memory.scales.Get(kSplitTokens + page));
    }
    sums->m[i] = top;
    sums->d[i] = WarpSum(sum);
  }
  SyncBlock();
}

// o = weights * rows of values, of the thread's piece and its share of the rows: the listed
// tokens', then the pages' means.
template <uint32_t kDim, uint32_t kGroup>
TS_DEVICE void AddRows(const ValueMemory<kDim, kGroup>& memory, const CascadeCall& call,
                       uint32_t listed, uint32_t pages, float (&o)[kGroup][8]) {
  using Form = PlanesForm<kDim>;
  using Shape = typename ValueMemory<kDim, kGroup>::Shape;
  struct alignas(8) Bytes {
    int8_t at[8];
  };
  const Global<const uint8_t> bytes(call.pages.slabs.bytes, "pages");
  const uint32_t sharer = ThreadIndex() / Shape::kValuePieces,
                 piece = ThreadIndex() % Shape::kValuePieces;
  if (sharer >= Shape::kSharers) return;
  const auto add = [&](uint64_t row, const Shared<float>& weights, uint32_t at_weight,
                       uint32_t stride) {
    const auto codes = bytes.Get<Bytes>(row + piece * 8);
    TS_UNROLL
    for (uint32_t h = 0; h < kGroup; ++h) {
      const float weight = weights.Get(h * stride + at_weight);
      TS_UNROLL
      for (uint32_t c = 0; c < 8; ++c) {
        o[h][c] = Fma(weight, static_cast<float>(codes.at[c]), o[h][c]);
      }
    }
  };
  for (uint32_t e = sharer; e < listed; e += Shape::kSharers) {
    const uint32_t t = memory.values.Get(e), slot = t % kPlanesTokens;
    add(memory.page.Get(t / kPlanesTokens) + Form::kAt.v_at + slot * kDim, memory.weights, t,
        kSplitTokens);
  }
  for (uint32_t p = sharer; p < pages; p += Shape::kSharers) {
    add(memory.page.Get(p) + Form::kAt.mean_v_at, memory.of_means, p, kSplitPages);
  }
}

// Grid: splits of the candidates' tokens, KV heads, rows. The last block of an item merges.
template <uint32_t kDim, uint32_t kGroup>
TS_BOUNDED_KERNEL(kDecodeThreads)
ValuesKernel(CascadeCall call) {
  const CascadeItem item(call, BlockY(), BlockZ());
  if (item.pages == 0) return;
  const uint32_t all = item.Candidates(call) * kPlanesTokens, group = item.at.group;
  const uint32_t splits = SplitsOf(all), first = BlockX() * kSplitTokens;
  if (BlockX() >= splits) return;
  const uint32_t tokens = Least(all - first, kSplitTokens);
  SharedArena arena;
  const ValueMemory<kDim, kGroup> memory(arena);
  LoadQueryTo<kDim, kGroup>(memory.q, Global<const float>(call.step.q, "q"), item.at,
                            call.step.scale);
  const Listed listed = LoadSplit(memory, call, item, first, tokens);
  ExactLogits(memory, call, listed.full);
  HeadSums<kGroup> sums;
  WeighRows(memory, tokens, &sums);
  float o[kGroup][8] = {};
  AddRows(memory, call, listed.values, tokens / kPlanesTokens, o);
  const uint32_t width = group * (kDim + 2);
  const Global<float> partials = item.Partials(call, kDim);
  StorePartial<PlanesForm<kDim>>(memory.sums, group, sums, o,
                                 partials.Part(uint64_t{BlockX()} * width, width));
  if (!ArrivesLast(Global<uint32_t>(call.step.arrived, "arrived"), item.at.Item(), splits)) return;
  MergeSplits<kDim>(partials, splits + item.OpenSplits(call), group,
                    Global<float>(call.step.out, "out")
                        .Part(item.at.Item() * group * kDim, uint64_t{group} * kDim));
}

// ---- launches -----------------------------------------------------------------------------------

constexpr const char* kName = "attention_cascade";

constexpr uint32_t CandidatesSharedBytes(uint32_t dim, uint32_t group, uint64_t pages) {
  return static_cast<uint32_t>((group * dim + 8) * 4 + (pages + 3) / 4 * 16);
}

struct CandidatesLaunch {
  const CascadeCall& call;
  Stream stream;

  template <class T, uint32_t kDim, uint32_t kGroup>
  Status operator()() const {
    const uint32_t pages = call.how.pages_max;
    const LaunchConfig config{.kernel = "cascade_candidates",
                              .grid = {pages <= kScoredAtOnce ? 1 : (pages - 1) / kScoredAtOnce + 1,
                                       call.kv_heads, call.step.rows},
                              .threads = kDecodeThreads,
                              .shared_bytes = CandidatesSharedBytes(kDim, kGroup, pages),
                              .stream = stream};
    return Launch(config, CandidatesKernel<kDim, kGroup>, call);
  }
};

// What is left once candidates are listed and the open tokens have been attended to.
struct ReadLaunch {
  const CascadeCall& call;
  Stream stream;

  template <class T, uint32_t kDim, uint32_t kGroup>
  Status operator()() const {
    const uint32_t pages = call.how.chosen.list_pages;
    if (pages == 0) return Status();  // all are open
    LaunchConfig config{
        .kernel = "cascade_tokens",
        .grid = {(pages + kPagesAtOnce - 1) / kPagesAtOnce, call.kv_heads, call.step.rows},
        .threads = kDecodeThreads,
        .shared_bytes = ApproximateMemory<kDim, kGroup>::kBytes,
        .stream = stream};
    TS_RETURN_IF_ERROR(Launch(config, TokensKernel<kDim, kGroup>, call));
    config.kernel = "cascade_values";
    config.grid.x = (pages + kSplitPages - 1) / kSplitPages;
    config.shared_bytes = ValueMemory<kDim, kGroup>::kBytes;
    return Launch(config, ValuesKernel<kDim, kGroup>, call);
  }
};

}  // namespace

Status CheckCascade(const DecodeShape& shape, uint32_t pages_max) {
  if (shape.type != KvType::kPlanes || shape.page_tokens != kPlanesTokens || shape.group == 0 ||
      shape.group > 8) {
    return NoInstance(kName, shape, "planes");
  }
  const uint32_t shared = CandidatesSharedBytes(shape.head_dim, 8, pages_max);
  if (shared <= kSharedBytesMax) return Status();
  return Status(Code::kUnsupported, std::string(kName) + ": " + std::to_string(pages_max) +
                                        " pages of a row need " + std::to_string(shared) +
                                        " bytes of shared memory, at most " +
                                        std::to_string(kSharedBytesMax));
}

Status AttendCascade(const DecodeShape& shape, const CodedPages& pages, const DecodeStep& step,
                     const OpenTokens& open, const Cascade& cascade, Stream stream) {
  TS_RETURN_IF_ERROR(CheckCascade(shape, cascade.pages_max));
  const auto splits_of = [](uint64_t tokens) {
    return static_cast<uint32_t>((tokens + kSplitTokens - 1) / kSplitTokens);
  };
  CascadeCall call{};
  call.step = step;
  call.pages = FloatPages({pages.slabs, 0}, Log2(kPlanesTokens));
  call.pages.records = pages.records;
  call.pages.spread_at = pages.spread_at;
  call.how = cascade;
  call.kv_heads = shape.kv_heads;
  call.group = shape.group;
  call.splits_max =
      splits_of(uint64_t{cascade.chosen.list_pages} * kPlanesTokens) + splits_of(open.tokens_max);
  call.item_floats = CascadeFloats(shape.group, cascade.chosen.list_pages);
  call.open_tokens = open.tokens;
  // A type of 16 bits, so that groups are rounded up as theirs are.
  TS_RETURN_IF_ERROR(ForDim<F16>(kName, shape, CandidatesLaunch{call, stream}));
  const Array<uint32_t>& tokens = cascade.chosen.tokens;
  TS_RETURN_IF_ERROR(
      AttendOpen(shape, step, open, {true, {tokens.data, tokens.count}, call.splits_max}, stream));
  return ForDim<F16>(kName, shape, ReadLaunch{call, stream});
}

}  // namespace tinyserve::cuda
