#include "kernels/cuda/products.h"
#include "kernels/cuda/simt.h"
#include "kernels/cuda/weight_forms.h"

namespace tinyserve::cuda {
namespace {

// ---- generated rows -----------------------------------------------------------------------------

constexpr uint32_t kWarps = 4;    // of a block
constexpr uint32_t kOutputs = 2;  // weight rows of a warp: gate and up, for kSwiGlu

// Grid: (weight rows / (kWarps * kOutputs), activation rows / kRows). Rows past the last read the
// last one again, so that no lane leaves its warp; what they make is dropped.
template <class Form, uint32_t kRows>
TS_KERNEL MultiplyGeneratedKernel(GeneratedProduct p) {
  const uint32_t n = (BlockX() * kWarps + WarpIndex()) * kOutputs, first = BlockY() * kRows;
  const uint32_t lines = p.weights.cols / Form::kCols, last = p.weights.rows - 1;
  if (n > last) return;
  const Global<const uint32_t> codes(p.weights.codes, "weight codes");
  const Global<const F16> scales(p.weights.scales, "weight scales");
  const uint64_t rows_at[kOutputs] = {uint64_t{n} * lines, uint64_t{n < last ? n + 1 : n} * lines};
  float y[kRows][kOutputs] = {};
  for (uint32_t c = LaneIndex(); c < lines; c += kWarpLanes) {
    Words line[kOutputs];
    ScaleAndMin scale[kOutputs];
    TS_UNROLL
    for (uint32_t o = 0; o < kOutputs; ++o) {
      line[o] = codes.Get<Words>((rows_at[o] + c) * 4);
      scale[o] = Form::Scale(scales, rows_at[o] + c);
    }
    TS_UNROLL
    for (uint32_t r = 0; r < kRows; ++r) {
      typename Form::Acts acts;
      acts.Load(p, first + r < p.rows ? first + r : p.rows - 1, c);
      TS_UNROLL
      for (uint32_t o = 0; o < kOutputs; ++o) y[r][o] = Form::Dot(line[o], scale[o], acts, y[r][o]);
    }
  }
  TS_UNROLL
  for (uint32_t r = 0; r < kRows; ++r) {
    const float a = WarpSum(y[r][0]), b = WarpSum(y[r][1]);
    if (LaneIndex() == r && first + r < p.rows) {
      Finish(p.to, p.weights.rows, first + r, n, a, b);
    }
  }
}

template <class Form, uint32_t kRows>
Status LaunchGenerated(const GeneratedProduct& p, Stream stream) {
  constexpr uint32_t kBlockOutputs = kWarps * kOutputs;
  return Launch(
      {.kernel = "MultiplyGenerated",
       .grid = {(p.weights.rows + kBlockOutputs - 1) / kBlockOutputs, (p.rows + kRows - 1) / kRows},
       .threads = kWarps * kWarpLanes,
       .stream = stream},
      MultiplyGeneratedKernel<Form, kRows>, p);
}

// ---- prompt rows --------------------------------------------------------------------------------

// A block makes 64 rows times 64 columns of the result, a warp 32 times 32 of them, 32 columns of
// the operands at a time.
constexpr uint32_t kTile = 64, kTileCols = 32, kWarpTile = 32;
constexpr uint32_t kPromptWarps = 4, kPromptThreads = kPromptWarps * kWarpLanes;
// F16s from one row of a tile to the next: 80 bytes, so that the eight rows that a fragment's lanes
// read lie in different banks.
constexpr uint32_t kTileStride = kTileCols + 8;
constexpr uint32_t kTileHalves = kTile * kTileStride;

// What a thread holds of the next weights: they are on their way while the tensor cores work.
template <class Form>
struct WeightLines {
  static constexpr uint32_t kRowLines = kTileCols / Form::kCols;  // of a row of the tile
  static constexpr uint32_t kLines = (kTile * kRowLines + kPromptThreads - 1) / kPromptThreads;
  Words line[kLines];
  ScaleAndMin scale[kLines];

