// A block of four warps has 64 queries of one KV head, 16 a warp, and goes through the keys in
// tiles of 64 tokens; a tile is copied while the one before is multiplied. Both products are
// mma.m16n8k16; weights stay in the registers that the logits' fragments lie in.
#include <algorithm>

#include "kernels/cuda/attention_prompt.h"
#include "kernels/cuda/decode_split.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/simt.h"

namespace tinyserve::cuda {
namespace {

constexpr char kTypes[] = "f16, bf16";
constexpr uint32_t kThreads = 128;
constexpr uint32_t kKeyTile = 64;
constexpr uint32_t kWarpQueries = kPromptQueries / (kThreads / kWarpLanes);
static_assert(kWarpQueries == 16);

struct PromptCall {
  PromptStep step;
  PagesOfHead pages;  // head: set by the block
  uint32_t kv_heads, group;
};

template <uint32_t kDim>
struct PromptShape {
  static constexpr uint32_t kRow = kDim + 8;  // elements: eight rows' lines lie in different banks
  static constexpr uint32_t kStage = 2 * kKeyTile * kRow;  // keys, then values
  static constexpr uint32_t kSharedBytes = 2 * kStage * 2;
  static constexpr uint32_t kSteps = kDim / 16;    // of a product over channels
  static constexpr uint32_t kColumns = kDim / 8;   // of the output, in fragments
  static constexpr uint32_t kKeys = kKeyTile / 8;  // of the logits, in fragments
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
    const uint32_t token = query / call.group;
    rows->used[half] = token < run.rows;
    rows->position[half] = run.first_position + token;
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

// Begins to copy tokens first .. first + 63; zeros in place of those from `end` on, whose weights
// are 0, and 0 times what pages happen to hold need not be.
template <class T, uint32_t kDim>
TS_DEVICE void CopyKeyTile(const Shared<T>& stages, uint32_t stage, const PagesOfHead& pages,
                           const Global<const uint32_t>& table, uint32_t first, uint32_t end) {
  using Shape = PromptShape<kDim>;
  constexpr uint32_t kLines = kDim / 8;
  const Global<const uint8_t> bytes(pages.slabs.bytes, "pages");
  for (uint32_t i = ThreadIndex(); first < end && i < kKeyTile * kLines; i += kThreads) {
    const uint32_t row = i / kLines, line = i % kLines, token = first + row;
    const uint32_t to = stage * Shape::kStage + row * Shape::kRow + line * 8;
    if (token >= end) {
      const Line<T> zeros{};
      stages.template Set<Line<T>>(to, zeros);
      stages.template Set<Line<T>>(to + kKeyTile * Shape::kRow, zeros);
      continue;
    }
    const uint32_t page = table.Get(token >> pages.page_shift);
    const uint32_t slot = token & ((1u << pages.page_shift) - 1);
    const uint64_t from = ItemAt(pages.slabs, pages.head, page) + slot * kDim * 2 + line * 16;
    CopyAsync16(stages, to, bytes, from);
    CopyAsync16(stages, to + kKeyTile * Shape::kRow, bytes, from + pages.v_offset);
  }
  CopyAsyncCommit();
}

// logits = q * keys of a tile.
template <class T, uint32_t kDim>
TS_DEVICE void TileProducts(const Shared<T>& stages, uint32_t stage, const WarpRows<kDim>& rows,
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
      LoadMatrices(stages,
                   stage * Shape::kStage + (8 * n + matrix / 2 * 8 + row) * Shape::kRow + 16 * k +
                       matrix % 2 * 8,
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
TS_DEVICE void TileSums(const Shared<T>& stages, uint32_t stage,
                        const float (&weights)[PromptShape<kDim>::kKeys][4], WarpRows<kDim>* rows) {
  using Shape = PromptShape<kDim>;
  const uint32_t matrix = LaneIndex() / 8, row = LaneIndex() % 8;
  const uint32_t values = stage * Shape::kStage + kKeyTile * Shape::kRow;
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
      LoadTransposed(
          stages,
          values + (8 * n + matrix % 2 * 8 + row) * Shape::kRow + 8 * column + matrix / 2 * 8, b);
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
template <class T, uint32_t kDim>
TS_BOUNDED_KERNEL(kThreads)
PromptKernel(PromptCall call) {
  const PromptBlock block = Global<const PromptBlock>(call.step.blocks, "blocks").Get(BlockX());
  if (block.run == kNoRun) return;
  const Global<const uint32_t> fields =
      Global<const uint32_t>(
          {reinterpret_cast<const uint32_t*>(call.step.runs.data), 3 * call.step.runs.count},
          "runs")
          .Part(3 * uint64_t{block.run}, 3);
  const PromptRun run{fields.Get(0), fields.Get(1), fields.Get(2)};
  SharedArena arena;
  const Shared<T> stages = arena.Take<T>(2 * PromptShape<kDim>::kStage, "stages");
  const Global<const uint32_t> table =
      Global<const uint32_t>(call.step.tables, "tables")
          .Part(uint64_t{block.run} * call.step.table_pages, call.step.table_pages);
  PagesOfHead pages = call.pages;
  pages.head = BlockY();
  WarpRows<kDim> rows;
  LoadRows<T>(call, run, pages.head, block.first, &rows);
  // What the block's last query sees.
  const uint32_t last = (block.first + kPromptQueries - 1) / call.group;
  const uint32_t end = run.first_position + (last < run.rows ? last + 1 : run.rows);
  CopyKeyTile<T, kDim>(stages, 0, pages, table, 0, end);
  for (uint32_t tile = 0, stage = 0; tile < end; tile += kKeyTile, stage ^= 1) {
    CopyAsyncWait<0>();
    SyncBlock();  // the tile is here, and nobody reads the one before
    CopyKeyTile<T, kDim>(stages, stage ^ 1, pages, table, tile + kKeyTile, end);
    float logits[PromptShape<kDim>::kKeys][4];
    TileProducts<T, kDim>(stages, stage, rows, logits);
    TileWeights<kDim>(tile, call.step.scale * kLog2E, &rows, logits);
    TileSums<T, kDim>(stages, stage, logits, &rows);
  }
  CopyAsyncWait<0>();
  StoreRows<kDim>(call, rows);
}

template <class T, uint32_t kDim>
Status LaunchPrompt(const PromptCall& call, Stream stream) {
  const LaunchConfig config{.kernel = "attention_prompt",
                            .grid = {static_cast<uint32_t>(call.step.blocks.count), call.kv_heads},
                            .threads = kThreads,
                            .shared_bytes = PromptShape<kDim>::kSharedBytes,
                            .stream = stream};
  return Launch(config, PromptKernel<T, kDim>, call);
}

template <class T>
Status LaunchOf(const DecodeShape& shape, const PromptCall& call, Stream stream) {
  switch (shape.head_dim) {
    case 64:
      return LaunchPrompt<T, 64>(call, stream);
    case 80:
      return LaunchPrompt<T, 80>(call, stream);
    case 96:
      return LaunchPrompt<T, 96>(call, stream);
    case 128:
      return LaunchPrompt<T, 128>(call, stream);
    default:
      return NoInstance("attention_prompt", shape, kTypes);
  }
}

}  // namespace

std::vector<PromptBlock> PlanPromptBlocks(const std::vector<PromptRun>& runs, uint32_t group) {
  std::vector<PromptBlock> blocks;
  for (uint32_t run = 0; run < runs.size(); ++run) {
    for (uint64_t first = 0; first < uint64_t{runs[run].rows} * group; first += kPromptQueries) {
      blocks.push_back({run, static_cast<uint32_t>(first)});
    }
  }
  const auto seen = [&](const PromptBlock& block) {
    return runs[block.run].first_position + block.first / group;
  };
  std::stable_sort(blocks.begin(), blocks.end(),
                   [&](const auto& a, const auto& b) { return seen(a) > seen(b); });
  return blocks;
}

Status AttendPrompt(const DecodeShape& shape, const DevicePages& pages, const PromptStep& step,
                    Stream stream) {
  if (!IsPageTokens(shape.page_tokens) || shape.group == 0 || shape.group > 8) {
    return NoInstance("attention_prompt", shape, kTypes);
  }
  if (step.blocks.count == 0) return Status();
  const PromptCall call{.step = step,
                        .pages = FloatPages(pages, Log2(shape.page_tokens)),
                        .kv_heads = shape.kv_heads,
                        .group = shape.group};
  switch (shape.type) {
    case KvType::kF16:
      return LaunchOf<F16>(shape, call, stream);
    case KvType::kBF16:
      return LaunchOf<BF16>(shape, call, stream);
    default:
      return NoInstance("attention_prompt", shape, kTypes);
  }
}

}  // namespace tinyserve::cuda
