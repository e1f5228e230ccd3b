// For kernels: the query heads of one KV head against up to 256 tokens of a list of pages.
//
// A block of 128 threads takes tiles of 32 tokens, copied to shared memory while the tile before is
// computed. A token's logits are four lanes' work, the softmax of a head a warp's, and each thread
// sums one 16-byte piece of the values over some of the tokens. All g heads share what is read.
#ifndef TINYSERVE_KERNELS_CUDA_DECODE_SPLIT_H_
#define TINYSERVE_KERNELS_CUDA_DECODE_SPLIT_H_

#include "kernels/cuda/decode_forms.h"
#include "kernels/cuda/paged.h"
#include "kernels/cuda/simt.h"

namespace tinyserve::cuda {

constexpr uint32_t kDecodeWarps = kDecodeThreads / kWarpLanes;
constexpr float kLog2E = 1.44269504088896340736f;

// kGroup is the group rounded up to 1, 2, 4 or 8.
template <class Form, uint32_t kGroup>
struct TileShape {
  static constexpr uint32_t kDim = Form::kDim;
  static constexpr uint32_t kKeyPieces = kDim / Form::kKeyChannels;
  static constexpr uint32_t kValuePieces = kDim / Form::kValueChannels;
  static constexpr uint32_t kMetaAt = FormTile<Form>::kMetaAt;
  static constexpr uint32_t kStage = FormTile<Form>::kBytes;
  // Threads that sum the same piece of the values, each over its share of the tokens.
  static constexpr uint32_t kSharers = kDecodeThreads / kValuePieces;
  static constexpr uint32_t kHeadsAtOnce = kGroup < 4 ? kGroup : 4;  // of the last sum
  static constexpr uint32_t kSumBytes = kSharers * kHeadsAtOnce * kDim * sizeof(float);
  static constexpr uint32_t kStagesBytes = 2 * kStage > kSumBytes ? 2 * kStage : kSumBytes;
  static constexpr uint32_t kFloats =
      kGroup * kDim + kGroup * kTileTokens + 8 + (Form::kRangeFloats + 3) / 4 * 4;
  static constexpr uint32_t kSharedBytes = kStagesBytes + kFloats * sizeof(float);
  static_assert(kStage % 16 == 0 && kStagesBytes % 16 == 0);
};

template <class Form, uint32_t kGroup>
struct SplitMemory {
  using Shape = TileShape<Form, kGroup>;
  Shared<uint8_t> stages;  // [2] tiles
  Shared<float> q;         // [kGroup][kDim] times scale and log2(e); zeros past the group
  Shared<float> weights;   // [kGroup][32] logits, then their exponentials
  Shared<float> rescale;   // [kGroup] what sums so far are multiplied with
  Shared<float> ranges;    // [kRangeFloats] of the tile that is computed

  TS_DEVICE explicit SplitMemory(SharedArena& arena)
      : stages(arena.Take<uint8_t>(Shape::kStagesBytes, "stages")),
        q(arena.Take<float>(kGroup * Form::kDim, "q")),
        weights(arena.Take<float>(kGroup * kTileTokens, "weights")),
        rescale(arena.Take<float>(8, "rescale")),
        ranges(arena.Take<float>(Form::kRangeFloats, "ranges")) {}
  TS_DEVICE Shared<uint8_t> Tile(uint32_t stage) const {
    return stages.Part(stage * Shape::kStage, Shape::kStage);
  }
};

// The block's part of what a step says of a row and a KV head.
struct RowOfStep {
  uint32_t row, head, kv_heads, group;

