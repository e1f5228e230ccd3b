// For kernels: the query heads of one KV head against up to 256 tokens of a list of pages.
//
// A block of 128 threads takes tiles of 32 tokens, copied to shared memory while the tile before is
// computed. A token's logits are four lanes' work, the softmax of a head a warp's, and each thread
// sums one 16-byte piece of the values over some of the tokens. All g heads share what is read.
#ifndef TINYSERVE_KERNELS_CUDA_DECODE_SPLIT_H_
#define TINYSERVE_KERNELS_CUDA_DECODE_SPLIT_H_

#include "kernels/cuda/paged.h"
#include "kernels/cuda/simt.h"

namespace tinyserve::cuda {

constexpr uint32_t kDecodeThreads = 128;
constexpr uint32_t kDecodeWarps = kDecodeThreads / kWarpLanes;
constexpr uint32_t kTileTokens = 32;
constexpr float kLog2E = 1.44269504088896340736f;

// Geometry of a tile of elements T; kGroup is the group rounded up to 1, 2, 4 or 8.
template <class T, uint32_t kDim, uint32_t kGroup>
struct TileShape {
  static constexpr uint32_t kPiece = 16 / sizeof(T);  // elements of 16 bytes
  static constexpr uint32_t kPieces = kDim / kPiece;  // of a row
  // Bytes of a row in shared memory: rows begin half the banks apart, so that the eight lanes whose
  // accesses go together, four of each of two tokens, touch all banks once.
  static constexpr uint32_t kRowBytes = (kDim * sizeof(T) + 63) / 128 * 128 + 64;
  static constexpr uint32_t kRow = kRowBytes / sizeof(T);
  static constexpr uint32_t kStage = 2 * kTileTokens * kRow;  // elements: keys, then values
  // Threads that sum the same piece of the values, each over its share of the tokens.
  static constexpr uint32_t kSharers = kDecodeThreads / kPieces;
  static constexpr uint32_t kHeadsAtOnce = kGroup < 4 ? kGroup : 4;  // of the last sum
  static constexpr uint32_t kSharedBytes =
      2 * kStage * sizeof(T) + (kGroup * kDim + kGroup * kTileTokens + 8) * sizeof(float);
  static_assert(kDim % kPiece == 0 && kRowBytes >= kDim * sizeof(T) && kRowBytes % 128 == 64);
  static_assert(kSharers * kHeadsAtOnce * kDim * sizeof(float) <= 2 * kStage * sizeof(T));
};

template <class T, uint32_t kDim, uint32_t kGroup>
struct SplitMemory {
  using Shape = TileShape<T, kDim, kGroup>;
  Shared<T> stages;       // [2] keys and values of a tile, [32][kRow] each
  Shared<float> q;        // [kGroup][kDim] times scale and log2(e); zeros past the group
  Shared<float> weights;  // [kGroup][32] logits, then their exponentials
  Shared<float> rescale;  // [kGroup] what sums so far are multiplied with

  TS_DEVICE explicit SplitMemory(SharedArena& arena)
      : stages(arena.Take<T>(2 * Shape::kStage, "stages")),
        q(arena.Take<float>(kGroup * kDim, "q")),
        weights(arena.Take<float>(kGroup * kTileTokens, "weights")),
        rescale(arena.Take<float>(8, "rescale")) {}
};

// Where the pages of a KV head lie.
template <class Byte>
TS_DEVICE uint64_t ItemAt(const Slabs<Byte>& slabs, uint32_t head, uint32_t index) {
  const uint32_t within = index & ((1u << slabs.extent_shift) - 1);
  return head * slabs.head_stride + (index >> slabs.extent_shift) * slabs.extent_stride +
         uint64_t{within} * slabs.item_bytes;
}

struct PagesOfHead {
  Slabs<const uint8_t> slabs;
  uint32_t v_offset, page_shift, head;
};

// The block's part of what a step says of a row and a KV head.
struct RowOfStep {
  uint32_t row, head, kv_heads, group;

