// For kernels: scores of pages by their records, and the best of them. A block of 128 threads.
#ifndef TINYSERVE_KERNELS_CUDA_PAGE_SELECT_H_
#define TINYSERVE_KERNELS_CUDA_PAGE_SELECT_H_

#include "kernels/cuda/attention_sparse.h"
#include "kernels/cuda/decode_split.h"
#include "kernels/cuda/order_key.h"
#include "kernels/cuda/simt.h"

namespace tinyserve::cuda {

// ---- of a row and KV head whose pages are chosen ------------------------------------------------

// The pages of its sequence.
TS_DEVICE Global<const uint32_t> TableOf(const DecodeStep& step, const RowOfStep& at) {
  const uint64_t place = PlaceOf(step.table_of, at.row, at.row);
  return Global<const uint32_t>(step.tables, "tables")
      .Part(place * step.table_pages, step.table_pages);
}
// Scores by head, [group][pages_max].
TS_DEVICE Global<float> HeadScoresOf(const Array<float>& scores, const RowOfStep& at,
                                     uint32_t pages_max) {
  const uint64_t floats = uint64_t{at.group} * pages_max;
  return Global<float>(scores, "head_scores").Part(at.Item() * floats, floats);
}
TS_DEVICE Global<uint32_t> ListOf(const ChosenPages& chosen, const RowOfStep& at) {
  return Global<uint32_t>(chosen.lists, "lists")
      .Part(at.Item() * chosen.list_pages, chosen.list_pages);
}

// ---- scores -------------------------------------------------------------------------------------

// Eight halves, where records begin at multiples of 8 bytes too: those in planes do.
TS_DEVICE Line<F16> HalvesAt(const Global<const uint8_t>& records, uint64_t at, bool whole) {
  if (whole) return records.Get<Line<F16>>(at);
  struct alignas(8) Four {
    F16 at[4];
  };
  const auto low = records.Get<Four>(at), high = records.Get<Four>(at + 8);
  Line<F16> halves;
  TS_UNROLL
  for (uint32_t i = 0; i < 4; ++i) halves.at[i] = low.at[i], halves.at[4 + i] = high.at[i];
  return halves;
}

// One lane's share, the pieces lane, lane + 8 ..., of what a page's box or moments give: of the box
// the bound in `first`, of moments the mean's product and that of squares with the variance.
template <uint32_t kDim, uint32_t kGroup>
TS_DEVICE void ScorePieces(const Global<const uint8_t>& records, uint64_t rows_at,
                           uint32_t channels, bool whole, bool is_box, const Shared<float>& q,
                           uint32_t lane, float (&first)[kGroup], float (&second)[kGroup]) {
  constexpr uint32_t kPiece = 8;  // halves in 16 bytes
  for (uint32_t c = lane * kPiece; c < kDim; c += 8 * kPiece) {
    const Line<F16> low = HalvesAt(records, rows_at + 2 * c, whole);
    const Line<F16> high = HalvesAt(records, rows_at + 2 * (channels + c), whole);
    TS_UNROLL
    for (uint32_t h = 0; h < kGroup; ++h) {
      TS_UNROLL
      for (uint32_t i = 0; i < kPiece; i += 4) {
        const auto qs = q.Get<Line<float>>(h * kDim + c + i);
        TS_UNROLL
        for (uint32_t j = 0; j < 4; ++j) {
          const float a = Float(low.at[i + j]), b = Float(high.at[i + j]), x = qs.at[j];
          if (is_box) {
            first[h] = Fma(x, x > 0 ? b : a, first[h]);
          } else {
            first[h] = Fma(x, a, first[h]);
            second[h] = Fma(x * x, b, second[h]);
          }
        }
      }
    }
  }
}

// The same of a range (page/ranges.h), as sums of codes: of middles in `first`, of reaches, by the
// size of the query's numbers, in `second`.
template <uint32_t kDim, uint32_t kGroup>
TS_DEVICE void RangePieces(const Global<const uint8_t>& records, uint64_t codes_at,
                           const Shared<float>& q, uint32_t lane, float (&first)[kGroup],
                           float (&second)[kGroup]) {
  struct alignas(8) Bytes {
    uint8_t at[8];
  };
  for (uint32_t c = lane * 8; c < kDim; c += 64) {
    const auto middles = records.Get<Bytes>(codes_at + c);
    const auto reaches = records.Get<Bytes>(codes_at + kDim + c);
    TS_UNROLL
    for (uint32_t h = 0; h < kGroup; ++h) {
      TS_UNROLL
      for (uint32_t i = 0; i < 8; ++i) {
        const float x = q.Get(h * kDim + c + i);
        first[h] = Fma(x, static_cast<float>(static_cast<int8_t>(middles.at[i])), first[h]);
        second[h] = Fma(x < 0 ? -x : x, static_cast<float>(reaches.at[i]), second[h]);
      }
    }
  }
}

// to = the scaled queries by which pages are chosen for an item: its own, or those of a row before.
template <uint32_t kDim, uint32_t kGroup>
TS_DEVICE void LoadChoosingQuery(const Shared<float>& to, const Selection& how,
                                 const DecodeStep& step, const RowOfStep& at, uint32_t source) {
  const bool own = how.kept.rows.count == 0;
  LoadQueryTo<kDim, kGroup>(to, Global<const float>(own ? step.q : how.kept.q, "q"),
                            {source, at.head, at.kv_heads, at.group}, step.scale);
}

// Scores of the candidates first .. end - 1, pages of the table from `sink` on, by each head: to
// head_scores [group][pages_max]. q: times scale and log2(e), so that they are in units of log2.
template <uint32_t kDim, uint32_t kGroup>
TS_DEVICE void ScorePages(const Selection& how, const DeviceRecords& records, const RowOfStep& at,
                          const Shared<float>& q, const Global<const uint32_t>& table,
                          uint32_t first, uint32_t end, const Global<float>& head_scores) {
  constexpr uint32_t kLanes = 8;  // of a page
  const Global<const uint8_t> bytes(records.slabs.bytes, "records");
  const uint32_t lane = ThreadIndex() % kLanes;
  const bool is_box = how.kind == ScoreKind::kBox, is_range = records.range_at != kNoRange;
  const bool whole = records.slabs.item_bytes % 16 == 0;
  for (uint32_t base = first; base < end; base += kDecodeThreads / kLanes) {
    const uint32_t i = base + ThreadIndex() / kLanes;
    uint64_t record = 0;
    if (i < end) {
      record = ItemAt(records.slabs, at.head, table.Get(how.sink + i));
    }
    float best[kGroup] = {};
    for (uint32_t box = 0; box < records.boxes; ++box) {
      float a[kGroup] = {}, b[kGroup] = {};
      Line<float> scales{};  // a RangeScales
      if (i < end && is_range) {
        const uint64_t range = record + records.range_at;
        scales = bytes.Get<Line<float>>(range);
        RangePieces<kDim>(bytes, range + sizeof(RangeScales), q, lane, a, b);
      } else if (i < end) {
        const uint64_t rows = is_box ? records.box_at + uint64_t{box} * records.box_bytes
                                     : uint64_t{records.moments_at};
        ScorePieces<kDim>(bytes, record + rows, records.channels, whole, is_box, q, lane, a, b);
      }
      TS_UNROLL
      for (uint32_t h = 0; h < kGroup; ++h) {
        TS_UNROLL
        for (uint32_t lanes = kLanes / 2; lanes > 0; lanes /= 2) {
          a[h] += ShuffleXor(a[h], lanes, kAllLanes);
          b[h] += ShuffleXor(b[h], lanes, kAllLanes);
        }
        if (lane != h % kLanes) continue;
        const float score = is_range ? a[h] * scales.at[0] + b[h] * scales.at[1]
                            : is_box ? a[h]
                                     : a[h] + how.alpha * SquareRoot(b[h]);
        best[h] = box == 0 || score > best[h] ? score : best[h];
      }
    }
    TS_UNROLL
    for (uint32_t h = 0; h < kGroup; ++h) {
      if (lane != h % kLanes || h >= at.group || i >= end) continue;
      head_scores.Set(uint64_t{h} * how.pages_max + i, best[h]);
    }
  }
}

// keys = those of the candidates' scores, pooled over the heads.
template <uint32_t kGroup>
TS_DEVICE void PoolScores(const Selection& how, uint32_t group, uint32_t count,
                          const Global<float>& head_scores, const Shared<uint32_t>& keys) {
  TS_SHARED(float, tops, 8);
  TS_SHARED(float, shares, 8);  // 1 / sum of exp2(score - top)
  const bool softmax = how.pool == ScorePool::kSoftmax;
  const auto score = [&](uint32_t h, uint32_t i) {
    return head_scores.GetFresh<float>(uint64_t{h} * how.pages_max + i);
  };
  for (uint32_t h = WarpIndex(); softmax && h < group; h += kDecodeWarps) {
    float top = -INFINITY, sum = 0;
    for (uint32_t i = LaneIndex(); i < count; i += kWarpLanes) {
      const float other = score(h, i);
      top = other > top ? other : top;
    }
    top = WarpMax(top);
    for (uint32_t i = LaneIndex(); i < count; i += kWarpLanes) sum += Exp2(score(h, i) - top);
    sum = WarpSum(sum);
    if (LaneIndex() != 0) continue;
    tops.Set(h, top);
    shares.Set(h, 1 / sum);
  }
  SyncBlock();
  for (uint32_t i = ThreadIndex(); i < count; i += kDecodeThreads) {
    float pooled = how.pool == ScorePool::kMax ? -INFINITY : 0.0f;
    for (uint32_t h = 0; h < group; ++h) {
      const float one = score(h, i);
      if (how.pool == ScorePool::kMax) {
        pooled = one > pooled ? one : pooled;
      } else {
        pooled += softmax ? Exp2(one - tops.Get(h)) * shares.Get(h) : one;
      }
    }
    keys.Set(i, KeyOf(pooled));
  }
  SyncBlock();
}

// keys = those of an item's scores that are given; whether one of them is no number.
TS_DEVICE bool TakeScores(const Selection& how, uint64_t item, uint32_t count,
                          const Shared<uint32_t>& keys) {
  TS_SHARED(uint32_t, wrong, 1);
  if (ThreadIndex() == 0) wrong.Set(0, 0);
  SyncBlock();
  const Global<const float> scores =
      Global<const float>(how.page_scores, "page_scores").Part(item * how.pages_max, count);
  for (uint32_t i = ThreadIndex(); i < count; i += kDecodeThreads) {
    const float score = scores.Get(i);
    if (score != score) AtomicMax(wrong, 0, 1u);
    keys.Set(i, KeyOf(score));
  }
  SyncBlock();
  return wrong.Get(0) != 0;
}

// Sums of the lanes before one, and its own.
TS_DEVICE uint32_t SumUpTo(uint32_t value) {
  const uint32_t lane = LaneIndex();
  TS_UNROLL
  for (uint32_t lanes = 1; lanes < kWarpLanes; lanes *= 2) {
    const uint32_t other = Shuffle(value, lane >= lanes ? lane - lanes : lane, kAllLanes);
    if (lane >= lanes) value += other;
  }
  return value;
}

// Of counts [256], by one warp: the digit of the left-th largest, how many of that digit are among
// them, and whether these are all that there are.
TS_DEVICE void FindDigit(const Shared<uint32_t>& counts, uint32_t left,
                         const Shared<uint32_t>& found) {
  constexpr uint32_t kDigits = 8;  // of a lane
  const uint32_t top = 255 - LaneIndex() * kDigits;
  uint32_t own = 0;
  for (uint32_t i = 0; i < kDigits; ++i) own += counts.Get(top - i);
  const uint32_t through = SumUpTo(own);
  uint32_t before = through - own;
  if (before >= left || through < left) return;
  for (uint32_t i = 0; i < kDigits; ++i) {
    const uint32_t count = counts.Get(top - i);
    if (before + count >= left) {
      found.Set(0, top - i);
      found.Set(1, left - before);
      found.Set(2, count == left - before ? 1 : 0);
      return;
    }
    before += count;
  }
}

// The k-th largest key as far as its digits matter: keys equal to `prefix` under `mask` are wanted
// `ties` times, the lowest index first, and all greater ones.
struct Threshold {
  uint32_t prefix, mask, ties;
};

// By radix select: 8 bits at a time, from the highest. 1 <= k <= n.
TS_DEVICE Threshold FindThreshold(const Shared<uint32_t>& keys, uint32_t n, uint32_t k) {
  TS_SHARED(uint32_t, counts, 256);
  TS_SHARED(uint32_t, found, 4);
  Threshold t{0, 0, k};
  for (uint32_t shift = 32; shift > 0;) {
    shift -= 8;
    for (uint32_t i = ThreadIndex(); i < 256; i += kDecodeThreads) counts.Set(i, 0);
    SyncBlock();
    for (uint32_t i = ThreadIndex(); i < n; i += kDecodeThreads) {
      const uint32_t key = keys.Get(i);
      if ((key & t.mask) == t.prefix) AtomicAdd(counts, key >> shift & 255, 1u);
    }
    SyncBlock();
    if (WarpIndex() == 0) FindDigit(counts, t.ties, found);
    SyncBlock();
    t.prefix |= found.Get(0) << shift;
    t.mask |= 255u << shift;
    t.ties = found.Get(1);
    if (found.Get(2) != 0) break;
  }
  return t;
}

// store(position, i) of the k best of n keys, in ascending order of i. n < 65536.
template <class Store>
TS_DEVICE void TopKeys(const Shared<uint32_t>& keys, uint32_t n, uint32_t k, const Store& store) {
  TS_SHARED(uint32_t, warps, kDecodeWarps);
  const Threshold t = FindThreshold(keys, n, k);
  // Each thread has neighbours; the sums before it say where its own go. Both sums in one word.
  const uint32_t each = (n + kDecodeThreads - 1) / kDecodeThreads;
  const uint32_t first = ThreadIndex() * each < n ? ThreadIndex() * each : n;
  const uint32_t end = n - first < each ? n : first + each;
  uint32_t own = 0;  // above the threshold << 16 | at it
  for (uint32_t i = first; i < end; ++i) {
    const uint32_t key = keys.Get(i) & t.mask;
    own += key > t.prefix ? 0x10000u : key == t.prefix ? 1u : 0u;
  }
  const uint32_t through = SumUpTo(own);
  if (LaneIndex() == kWarpLanes - 1) warps.Set(WarpIndex(), through);
  SyncBlock();
  uint32_t before = through - own;
  for (uint32_t w = 0; w < WarpIndex(); ++w) before += warps.Get(w);
  uint32_t ties = before & 0xffff, at = (before >> 16) + (ties < t.ties ? ties : t.ties);
  for (uint32_t i = first; i < end; ++i) {
    const uint32_t key = keys.Get(i) & t.mask;
    if (key < t.prefix || (key == t.prefix && ties++ >= t.ties)) continue;
    store(at++, i);
  }
}

// How many pages a row reads, and how many of them are chosen by their scores.
struct Budget {
  uint32_t pages, read;
  uint32_t recent;      // pages
  uint32_t candidates;  // pages from `sink` on that are compared
  uint32_t chosen;      // of them
  uint32_t taken;       // of the chosen, the first ones; newer pages fill what is left
  uint32_t source;      // row whose query chooses; kNoRow: a list that is kept
  ChoicePlaces places;