  // Line i of thread t is line (i * threads + t) of the tile. Rows past the last are the last
  // again.
  TS_DEVICE static uint32_t LineOf(uint32_t i) { return i * kPromptThreads + ThreadIndex(); }

  TS_DEVICE void Load(const DeviceWeights& w, uint32_t first_row, uint32_t step) {
    const Global<const uint32_t> codes(w.codes, "weight codes");
    const Global<const F16> scales(w.scales, "weight scales");
    TS_UNROLL
    for (uint32_t i = 0; i < kLines; ++i) {
      if (LineOf(i) >= kTile * kRowLines) continue;
      const uint32_t row = first_row + LineOf(i) / kRowLines;
      const uint64_t at = uint64_t{row < w.rows ? row : w.rows - 1} * (w.cols / Form::kCols) +
                          step * kRowLines + LineOf(i) % kRowLines;
      line[i] = codes.Get<Words>(at * 4);
      scale[i] = Form::Scale(scales, at);
    }
  }
  TS_DEVICE void Store(const Shared<F16>& tile) const {
    TS_UNROLL
    for (uint32_t i = 0; i < kLines; ++i) {
      if (LineOf(i) >= kTile * kRowLines) continue;
      float values[Form::kCols];
      Form::Values(line[i], scale[i], values);
      const uint32_t at = LineOf(i) / kRowLines * kTileStride + LineOf(i) % kRowLines * Form::kCols;
      TS_UNROLL
      for (uint32_t k = 0; k < Form::kCols; k += 2) {
        tile.template Set<uint32_t>(at + k, HalfPair(values[k], values[k + 1]));
      }
    }
  }
};

// The activations of a tile, 16 bytes a copy.
TS_DEVICE void CopyActs(const PromptProduct& p, uint32_t first_row, uint32_t step,
                        const Shared<F16>& tile) {
  constexpr uint32_t kCopyHalves = 8, kRowCopies = kTileCols / kCopyHalves;
  const Global<const F16> halves(p.acts.halves, "activations");
  for (uint32_t i = ThreadIndex(); i < kTile * kRowCopies; i += kPromptThreads) {
    const uint32_t row = first_row + i / kRowCopies, column = i % kRowCopies * kCopyHalves;
    CopyAsync16(
        tile, i / kRowCopies * kTileStride + column, halves,
        uint64_t{row < p.rows ? row : p.rows - 1} * p.weights.cols + step * kTileCols + column);
  }
  CopyAsyncCommit();
}

// A warp's 32 x 32 results: [16 rows each][8 columns each], in the fragments of mma.m16n8k16.
struct WarpSums {
  float d[2][4][4] = {};