  TS_DEVICE uint64_t Item() const { return uint64_t{row} * kv_heads + head; }
};

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
template <class T, uint32_t kDim, uint32_t kGroup>
TS_DEVICE void LoadQuery(const SplitMemory<T, kDim, kGroup>& memory, const Global<const float>& q,
                         const RowOfStep& at, float scale) {
  LoadQueryTo<kDim, kGroup>(memory.q, q, at, scale);
}

// Begins to copy the tokens first .. end - 1 of a list, a tile at most, to a stage.
template <class T, uint32_t kDim, uint32_t kGroup, class List>
TS_DEVICE void CopyTile(const SplitMemory<T, kDim, kGroup>& memory, uint32_t stage,
                        const Global<const uint8_t>& bytes, const PagesOfHead& pages,
                        const List& list, uint32_t first, uint32_t end) {
  using Shape = TileShape<T, kDim, kGroup>;
  const uint32_t tokens = first >= end ? 0 : end - first < kTileTokens ? end - first : kTileTokens;
  for (uint32_t i = ThreadIndex(); i < tokens * Shape::kPieces; i += kDecodeThreads) {
    const uint32_t token = i / Shape::kPieces, piece = i % Shape::kPieces;
    const uint32_t at = first + token, slot = at & ((1u << pages.page_shift) - 1);
    const uint64_t from = ItemAt(pages.slabs, pages.head, list(at >> pages.page_shift)) +
                          slot * uint32_t{kDim * sizeof(T)} + piece * 16;
    const uint32_t to = stage * Shape::kStage + token * Shape::kRow + piece * Shape::kPiece;
    CopyAsync16(memory.stages, to, bytes, from);
    CopyAsync16(memory.stages, to + kTileTokens * Shape::kRow, bytes, from + pages.v_offset);
  }
  CopyAsyncCommit();
}

// weights = logits of a tile, -inf past its tokens.
template <class T, uint32_t kDim, uint32_t kGroup>
TS_DEVICE void TileLogits(const SplitMemory<T, kDim, kGroup>& memory, uint32_t stage,
                          uint32_t tokens) {
  using Shape = TileShape<T, kDim, kGroup>;
  constexpr uint32_t kLanes = kDecodeThreads / kTileTokens;  // of a token
  static_assert(kLanes == 4);
  const uint32_t token = ThreadIndex() / kLanes, lane = ThreadIndex() % kLanes;
  float sums[kGroup] = {};
  if (token < tokens) {
    for (uint32_t piece = lane; piece < Shape::kPieces; piece += kLanes) {
      const auto k = memory.stages.template Get<Line<T>>(
          stage * Shape::kStage + token * Shape::kRow + piece * Shape::kPiece);
      TS_UNROLL
      for (uint32_t h = 0; h < kGroup; ++h) {
        TS_UNROLL
        for (uint32_t c = 0; c < Shape::kPiece; c += 4) {
          const auto q = memory.q.template Get<Line<float>>(h * kDim + piece * Shape::kPiece + c);
          TS_UNROLL
          for (uint32_t i = 0; i < 4; ++i) sums[h] = Fma(q.at[i], Float(k.at[c + i]), sums[h]);
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
template <class T, uint32_t kDim, uint32_t kGroup>
TS_DEVICE void TileSoftmax(const SplitMemory<T, kDim, kGroup>& memory, HeadSums<kGroup>* sums) {
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
template <class T, uint32_t kDim, uint32_t kGroup>
TS_DEVICE void TileValues(const SplitMemory<T, kDim, kGroup>& memory, uint32_t stage,
                          uint32_t tokens, float (&o)[kGroup][TileShape<T, kDim, kGroup>::kPiece]) {
  using Shape = TileShape<T, kDim, kGroup>;
  const uint32_t sharer = ThreadIndex() / Shape::kPieces, piece = ThreadIndex() % Shape::kPieces;
  if (sharer >= Shape::kSharers) return;
  TS_UNROLL
  for (uint32_t h = 0; h < kGroup; ++h) {
    const float rescale = memory.rescale.Get(h);
    TS_UNROLL
    for (uint32_t c = 0; c < Shape::kPiece; ++c) o[h][c] *= rescale;
  }
  for (uint32_t token = sharer; token < tokens; token += Shape::kSharers) {
    const auto v = memory.stages.template Get<Line<T>>(
        stage * Shape::kStage + (kTileTokens + token) * Shape::kRow + piece * Shape::kPiece);
    TS_UNROLL
    for (uint32_t h = 0; h < kGroup; ++h) {
      const float weight = memory.weights.Get(h * kTileTokens + token);
      TS_UNROLL
      for (uint32_t c = 0; c < Shape::kPiece; ++c) o[h][c] = Fma(weight, Float(v.at[c]), o[h][c]);
    }
  }
}

// Adds up what threads have of the values, and writes a partial result. All copies have arrived.
template <class T, uint32_t kDim, uint32_t kGroup>
TS_DEVICE void StorePartial(const SplitMemory<T, kDim, kGroup>& memory, uint32_t group,
                            const HeadSums<kGroup>& sums,
                            const float (&o)[kGroup][TileShape<T, kDim, kGroup>::kPiece],
                            const Global<float>& partial) {
  using Shape = TileShape<T, kDim, kGroup>;
  constexpr uint32_t kHeads = Shape::kHeadsAtOnce;
  const uint32_t sharer = ThreadIndex() / Shape::kPieces, piece = ThreadIndex() % Shape::kPieces;
  const Shared<float> rows = memory.stages.template As<float>();  // [sharers][kHeads][kDim]
  TS_UNROLL
  for (uint32_t first = 0; first < kGroup; first += kHeads) {
    SyncBlock();
    TS_UNROLL
    for (uint32_t h = 0; h < kHeads; ++h) {
      TS_UNROLL
      for (uint32_t c = 0; c < Shape::kPiece && sharer < Shape::kSharers; ++c) {
        rows.Set((sharer * kHeads + h) * kDim + piece * Shape::kPiece + c, o[first + h][c]);
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
template <class T, uint32_t kDim, uint32_t kGroup, class List>
TS_DEVICE void AttendSplit(const SplitMemory<T, kDim, kGroup>& memory, const PagesOfHead& pages,
                           const List& list, uint32_t first, uint32_t end, uint32_t group,
                           const Global<float>& partial) {
  using Shape = TileShape<T, kDim, kGroup>;
  const Global<const uint8_t> bytes(pages.slabs.bytes, "pages");
  HeadSums<kGroup> sums;
  TS_UNROLL
  for (uint32_t i = 0; i < HeadSums<kGroup>::kHeads; ++i) {
    sums.m[i] = -INFINITY;
    sums.d[i] = 0;
  }
  float o[kGroup][Shape::kPiece] = {};
  SyncBlock();  // the memory may hold what another split has left
  CopyTile(memory, 0, bytes, pages, list, first, end);
  for (uint32_t at = first, stage = 0; at < end; at += kTileTokens, stage ^= 1) {
    const uint32_t tokens = end - at < kTileTokens ? end - at : kTileTokens;
    CopyAsyncWait<0>();
    SyncBlock();  // the tile is here, and nobody reads the one before
    CopyTile(memory, stage ^ 1, bytes, pages, list, at + kTileTokens, end);
    TileLogits(memory, stage, tokens);
    SyncBlock();
    TileSoftmax(memory, &sums);
    SyncBlock();
    TileValues(memory, stage, tokens, o);
  }
  CopyAsyncWait<0>();
  StorePartial(memory, group, sums, o, partial);
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