  // Candidates whose scores are wanted.
  TS_DEVICE uint32_t Scored() const { return chosen > 0 && source != kNoRow ? candidates : 0; }
};
TS_DEVICE Budget BudgetOf(const Selection& how, const RowOfStep& at, uint32_t pages) {
  uint32_t recent = how.recent;
  if (how.newer.count != 0) {
    const uint32_t newer = Global<const uint32_t>(how.newer, "newer").Get(at.row);
    recent -= newer < recent ? newer : recent;
  }
  const uint32_t forced = how.sink + recent;
  uint32_t read = Global<const uint32_t>(how.budgets, "budgets").Get(at.row);
  read = read < forced ? forced : read;
  Budget budget{pages, pages, recent, 0, 0, 0, at.row, {kNoPlace, kNoPlace}};
  if (read >= pages) return budget;
  budget.read = read;
  budget.candidates = pages - forced;
  budget.chosen = budget.taken = read - forced;
  if (budget.chosen == 0 || how.kept.rows.count == 0) return budget;
  const auto choice = Global<const RowChoice>(how.kept.rows, "choices").Get(at.row);
  budget.candidates = choice.end - how.sink;
  budget.chosen = choice.chosen;
  budget.taken = choice.read;
  budget.source = choice.source;
  budget.places = Global<const ChoicePlaces>(how.kept.places, "places").Get(at.row);
  return budget;
}

// Of a place for a choice, at a KV head.
TS_DEVICE Global<uint16_t> KeptList(const KeptChoices& kept, const RowOfStep& at, uint32_t place) {
  const uint64_t item = uint64_t{place} * at.kv_heads + at.head;
  return Global<uint16_t>(kept.lists, "kept choices").Part(item * kept.list_pages, kept.list_pages);
}

// store(position, index into the table) of all pages that a row reads. All threads of the block.
// Scores that are given are in `keys` already.
template <uint32_t kGroup, class Store>
TS_DEVICE void ChoosePages(const Selection& how, const Budget& budget, const RowOfStep& at,
                           const Global<float>& head_scores, const Shared<uint32_t>& keys,
                           const Store& store) {
  if (budget.read == budget.pages) {
    for (uint32_t i = ThreadIndex(); i < budget.pages; i += kDecodeThreads) store(i, i);
    return;
  }
  // Sinks, chosen ones, candidates that are newer than the choice, the newest pages.
  const uint32_t newer_at = how.sink + budget.taken, recent_at = budget.read - budget.recent;
  for (uint32_t i = ThreadIndex(); i < how.sink; i += kDecodeThreads) store(i, i);
  for (uint32_t i = newer_at + ThreadIndex(); i < recent_at; i += kDecodeThreads) {
    store(i, how.sink + budget.candidates + i - newer_at);
  }
  for (uint32_t i = ThreadIndex(); i < budget.recent; i += kDecodeThreads) {
    store(recent_at + i, budget.pages - budget.recent + i);
  }
  if (budget.chosen == 0) return;
  if (budget.source == kNoRow) {
    const Global<uint16_t> list = KeptList(how.kept, at, budget.places.from);
    for (uint32_t i = ThreadIndex(); i < budget.taken; i += kDecodeThreads) {
      store(how.sink + i, list.Get(i));
    }
    return;
  }
  if (how.page_scores.count == 0) {
    PoolScores<kGroup>(how, at.group, budget.candidates, head_scores, keys);
  }
  TopKeys(keys, budget.candidates, budget.chosen, [&](uint32_t position, uint32_t i) {
    const uint32_t page = how.sink + i;
    if (position < budget.taken) store(how.sink + position, page);
    if (budget.places.to == kNoPlace) return;
    KeptList(how.kept, at, budget.places.to).Set(position, static_cast<uint16_t>(page));
  });
}

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_PAGE_SELECT_H_