  TS_DEVICE uint64_t Item() const { return uint64_t{row} * kv_heads + head; }
};

// Where a row's pages stand in an array of lists; `own`: where no table_of says so.
TS_DEVICE uint64_t PlaceOf(const Array<const uint32_t>& table_of, uint32_t row, uint64_t own) {
  return table_of.count == 0 ? own : Global<const uint32_t>(table_of, "table_of").Get(row);
}

// to [kGroup][kDim] = the item's queries times scale and log2(e), zeros past the group.
template <uint32_t kDim, uint32_t kGroup>
TS_DEVICE void LoadQueryTo(const Shared<float>& to, const Global<const float>& q,
                           const RowOfStep& at, float scale) {
  for (uint32_t i = ThreadIndex(); i < kGroup * kDim; i += kDecodeThreads) {
    const float value =
        i < at.group * kDim ? q.Get(at.Item() * at.group * kDim + i) * (scale * kLog2E) : 0.0f;
    to.Set(i, value);
  }
}
template <class Form, uint32_t kGroup>
TS_DEVICE void LoadQuery(const SplitMemory<Form, kGroup>& memory, const Global<const float>& q,
                         const RowOfStep& at, float scale) {
  LoadQueryTo<Form::kDim, kGroup>(memory.q, q, at, scale);
}

// Begins to copy the tokens first .. end - 1 of a list, a tile at most, to a stage.
template <class Form, uint32_t kGroup, class List>
TS_DEVICE void CopyTile(const SplitMemory<Form, kGroup>& memory, uint32_t stage,
                        const PagesOfHead& pages, const List& list, uint32_t first, uint32_t end) {
  const uint32_t tokens = first >= end ? 0 : end - first < kTileTokens ? end - first : kTileTokens;
  CopyFormTile<Form>(memory.Tile(stage), pages, list, first, tokens);
  CopyAsyncCommit();
}
// weights = logits of a tile, -inf past its tokens.
template <class Form, uint32_t kGroup>
TS_DEVICE void TileLogits(const SplitMemory<Form, kGroup>& memory, uint32_t stage,
                          uint32_t tokens) {
  using Shape = TileShape<Form, kGroup>;
  constexpr uint32_t kLanes = kDecodeThreads / kTileTokens;  // of a token
  static_assert(kLanes == 4);
  const uint32_t token = ThreadIndex() / kLanes, lane = ThreadIndex() % kLanes;
  float sums[kGroup] = {};
  if (token < tokens) {
    for (uint32_t piece = lane; piece < Shape::kKeyPieces; piece += kLanes) {
      float k[Form::kKeyChannels];
      Form::Keys(memory.Tile(stage), memory.ranges, token, piece, k);
      TS_UNROLL
      for (uint32_t h = 0; h < kGroup; ++h) {
        TS_UNROLL
        for (uint32_t c = 0; c < Form::kKeyChannels; c += 4) {
          const auto q =
              memory.q.template Get<Line<float>>(h * Form::kDim + piece * Form::kKeyChannels + c);
          TS_UNROLL
          for (uint32_t i = 0; i < 4; ++i) sums[h] = Fma(q.at[i], k[c + i], sums[h]);
        }
      }
    }
  }
  TS_UNROLL
  for (uint32_t h = 0; h < kGroup; ++h) {
    sums[h] += ShuffleXor(sums[h], 1, kAllLanes);
    sums[h] += ShuffleXor(sums[h], 2, kAllLanes);
    if (h % kLanes == lane) {
      memory.weights.Set(h * kTileTokens + token, token < tokens ? sums[h] : -INFINITY);
    }
  }
}

// Largest logit so far, and the sum of weights relative to it, of the heads warp, warp + 4: the
// same in all lanes.
template <uint32_t kGroup>
struct HeadSums {
  static constexpr uint32_t kHeads = (kGroup + kDecodeWarps - 1) / kDecodeWarps;
  float m[kHeads], d[kHeads];
};

// weights = exp2(logit - m), and what that does to the sums.
template <class Form, uint32_t kGroup>
TS_DEVICE void TileSoftmax(const SplitMemory<Form, kGroup>& memory, HeadSums<kGroup>* sums) {
  TS_UNROLL
  for (uint32_t i = 0; i < HeadSums<kGroup>::kHeads; ++i) {
    const uint32_t h = WarpIndex() + i * kDecodeWarps;
    if (h >= kGroup) return;
    const uint32_t at = h * kTileTokens + LaneIndex();
    const float logit = memory.weights.Get(at), top = WarpMax(logit);
    const float m = sums->m[i] > top ? sums->m[i] : top;
    const float weight = Exp2(logit - m), rescale = Exp2(sums->m[i] - m);
    memory.weights.Set(at, weight);
    sums->d[i] = sums->d[i] * rescale + WarpSum(weight);
    sums->m[i] = m;
    if (LaneIndex() == 0) memory.rescale.Set(h, rescale);
  }
}

// o += weights * values, of the thread's piece and its share of the tile's tokens.
template <class Form, uint32_t kGroup>
TS_DEVICE void TileValues(const SplitMemory<Form, kGroup>& memory, uint32_t stage, uint32_t tokens,
                          float (&o)[kGroup][Form::kValueChannels]) {
  using Shape = TileShape<Form, kGroup>;
  const uint32_t sharer = ThreadIndex() / Shape::kValuePieces,
                 piece = ThreadIndex() % Shape::kValuePieces;
  if (sharer >= Shape::kSharers) return;
  TS_UNROLL
  for (uint32_t h = 0; h < kGroup; ++h) {
    const float rescale = memory.rescale.Get(h);
    TS_UNROLL
    for (uint32_t c = 0; c < Form::kValueChannels; ++c) o[h][c] *= rescale;
  }
  for (uint32_t token = sharer; token < tokens; token += Shape::kSharers) {
    float v[Form::kValueChannels];
    Form::Values(memory.Tile(stage), memory.ranges, token, piece, v);
    TS_UNROLL
    for (uint32_t h = 0; h < kGroup; ++h) {
      const float weight = memory.weights.Get(h * kTileTokens + token);
      TS_UNROLL
      for (uint32_t c = 0; c < Form::kValueChannels; ++c) o[h][c] = Fma(weight, v[c], o[h][c]);
    }
  }
}

// Adds up what threads have of the values, and writes a partial result. `rows`: TileShape's
// kSumBytes of scratch, on which no copy is under way.
template <class Form, uint32_t kGroup>
TS_DEVICE void StorePartial(const Shared<float>& rows, uint32_t group, const HeadSums<kGroup>& sums,
                            const float (&o)[kGroup][Form::kValueChannels],
                            const Global<float>& partial) {
  using Shape = TileShape<Form, kGroup>;
  constexpr uint32_t kHeads = Shape::kHeadsAtOnce, kDim = Form::kDim;
  const uint32_t sharer = ThreadIndex() / Shape::kValuePieces,
                 piece = ThreadIndex() % Shape::kValuePieces;
  TS_UNROLL
  for (uint32_t first = 0; first < kGroup; first += kHeads) {
    SyncBlock();
    TS_UNROLL
    for (uint32_t h = 0; h < kHeads; ++h) {
      TS_UNROLL
      for (uint32_t c = 0; c < Form::kValueChannels && sharer < Shape::kSharers; ++c) {
        rows.Set((sharer * kHeads + h) * kDim + piece * Form::kValueChannels + c, o[first + h][c]);
      }
    }
    SyncBlock();
    for (uint32_t i = ThreadIndex(); i < kHeads * kDim; i += kDecodeThreads) {
      if (first + i / kDim >= group) break;
      float sum = 0;
      for (uint32_t s = 0; s < Shape::kSharers; ++s) sum += rows.Get(s * kHeads * kDim + i);
      partial.Set(first * kDim + i, sum);
    }
  }
  TS_UNROLL
  for (uint32_t i = 0; i < HeadSums<kGroup>::kHeads; ++i) {
    const uint32_t h = WarpIndex() + i * kDecodeWarps;
    if (h >= group || LaneIndex() != 0) continue;
    partial.Set(group * kDim + h, sums.m[i]);
    partial.Set(group * (kDim + 1) + h, sums.d[i]);
  }
}

// The partial result of tokens first .. end - 1 of the list, at least one and kSplitTokens at most.
// list(i): the page of its tokens i * page_tokens and on. All threads of the block call it.
template <class Form, uint32_t kGroup, class List>
TS_DEVICE void AttendSplit(const SplitMemory<Form, kGroup>& memory, const PagesOfHead& pages,
                           const List& list, uint32_t first, uint32_t end, uint32_t group,
                           const Global<float>& partial) {
  HeadSums<kGroup> sums;
  TS_UNROLL
  for (uint32_t i = 0; i < HeadSums<kGroup>::kHeads; ++i) {
    sums.m[i] = -INFINITY;
    sums.d[i] = 0;
  }
  float o[kGroup][Form::kValueChannels] = {};
  SyncBlock();  // the memory may hold what another split has left
  CopyTile(memory, 0, pages, list, first, end);
  for (uint32_t at = first, stage = 0; at < end; at += kTileTokens, stage ^= 1) {
    const uint32_t tokens = end - at < kTileTokens ? end - at : kTileTokens;
    CopyAsyncWait<0>();
    SyncBlock();  // the tile is here, and nobody reads the one before
    CopyTile(memory, stage ^ 1, pages, list, at + kTileTokens, end);
    if constexpr (Form::kMetaBytes > 0) {
      Form::Prepare(memory.Tile(stage), memory.ranges, TileShape<Form, kGroup>::kMetaAt, tokens);
      SyncBlock();
    }
    TileLogits(memory, stage, tokens);
    SyncBlock();
    TileSoftmax(memory, &sums);
    SyncBlock();
    TileValues(memory, stage, tokens, o);
  }
  CopyAsyncWait<0>();
  StorePartial<Form>(memory.stages.template As<float>(), group, sums, o, partial);
}

// out = the merged partial results of `splits` splits, in index order. All threads of the block.
template <uint32_t kDim>
TS_DEVICE void MergeSplits(const Global<float>& partials, uint32_t splits, uint32_t group,
                           const Global<float>& out) {
  const uint32_t stride = group * (kDim + 2);
  for (uint32_t i = ThreadIndex(); i < group * kDim; i += BlockThreads()) {
    const uint32_t h = i / kDim;
    float m = -INFINITY;
    for (uint32_t s = 0; s < splits; ++s) {
      const float other = partials.template GetFresh<float>(s * stride + group * kDim + h);
      m = m > other ? m : other;
    }
    float d = 0, sum = 0;
    for (uint32_t s = 0; s < splits; ++s) {
      const uint32_t at = s * stride;
      const float weight = Exp2(partials.template GetFresh<float>(at + group * kDim + h) - m);
      d += weight * partials.template GetFresh<float>(at + group * (kDim + 1) + h);
      sum += weight * partials.template GetFresh<float>(at + i);
    }
    out.Set(i, d == 0 ? 0.0f : sum / d);
  }
}

// True in the last of `blocks` blocks that call it for an item: what they have written can be read
// (GetFresh). Leaves the count at 0 for the next launch. All threads of the block.
TS_DEVICE bool ArrivesLast(const Global<uint32_t>& arrived, uint64_t item, uint32_t blocks) {
  TS_SHARED(uint32_t, last, 1);
  Fence();
  SyncBlock();
  if (ThreadIndex() == 0) {
    const bool all = AtomicAdd(arrived, item, 1u) == blocks - 1;
    if (all) arrived.Set(item, 0);
    last.Set(0, all ? 1 : 0);
  }
  SyncBlock();
  const bool is_last = last.Get(0) != 0;
  if (is_last) Fence();
  return is_last;
}

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_DECODE_SPLIT_H_
