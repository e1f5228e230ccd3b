// For kernels: attention of prompt rows over tiles of any pages.
//
// A block of four warps has 64 queries of one KV head, 16 a warp, and goes through the keys in
// tiles of 64 tokens. Both products are mma.m16n8k16; weights stay in the registers that the
// logits' fragments lie in.
#ifndef TINYSERVE_KERNELS_CUDA_PROMPT_KERNEL_H_
#define TINYSERVE_KERNELS_CUDA_PROMPT_KERNEL_H_

#include "kernels/cuda/decode_split.h"
#include "kernels/cuda/prompt_tiles.h"
#include "kernels/cuda/simt.h"

namespace tinyserve::cuda {

constexpr uint32_t kWarpQueries = kPromptQueries / (kPromptThreads / kWarpLanes);
static_assert(kWarpQueries == 16);

template <uint32_t kDim>
struct PromptShape {
  static constexpr uint32_t kSteps = kDim / 16;       // of a product over channels
  static constexpr uint32_t kColumns = kDim / 8;      // of the output, in fragments
  static constexpr uint32_t kKeys = kPromptTile / 8;  // of the logits, in fragments
};

template <class T>
TS_DEVICE void Mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, F16>) {
    MmaF16(d, a, b);
  } else {
    MmaBF16(d, a, b);
  }
}

// A pair of channels, which a lane has side by side.
struct alignas(8) Pair {
  float at[2];
};

// What a half can hold: a larger number would become an infinity, and its logits no numbers.
TS_DEVICE float InHalf(float x) {
  const float below = x < 65504.0f ? x : 65504.0f;
  return below > -65504.0f ? below : -65504.0f;
}

// A lane's part of its warp's 16 queries: rows lane / 4 and lane / 4 + 8 of every fragment.
template <uint32_t kDim>
struct WarpRows {
  uint32_t q[PromptShape<kDim>::kSteps][4];
  float o[PromptShape<kDim>::kColumns][4];
  float m[2], d[2];      // largest logit and sum so far; d: of the lane's columns alone
  uint32_t position[2];  // of the query
  uint64_t at[2];        // of its head's first channel in q and out
  bool used[2];
};

template <class T, uint32_t kDim>
TS_DEVICE void LoadRows(const PromptCall& call, const PromptRun& run, uint32_t head, uint32_t first,
                        WarpRows<kDim>* rows) {
  const Global<const float> q(call.step.q, "q");
  const uint32_t g = LaneIndex() / 4, t = LaneIndex() % 4;
  TS_UNROLL
  for (uint32_t half = 0; half < 2; ++half) {
    const uint32_t query = first + WarpIndex() * kWarpQueries + g + 8 * half;
    rows->position[half] = query / call.group;
    const uint32_t token = rows->position[half] - run.first_position;
    rows->used[half] = rows->position[half] >= run.first_position && token < run.rows;
    rows->at[half] = ((uint64_t{run.first_row} + token) * call.kv_heads + head) * call.group;
    rows->at[half] = (rows->at[half] + query % call.group) * kDim;
    rows->m[half] = -INFINITY;
    rows->d[half] = 0;
    TS_UNROLL
    for (uint32_t i = 0; i < PromptShape<kDim>::kSteps * 2; ++i) {
      Pair pair{{0, 0}};
      if (rows->used[half]) pair = q.Get<Pair>(rows->at[half] + 8 * i + 2 * t);
      if (std::is_same_v<T, F16>) pair = {{InHalf(pair.at[0]), InHalf(pair.at[1])}};
      rows->q[i / 2][half + i % 2 * 2] = PackHalves<T>(pair.at[0], pair.at[1]);
    }
  }
  TS_UNROLL
  for (uint32_t column = 0; column < PromptShape<kDim>::kColumns; ++column) {
    TS_UNROLL
    for (uint32_t i = 0; i < 4; ++i) rows->o[column][i] = 0;
  }
}

// logits = q * keys of a tile.
template <class T, uint32_t kDim>
TS_DEVICE void TileProducts(const Shared<T>& tile, const WarpRows<kDim>& rows,
                            float (&logits)[PromptShape<kDim>::kKeys][4]) {
  using Shape = PromptShape<kDim>;
  const uint32_t matrix = LaneIndex() / 8, row = LaneIndex() % 8;
  TS_UNROLL
  for (uint32_t n = 0; n < Shape::kKeys; n += 2) {
    TS_UNROLL
    for (uint32_t i = 0; i < 4; ++i) logits[n][i] = logits[n + 1][i] = 0;
    TS_UNROLL
    for (uint32_t k = 0; k < Shape::kSteps; ++k) {
      // Eight keys' channels 0 .. 7 and 8 .. 15 of the step, then those of the next eight.
      uint32_t b[4];
      LoadMatrices(
          tile, (8 * n + matrix / 2 * 8 + row) * OperandTile<kDim>::kRow + 16 * k + matrix % 2 * 8,
          b);
      const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
      Mma<T>(logits[n], rows.q[k], first);
      Mma<T>(logits[n + 1], rows.q[k], second);
    }
  }
}