  TS_DEVICE void Add(const Shared<F16>& acts, const Shared<F16>& weights, uint32_t row,
                     uint32_t column) {
    const uint32_t g = LaneIndex() / 4, t = LaneIndex() % 4 * 2;
    TS_UNROLL
    for (uint32_t k = 0; k < kTileCols; k += 16) {
      uint32_t a[2][4], b[2];
      TS_UNROLL
      for (uint32_t m = 0; m < 2; ++m) {
        TS_UNROLL
        for (uint32_t i = 0; i < 4; ++i) {
          a[m][i] =
              acts.Get<uint32_t>((row + m * 16 + g + i % 2 * 8) * kTileStride + k + t + i / 2 * 8);
        }
      }
      TS_UNROLL
      for (uint32_t n = 0; n < 4; ++n) {
        TS_UNROLL
        for (uint32_t i = 0; i < 2; ++i) {
          b[i] = weights.Get<uint32_t>((column + n * 8 + g) * kTileStride + k + t + i * 8);
        }
        TS_UNROLL
        for (uint32_t m = 0; m < 2; ++m) MmaF16(d[m][n], a[m], b);
      }
    }
  }
};

// Grid: (weight rows / 64, activation rows / 64).
template <class Form>
TS_KERNEL MultiplyPromptKernel(PromptProduct p) {
  TS_SHARED(F16, acts, 2 * kTileHalves);
  TS_SHARED(F16, weights, 2 * kTileHalves);
  const uint32_t first_n = BlockX() * kTile, first_row = BlockY() * kTile;
  const uint32_t row = WarpIndex() / 2 * kWarpTile, column = WarpIndex() % 2 * kWarpTile;
  const uint32_t steps = p.weights.cols / kTileCols;
  WeightLines<Form> next;
  WarpSums sums;
  next.Load(p.weights, first_n, 0);
  CopyActs(p, first_row, 0, acts.Part(0, kTileHalves));
  for (uint32_t step = 0; step < steps; ++step) {
    const uint32_t now = step % 2 * kTileHalves, then = (step + 1) % 2 * kTileHalves;
    next.Store(weights.Part(now, kTileHalves));
    CopyAsyncWait<0>();
    SyncBlock();  // this step's tiles are there, and nobody reads the other ones any more
    if (step + 1 < steps) {
      next.Load(p.weights, first_n, step + 1);
      CopyActs(p, first_row, step + 1, acts.Part(then, kTileHalves));
    }
    sums.Add(acts.Part(now, kTileHalves), weights.Part(now, kTileHalves), row, column);
  }
  const Global<const float> scales(p.acts.scales, "activation scales");
  TS_UNROLL
  for (uint32_t m = 0; m < 2; ++m) {
    TS_UNROLL
    for (uint32_t half = 0; half < 2; ++half) {
      const uint32_t r = first_row + row + m * 16 + LaneIndex() / 4 + half * 8;
      if (r >= p.rows) continue;
      const float scale = scales.Get(r);
      TS_UNROLL
      for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t n = first_n + column + i * 8 + LaneIndex() % 4 * 2;
        const float* d = sums.d[m][i] + 2 * half;
        if (n < p.weights.rows) Finish(p.to, p.weights.rows, r, n, d[0] * scale, d[1] * scale);
      }
    }
  }
}

Status CheckShape(const DeviceWeights& w, uint32_t rows, const ProductOut& to) {
  if (rows == 0 || w.rows == 0 || w.cols == 0 || w.cols % kColsUnit != 0 ||
      (to.epilogue == Epilogue::kSwiGlu && w.rows % 2 != 0)) {
    return Status(Code::kInvalidArgument,
                  "a product of " + std::to_string(rows) + " rows with " + std::to_string(w.rows) +
                      " x " + std::to_string(w.cols) + " weights: rows must be there, columns a " +
                      "multiple of 32, gated weight rows even");
  }
  return Status();
}

}  // namespace

bool TakesCodedActs(WeightForm form) { return form <= WeightForm::kQ8M; }

Status MultiplyGenerated(const GeneratedProduct& product, Stream stream) {
  TS_RETURN_IF_ERROR(CheckShape(product.weights, product.rows, product.to));
  return WithForm(product.weights.form, [&](auto form) {
    using Form = decltype(form);
    if (product.rows == 1) return LaunchGenerated<Form, 1>(product, stream);
    if (product.rows <= 4) return LaunchGenerated<Form, 4>(product, stream);
    return LaunchGenerated<Form, 8>(product, stream);
  });
}

Status MultiplyPrompt(const PromptProduct& product, Stream stream) {
  TS_RETURN_IF_ERROR(CheckShape(product.weights, product.rows, product.to));
  return WithForm(product.weights.form, [&](auto form) {
    using Form = decltype(form);
    return Launch(
        {.kernel = "MultiplyPrompt",
         .grid = {(product.weights.rows + kTile - 1) / kTile, (product.rows + kTile - 1) / kTile},
         .threads = kPromptThreads,
         .stream = stream},
        MultiplyPromptKernel<Form>, product);
  });
}

}  // namespace tinyserve::cuda
