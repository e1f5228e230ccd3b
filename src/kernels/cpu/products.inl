// The product entries of a target's table: geometry, packing, decoding, and the walk of a product
// over tiles.
#include "kernels/cpu/formats.inl"
#include "kernels/cpu/pack.inl"
#include "kernels/cpu/products_f32.inl"
#include "kernels/cpu/products_int.inl"
#include "kernels/kernels.h"

namespace tinyserve {
namespace {

// Layouts of PackedMatrix: one for each type, and bfloat16 by pairs.
constexpr uint8_t kLayoutOfType = 0;
constexpr uint8_t kLayoutPairs = 1;

// Rows of activations that pass over all panels before the next ones: they must stay in the
// second-level cache.
constexpr uint32_t kRowsAtOnce = 96;
// Rows whose f32 accumulators are kept while a piece of weights is decoded (f32 products of
// quantised types).
constexpr uint32_t kRowsDecoded = 32;

TS_INLINE uint32_t MinOf(uint32_t a, uint32_t b) { return a < b ? a : b; }
TS_INLINE uint64_t RoundUp64(uint64_t bytes) { return (bytes + 63) / 64 * 64; }

// Calls f with the format of a quantised type; false for the others.
template <class Function>
TS_INLINE bool WithFormat(DType type, Function f) {
  switch (type) {
    case DType::kQ4_0:
      return f(FormatQ4_0()), true;
    case DType::kQ4_1:
      return f(FormatQ4_1()), true;
    case DType::kQ5_0:
      return f(FormatQ5_0()), true;
    case DType::kQ5_1:
      return f(FormatQ5_1()), true;
    case DType::kQ8_0:
      return f(FormatQ8_0()), true;
    case DType::kQ4_K:
      return f(FormatQ4_K()), true;
    case DType::kQ5_K:
      return f(FormatQ5_K()), true;
    case DType::kQ6_K:
      return f(FormatQ6_K()), true;
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
      return false;
  }
  return false;
}

template <class F>
constexpr uint32_t UnitCols() {
  return F::kUnitBlocks * kBlockCols;
}

// ---- geometry and packing ----

void PlanMatrix(DType type, Compute compute, uint32_t rows, uint32_t cols, PackedMatrix* out) {
  out->type = type;
  out->acts = ActKind::kF32;
  out->layout = kLayoutOfType;
  out->rows = rows;
  out->cols = cols;
  out->panel_rows = kPanelRows;
  out->panels = (rows + kPanelRows - 1) / kPanelRows;
  uint64_t bytes = 0;
  const bool quantised = WithFormat(type, [&](auto format) {
    using F = decltype(format);
    bytes = (uint64_t)(cols / UnitCols<F>()) * kStrips * F::kUnitBytes;
  });
  if (quantised) {
    if (compute == Compute::kFast) out->acts = ActKind::kQ8;
  } else if (type == DType::kF32) {
    bytes = (uint64_t)cols * 4 * kPanelRows;
  } else if (kHasBF16Dot && type == DType::kBF16 && compute == Compute::kFast) {
    out->acts = ActKind::kBF16;
    out->layout = kLayoutPairs;
    bytes = (uint64_t)((cols + 1) / 2) * 4 * kPanelRows;
  } else {
    bytes = (uint64_t)cols * 2 * kPanelRows;
  }
  out->panel_bytes = RoundUp64(bytes);
}

void PackPanel(const PackedMatrix* w, const uint8_t* const* rows, uint8_t* panel) {
  __builtin_memset(panel, 0, w->panel_bytes);
  const uint32_t blocks = w->cols / kBlockCols, k_blocks = w->cols / 256;
  switch (w->type) {
    case DType::kQ4_0:
      return PackBlocks<BlockQ4_0, FormatQ4_0>(rows, blocks, panel);
    case DType::kQ4_1:
      return PackBlocks<BlockQ4_1, FormatQ4_1>(rows, blocks, panel);
    case DType::kQ5_0:
      return PackBlocks<BlockQ5_0, FormatQ5_0>(rows, blocks, panel);
    case DType::kQ5_1:
      return PackBlocks<BlockQ5_1, FormatQ5_1>(rows, blocks, panel);
    case DType::kQ8_0:
      return PackBlocks<BlockQ8_0, FormatQ8_0>(rows, blocks, panel);
    case DType::kQ4_K:
      return PackBlocks<BlockQ4_K, FormatQ4_K>(rows, k_blocks, panel);
    case DType::kQ5_K:
      return PackBlocks<BlockQ5_K, FormatQ5_K, 8>(rows, k_blocks, panel);
    case DType::kQ6_K:
      return PackBlocks<BlockQ6_K, FormatQ6_K>(rows, k_blocks, panel);
    case DType::kF32:
      return PackElements<uint32_t>(rows, w->cols, 1, panel);
    case DType::kF16:
      return PackElements<uint16_t>(rows, w->cols, 1, panel);
    case DType::kBF16:
      return PackElements<uint16_t>(rows, w->cols, w->layout == kLayoutPairs ? 2 : 1, panel);
  }
}

// Element (row, c) of a panel of an element type.
float UnpackElement(const PackedMatrix* w, const uint8_t* panel, uint32_t row, uint32_t c) {
  const uint64_t at = ElementAt(row, c, w->layout == kLayoutPairs ? 2 : 1);
  uint32_t bits = 0;
  if (w->type == DType::kF32) {
    bits = LoadWord(panel + 4 * at);
  } else {
    __builtin_memcpy(&bits, panel + 2 * at, 2);
    if (w->type == DType::kF16) return _cvtsh_ss((uint16_t)bits);
    bits <<= 16;
  }
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

void UnpackRow(const PackedMatrix* w, uint32_t row, float* out) {
  const uint8_t* panel = w->data + (uint64_t)(row / kPanelRows) * w->panel_bytes;
  const uint32_t strip = row % kPanelRows / kLanes, lane = row % kLanes;
  const bool quantised = WithFormat(w->type, [&](auto format) {
    using F = decltype(format);
    alignas(64) float decoded[UnitCols<F>() * kLanes];
    const uint8_t* unit = panel + strip * F::kUnitBytes;
    for (uint32_t c = 0; c < w->cols; c += UnitCols<F>(), unit += kStrips * F::kUnitBytes) {
      F::Decode(unit, decoded);
      for (uint32_t i = 0; i < UnitCols<F>(); ++i) out[c + i] = decoded[i * kLanes + lane];
    }
  });
  if (quantised) return;
  for (uint32_t c = 0; c < w->cols; ++c) out[c] = UnpackElement(w, panel, row % kPanelRows, c);
}

// ---- what becomes of a tile ----

// Bias of the lanes from row `first` of w.
TS_INLINE VF BiasOf(const MatMulArgs& a, uint32_t first) {
  if (a.bias == nullptr || first >= a.w->rows) return Zero();
  return LoadFirst(a.bias + first, MinOf(kLanes, a.w->rows - first));
}

// Stores one strip of one row: what w's rows from `first` give, to columns `first` and on.
__attribute__((noinline)) void EmitStrip(const MatMulArgs& a, uint32_t row, uint32_t first, VF y) {
  if (first >= a.w->rows) return;  // padding
  float* out = a.out + (uint64_t)row * a.out_stride + first;
  const uint32_t n = MinOf(kLanes, a.w->rows - first);
  y = Add(y, BiasOf(a, first));
  if (a.epilogue == Epilogue::kAdd) y = Add(LoadFirst(out, n), y);
  if (a.epilogue == Epilogue::kGelu) y = GeluTanh(y);
  StoreFirst(out, n, y);
}

// Stores M rows of a panel.
template <int M>
TS_INLINE void Emit(const MatMulArgs& a, uint32_t row, uint32_t panel, const VF (&y)[M][kStrips]) {
  const uint32_t first = panel * kPanelRows;
  const bool plain = a.bias == nullptr && a.epilogue == Epilogue::kStore;
  if (plain && first + kPanelRows <= a.w->rows) {
    float* out = a.out + (uint64_t)row * a.out_stride + first;
    for (int m = 0; m < M; ++m, out += a.out_stride) {
      for (uint32_t s = 0; s < kStrips; ++s) Store(out + s * kLanes, y[m][s]);
    }
    return;
  }
  for (int m = 0; m < M; ++m) {
    for (uint32_t s = 0; s < kStrips; ++s) {
      EmitStrip(a, row + (uint32_t)m, first + s * kLanes, y[m][s]);
    }
  }
}

// Stores one strip of silu(gate) * up, panels `panel` and `panel` + 1.
__attribute__((noinline)) void EmitGated(const MatMulArgs& a, uint32_t row, uint32_t panel,
                                         uint32_t strip, VF gate, VF up) {
  const uint32_t first = panel / 2 * kPanelRows + strip * kLanes, outputs = a.w->rows / 2;
  if (first >= outputs) return;  // padding
  gate = Add(gate, BiasOf(a, panel * kPanelRows + strip * kLanes));
  up = Add(up, BiasOf(a, (panel + 1) * kPanelRows + strip * kLanes));
  StoreFirst(a.out + (uint64_t)row * a.out_stride + first, MinOf(kLanes, outputs - first),
             Mul(Silu(gate), up));
}

// ---- the walk: blocks of rows, then panels, then tiles ----

// Activation rows of a tile: as many as leave their sums in registers.
constexpr uint32_t kTileRows = kLanes == 16 ? 6 : 4;

// A product's inner tile: y += of M rows by one panel, over all columns.
template <class F>
struct CodeProduct {
  template <int kShare, int M>
  static TS_INLINE void Tile(const PackedMatrix& w, const uint8_t* panel, const uint8_t* acts,
                             uint64_t act_row_bytes, const uint8_t* ask, VF (&y)[M][kStrips]) {
    if constexpr (F::kSixBits) {
      SixBitTile<kShare>(panel, acts, act_row_bytes, w.cols / UnitCols<F>(), ask, y);
    } else {
      CodeTile<F, kShare>(panel, acts, act_row_bytes, w.cols / UnitCols<F>(), ask, y);
    }
  }
};
template <class C>
struct ColumnProduct {
  template <int kShare, int M>
  static TS_INLINE void Tile(const PackedMatrix& w, const uint8_t* panel, const uint8_t* acts,
                             uint64_t act_row_bytes, const uint8_t* ask, VF (&y)[M][kStrips]) {
    ColumnTile<C, kShare>(panel, acts, act_row_bytes, (w.cols + C::kCols - 1) / C::kCols, ask, y);
  }
};

template <int M>
TS_INLINE void Clear(VF (&y)[M][kStrips]) {
  for (int m = 0; m < M; ++m) {
    for (uint32_t s = 0; s < kStrips; ++s) y[m][s] = Zero();
  }
}

template <class Product, int M, int kShare>
__attribute__((noinline)) void ComputeTile(const MatMulArgs& a, uint32_t row, uint32_t panel,
                                           uint64_t ahead, VF (*out)[kStrips]) {
  const PackedMatrix& w = *a.w;
  VF y[M][kStrips];
  Clear(y);
  const uint8_t* data = w.data + (uint64_t)panel * w.panel_bytes;
  Product::template Tile<kShare>(w, data, a.acts + (uint64_t)row * a.act_row_bytes, a.act_row_bytes,
                                 data + ahead, y);
  __builtin_memcpy(out, y, sizeof y);
}

template <class Product, int M, int kShare>
void RunTile(const MatMulArgs& a, uint32_t row, uint32_t panel, uint64_t ahead) {
  VF y[M][kStrips];
  ComputeTile<Product, M, kShare>(a, row, panel, ahead, y);
  if (a.epilogue != Epilogue::kSwiGlu) return Emit(a, row, panel, y);
  VF up[M][kStrips];
  ComputeTile<Product, M, kShare>(a, row, panel + 1, ahead, up);
  for (int m = 0; m < M; ++m) {
    for (uint32_t s = 0; s < kStrips; ++s) {
      EmitGated(a, row + (uint32_t)m, panel, s, y[m][s], up[m][s]);
    }
  }
}

// Tiles of one panel (or pair) over rows row .. row_end - 1. next: bytes to the next one; 0: there
// is none. held: the one before has asked for this one.
template <class Product>
TS_INLINE void RunRows(const MatMulArgs& a, uint32_t row, uint32_t row_end, uint32_t panel,
                       uint64_t next, bool held) {
  if constexpr (kTileRows > 4) {
    // Two tiles of one size, each of which asks for half of the next panel: neither memory nor
    // multiplications idle.
    if (held && row + 8 == row_end) {
      RunTile<Product, 4, 2>(a, row, panel, next);
      return RunTile<Product, 4, 2>(a, row + 4, panel, next == 0 ? 0 : next + a.w->panel_bytes / 2);
    }
    if (row + 8 == row_end) {  // the first may have to bring this panel itself
      RunTile<Product, 4, 1>(a, row, panel, kPrefetchBytes);
      return RunTile<Product, 4, 1>(a, row + 4, panel, next);
    }
  }
  // The first tile brings the panel into the cache, so the others have time for the next one.
  uint64_t ahead = kPrefetchBytes;
  const auto run = [&]<int M>() __attribute__((always_inline)) {
    for (; row + M <= row_end; row += M, ahead = next) RunTile<Product, M, 1>(a, row, panel, ahead);
  };
  run.template operator()<kTileRows>();
  if constexpr (kTileRows > 4) run.template operator()<4>();
  run.template operator()<2>();
  run.template operator()<1>();
}

template <class Product>
void RunProduct(const MatMulArgs& a) {
  const uint32_t step = a.epilogue == Epilogue::kSwiGlu ? 2 : 1;
  for (uint32_t row = a.row_begin; row < a.row_end; row += kRowsAtOnce) {
    const uint32_t row_end = MinOf(row + kRowsAtOnce, a.row_end);
    for (uint32_t panel = a.panel_begin; panel < a.panel_end; panel += step) {
      // The panels after these are most often the same thread's.
      const bool last = panel + step >= a.w->panels;
      RunRows<Product>(a, row, row_end, panel, last ? 0 : step * a.w->panel_bytes,
                       panel > a.panel_begin);
    }
  }
}

// ---- f32 products of quantised types: a piece of the weights is decoded, then used for many rows
// ----

constexpr uint32_t kPieceCols = 256;  // a multiple of every unit

// Columns c .. c + cols - 1 of a panel as f32, [cols][kPanelRows].
template <class F>
void DecodePiece(const uint8_t* panel, uint32_t c, uint32_t cols, float* out) {
  alignas(64) float strip[UnitCols<F>() * kLanes];
  const uint8_t* unit = panel + (uint64_t)(c / UnitCols<F>()) * kStrips * F::kUnitBytes;
  for (uint32_t i = 0; i < cols; i += UnitCols<F>()) {
    for (uint32_t s = 0; s < kStrips; ++s, unit += F::kUnitBytes) {
      F::Decode(unit, strip);
      for (uint32_t j = 0; j < UnitCols<F>(); ++j) {
        Store(out + (i + j) * kPanelRows + s * kLanes, Load(strip + j * kLanes));
      }
    }
  }
}

template <int M>
TS_INLINE void DecodedTile(const float* weights, const uint8_t* acts, uint64_t act_row_bytes,
                           uint32_t cols, VF (*y)[kStrips]) {
  VF sums[M][kStrips];
  __builtin_memcpy(sums, y, sizeof sums);
  ColumnTile<ColumnsF32, 1>((const uint8_t*)weights, acts, act_row_bytes, cols,
                            (const uint8_t*)weights, sums);
  __builtin_memcpy(y, sums, sizeof sums);
}

// Products of rows row .. row + rows - 1, at most kRowsDecoded, and one panel.
template <class F>
__attribute__((noinline)) void DecodedRows(const MatMulArgs& a, uint32_t row, uint32_t rows,
                                           uint32_t panel, VF (*y)[kStrips]) {
  alignas(64) float weights[kPieceCols * kPanelRows];
  const uint8_t* data = a.w->data + (uint64_t)panel * a.w->panel_bytes;
  for (uint32_t r = 0; r < rows; ++r) {
    for (uint32_t s = 0; s < kStrips; ++s) y[r][s] = Zero();
  }
  for (uint32_t c = 0; c < a.w->cols; c += kPieceCols) {
    const uint32_t cols = MinOf(kPieceCols, a.w->cols - c);
    DecodePiece<F>(data, c, cols, weights);
    const uint8_t* acts = a.acts + (uint64_t)row * a.act_row_bytes + (uint64_t)c * sizeof(float);
    uint32_t r = 0;
    for (; r + 4 <= rows; r += 4, acts += 4 * a.act_row_bytes) {
      DecodedTile<4>(weights, acts, a.act_row_bytes, cols, y + r);
    }
    for (; r < rows; ++r, acts += a.act_row_bytes) {
      DecodedTile<1>(weights, acts, a.act_row_bytes, cols, y + r);
    }
  }
}

template <class F>
void RunDecoded(const MatMulArgs& a) {
  const bool gated = a.epilogue == Epilogue::kSwiGlu;
  VF y[kRowsDecoded][kStrips], up[kRowsDecoded][kStrips];
  for (uint32_t row = a.row_begin; row < a.row_end; row += kRowsDecoded) {
    const uint32_t rows = MinOf(kRowsDecoded, a.row_end - row);
    for (uint32_t panel = a.panel_begin; panel < a.panel_end; panel += gated ? 2 : 1) {
      DecodedRows<F>(a, row, rows, panel, y);
      if (gated) DecodedRows<F>(a, row, rows, panel + 1, up);
      for (uint32_t r = 0; r < rows; ++r) {
        if (!gated) Emit(a, row + r, panel, (const VF(&)[1][kStrips])y[r]);
        for (uint32_t s = 0; gated && s < kStrips; ++s) {
          EmitGated(a, row + r, panel, s, y[r][s], up[r][s]);
        }
      }
    }
  }
}

void MatMul(const MatMulArgs* args) {
  const bool fast = args->w->acts == ActKind::kQ8;
  const bool quantised = WithFormat(args->w->type, [&](auto format) {
    using F = decltype(format);
    if (fast) {
      RunProduct<CodeProduct<F>>(*args);
    } else {
      RunDecoded<F>(*args);
    }
  });
  if (quantised) return;
#if defined(__AVX512BF16__)
  if (args->w->layout == kLayoutPairs) return RunProduct<ColumnProduct<ColumnPairsBF16>>(*args);
#endif
  if (args->w->type == DType::kF32) return RunProduct<ColumnProduct<ColumnsF32>>(*args);
  if (args->w->type == DType::kF16) return RunProduct<ColumnProduct<ColumnsF16>>(*args);
  RunProduct<ColumnProduct<ColumnsBF16>>(*args);
}

}  // namespace
}  // namespace tinyserve