// logits of tokens tile .. become weights relative to the largest so far; the sums follow. `factor`
// turns a product into a logit in units of log2.
template <uint32_t kDim>
TS_DEVICE void TileWeights(uint32_t tile, float factor, WarpRows<kDim>* rows,
                           float (&logits)[PromptShape<kDim>::kKeys][4]) {
  const uint32_t t = LaneIndex() % 4;
  TS_UNROLL
  for (uint32_t half = 0; half < 2; ++half) {
    float top = rows->m[half];
    TS_UNROLL
    for (uint32_t n = 0; n < PromptShape<kDim>::kKeys; ++n) {
      TS_UNROLL
      for (uint32_t i = 0; i < 2; ++i) {
        float& logit = logits[n][2 * half + i];
        logit = tile + 8 * n + 2 * t + i > rows->position[half] ? -INFINITY : logit * factor;
        top = logit > top ? logit : top;
      }
    }
    TS_UNROLL
    for (uint32_t lanes = 1; lanes <= 2; lanes *= 2) {
      const float other = ShuffleXor(top, lanes, kAllLanes);
      top = other > top ? other : top;
    }
    const float rescale = Exp2(rows->m[half] - top);
    float sum = 0;
    TS_UNROLL
    for (uint32_t n = 0; n < PromptShape<kDim>::kKeys; ++n) {
      TS_UNROLL
      for (uint32_t i = 0; i < 2; ++i) {
        float& weight = logits[n][2 * half + i];
        weight = Exp2(weight - top);
        sum += weight;
      }
    }
    rows->m[half] = top;
    rows->d[half] = Fma(rows->d[half], rescale, sum);
    TS_UNROLL
    for (uint32_t column = 0; column < PromptShape<kDim>::kColumns; ++column) {
      rows->o[column][2 * half] *= rescale;
      rows->o[column][2 * half + 1] *= rescale;
    }
  }
}

// o += weights * values of a tile.
template <class T, uint32_t kDim>
TS_DEVICE void TileSums(const Shared<T>& tile, const float (&weights)[PromptShape<kDim>::kKeys][4],
                        WarpRows<kDim>* rows) {
  using Shape = PromptShape<kDim>;
  using Tile = OperandTile<kDim>;
  const uint32_t matrix = LaneIndex() / 8, row = LaneIndex() % 8;
  TS_UNROLL
  for (uint32_t n = 0; n < Shape::kKeys; n += 2) {
    // Two fragments of logits are one of the left operand.
    const uint32_t a[4] = {PackHalves<T>(weights[n][0], weights[n][1]),
                           PackHalves<T>(weights[n][2], weights[n][3]),
                           PackHalves<T>(weights[n + 1][0], weights[n + 1][1]),
                           PackHalves<T>(weights[n + 1][2], weights[n + 1][3])};
    TS_UNROLL
    for (uint32_t column = 0; column < Shape::kColumns; column += 2) {
      // Tokens 0 .. 7 and 8 .. 15 of eight channels, then of the next eight.
      uint32_t b[4];
      LoadTransposed(tile,
                     Tile::kValuesAt + (8 * n + matrix % 2 * 8 + row) * Tile::kRow + 8 * column +
                         matrix / 2 * 8,
                     b);
      const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
      Mma<T>(rows->o[column], a, first);
      Mma<T>(rows->o[column + 1], a, second);
    }
  }
}

template <uint32_t kDim>
TS_DEVICE void StoreRows(const PromptCall& call, const WarpRows<kDim>& rows) {
  const Global<float> out(call.step.out, "out");
  const uint32_t t = LaneIndex() % 4;
  TS_UNROLL
  for (uint32_t half = 0; half < 2; ++half) {
    float d = rows.d[half];
    d += ShuffleXor(d, 1, kAllLanes);
    d += ShuffleXor(d, 2, kAllLanes);
    if (!rows.used[half]) continue;
    TS_UNROLL
    for (uint32_t column = 0; column < PromptShape<kDim>::kColumns; ++column) {
      out.Set<Pair>(rows.at[half] + 8 * column + 2 * t,
                    Pair{{rows.o[column][2 * half] / d, rows.o[column][2 * half + 1] / d}});
    }
  }
}

// Grid: blocks of the step, KV heads.
template <class Tiles>
TS_RESIDENT_KERNEL(kPromptThreads, Tiles::kResident)
PromptKernel(PromptCall call) {
  using Half = typename Tiles::Half;
  constexpr uint32_t kDim = Tiles::kDim;
  const PromptBlock block = Global<const PromptBlock>(call.step.blocks, "blocks").Get(BlockX());
  if (block.run == kNoRun) return;
  const PromptRun run = Global<const PromptRun>(call.step.runs, "runs").Get(block.run);
  WarpRows<kDim> rows;
  LoadRows<Half>(call, run, BlockY(), block.first, &rows);
  // What the block's last query sees.
  const uint32_t end_of_run = run.first_position + run.rows;
  const uint32_t last = (block.first + kPromptQueries - 1) / call.group;
  const uint32_t end = last < end_of_run ? last + 1 : end_of_run;
  SharedArena arena;
  const Tiles tiles(arena, call,
                    {.run = block.run,
                     .raw_first = run.raw_first,
                     .head = BlockY(),
                     .window = (end - 1) / kPromptTile * kPromptTile,
                     .end = end});
  for (uint32_t first = 0; first < end; first += kPromptTile) {
    const Shared<Half> tile = tiles.Take(first);
    float logits[PromptShape<kDim>::kKeys][4];
    TileProducts<Half, kDim>(tile, rows, logits);
    TileWeights<kDim>(first, call.step.scale * kLog2E, &rows, logits);
    TileSums<Half, kDim>(tile, logits, &rows);
  }
  CopyAsyncWait<0>();
  StoreRows<kDim>(call, rows);
}

template <class Tiles>
Status LaunchPrompt(const PromptCall& call, Stream stream) {
  const LaunchConfig config{.kernel = "attention_prompt",
                            .grid = {static_cast<uint32_t>(call.step.blocks.count), call.kv_heads},
                            .threads = kPromptThreads,
                            .shared_bytes = Tiles::kSharedBytes,
                            .stream = stream};
  return Launch(config, PromptKernel<Tiles>, call);
}

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_PROMPT_KERNEL_H_
