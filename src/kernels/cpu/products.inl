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
  out->panel_rows = kLanes;
  out->panels = (rows + kLanes - 1) / kLanes;
  uint64_t bytes = 0;
  const bool quantised = WithFormat(type, [&](auto format) {
    using F = decltype(format);
    bytes = (uint64_t)(cols / UnitCols<F>()) * F::kUnitBytes;
  });
  if (quantised) {
    if (compute == Compute::kFast) out->acts = ActKind::kQ8;
  } else if (type == DType::kF32) {
    bytes = (uint64_t)cols * 4 * kLanes;
  } else if (kHasBF16Dot && type == DType::kBF16 && compute == Compute::kFast) {
    out->acts = ActKind::kBF16;
    out->layout = kLayoutPairs;
    bytes = (uint64_t)((cols + 1) / 2) * 4 * kLanes;
  } else {
    bytes = (uint64_t)cols * 2 * kLanes;
  }
  out->panel_bytes = RoundUp64(bytes);
}

void PackPanel(const PackedMatrix* w, const uint8_t* const* rows, uint8_t* panel) {
  __builtin_memset(panel, 0, w->panel_bytes);
  const uint32_t blocks = w->cols / kBlockCols, k_blocks = w->cols / 256;
  switch (w->type) {
    case DType::kQ4_0:
      return PackBlocks<BlockQ4_0>(rows, blocks, FormatQ4_0::kUnitBytes, panel);
    case DType::kQ4_1:
      return PackBlocks<BlockQ4_1>(rows, blocks, FormatQ4_1::kUnitBytes, panel);
    case DType::kQ5_0:
      return PackBlocks<BlockQ5_0>(rows, blocks, FormatQ5_0::kUnitBytes, panel);
    case DType::kQ5_1:
      return PackBlocks<BlockQ5_1>(rows, blocks, FormatQ5_1::kUnitBytes, panel);
    case DType::kQ8_0:
      return PackBlocks<BlockQ8_0>(rows, blocks, FormatQ8_0::kUnitBytes, panel);
    case DType::kQ4_K:
      return PackBlocks<BlockQ4_K>(rows, k_blocks, FormatQ4_K::kUnitBytes, panel);
    case DType::kQ5_K:
      return PackBlocks<BlockQ5_K>(rows, k_blocks, 8 * FormatQ5_K::kUnitBytes, panel);
    case DType::kQ6_K:
      return PackBlocks<BlockQ6_K>(rows, k_blocks, FormatQ6_K::kUnitBytes, panel);
    case DType::kF32:
      return PackElements<uint32_t>(rows, w->cols, 1, panel);
    case DType::kF16:
      return PackElements<uint16_t>(rows, w->cols, 1, panel);
    case DType::kBF16:
      return PackElements<uint16_t>(rows, w->cols, w->layout == kLayoutPairs ? 2 : 1, panel);
  }
}

// Element `lane` of column c of a panel of an element type.
float UnpackElement(const PackedMatrix* w, const uint8_t* panel, uint32_t lane, uint32_t c) {
  const uint32_t group = w->layout == kLayoutPairs ? 2 : 1;
  const uint64_t at = ((uint64_t)(c / group) * kLanes + lane) * group + c % group;
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
  const uint8_t* panel = w->data + (uint64_t)(row / kLanes) * w->panel_bytes;
  const uint32_t lane = row % kLanes;
  const bool quantised = WithFormat(w->type, [&](auto format) {
    using F = decltype(format);
    alignas(64) float decoded[UnitCols<F>() * kLanes];
    for (uint32_t c = 0; c < w->cols; c += UnitCols<F>(), panel += F::kUnitBytes) {
      F::Decode(panel, decoded);
      for (uint32_t i = 0; i < UnitCols<F>(); ++i) out[c + i] = decoded[i * kLanes + lane];
    }
  });
  if (quantised) return;
  for (uint32_t c = 0; c < w->cols; ++c) out[c] = UnpackElement(w, panel, lane, c);
}

// ---- what becomes of a tile ----

TS_INLINE VF BiasOf(const MatMulArgs& a, uint32_t panel) {
  if (a.bias == nullptr) return Zero();
  const uint32_t first = panel * kLanes;
  return LoadFirst(a.bias + first, MinOf(kLanes, a.w->rows - first));
}

TS_INLINE void StoreLanes(float* out, uint32_t n, VF y) {
  if (n == kLanes) return Store(out, y);
  StoreFirst(out, n, y);
}

__attribute__((noinline)) void EmitGelu(float* out, uint32_t n, VF y) {
  StoreLanes(out, n, GeluTanh(y));
}
__attribute__((noinline)) void EmitSwiGlu(float* out, uint32_t n, VF gate, VF up) {
  StoreLanes(out, n, Mul(Silu(gate), up));
}

// Stores M rows from `row` by P panels from `panel`.
template <int M, int P>
TS_INLINE void Emit(const MatMulArgs& a, uint32_t row, uint32_t panel, const VF (&y)[M][P]) {
  float* out = a.out + (uint64_t)row * a.out_stride;
  if (a.epilogue == Epilogue::kSwiGlu) {
    for (int p = 0; p + 1 < P; p += 2) {
      const uint32_t first = (panel + (uint32_t)p) / 2 * kLanes;
      if (first >= a.w->rows / 2) return;  // a pair of padding
      const uint32_t n = MinOf(kLanes, a.w->rows / 2 - first);
      const VF gate = BiasOf(a, panel + (uint32_t)p), up = BiasOf(a, panel + (uint32_t)p + 1);
      for (int m = 0; m < M; ++m) {
        EmitSwiGlu(out + (uint64_t)m * a.out_stride + first, n, Add(y[m][p], gate),
                   Add(y[m][p + 1], up));
      }
    }
    return;
  }
  TS_UNROLL
  for (int p = 0; p < P; ++p) {
    const uint32_t first = (panel + (uint32_t)p) * kLanes;
    const uint32_t n = MinOf(kLanes, a.w->rows - first);
    const VF bias = BiasOf(a, panel + (uint32_t)p);
    TS_UNROLL
    for (int m = 0; m < M; ++m) {
      float* to = out + (uint64_t)m * a.out_stride + first;
      const VF biased = Add(y[m][p], bias);
      if (a.epilogue == Epilogue::kGelu) {
        EmitGelu(to, n, biased);
      } else if (a.epilogue == Epilogue::kAdd) {
        StoreLanes(to, n, Add(n == kLanes ? Load(to) : LoadFirst(to, n), biased));
      } else {
        StoreLanes(to, n, biased);
      }
    }
  }
}

// ---- the walk: blocks of rows, then panels, then tiles ----

// A product's inner tile: y += of M rows by P panels, over all columns.
template <class F>
struct CodeProduct {
  static constexpr uint32_t kRows = 4;
  // Formats that need two sums, or a scale for each half of a block, have no registers left for a
  // second panel.
  static constexpr bool kOnePanel = F::kSixBits || (F::kOffset == 128 && !kHasByteDot);

  template <int M, int P>
  static TS_INLINE void Tile(const MatMulArgs& a, const uint8_t* panel, const uint8_t* acts,
                             VF (&y)[M][P]) {
    const uint32_t units = a.w->cols / UnitCols<F>();
    if constexpr (!kOnePanel) {
      CodeTile<F>(panel, a.w->panel_bytes, acts, a.act_row_bytes, units, y);
    } else {
      for (int p = 0; p < P; ++p, panel += a.w->panel_bytes) {
        VF one[M][1];
        for (int m = 0; m < M; ++m) one[m][0] = y[m][p];
        CodeTile<F>(panel, a.w->panel_bytes, acts, a.act_row_bytes, units, one);
        for (int m = 0; m < M; ++m) y[m][p] = one[m][0];
      }
    }
  }
};
template <class C>
struct ColumnProduct {
  static constexpr uint32_t kRows = 4;

  template <int M, int P>
  static TS_INLINE void Tile(const MatMulArgs& a, const uint8_t* panel, const uint8_t* acts,
                             VF (&y)[M][P]) {
    const uint32_t steps = (a.w->cols + C::kCols - 1) / C::kCols;
    ColumnTile<C>(panel, a.w->panel_bytes, acts, a.act_row_bytes, steps, y);
  }
};

template <class Product, int M, int P>
__attribute__((noinline)) void RunTile(const MatMulArgs& a, uint32_t row, uint32_t panel) {
  VF y[M][P];
  for (int m = 0; m < M; ++m) {
    for (int p = 0; p < P; ++p) y[m][p] = Zero();
  }
  Product::template Tile<M, P>(a, a.w->data + (uint64_t)panel * a.w->panel_bytes,
                               a.acts + (uint64_t)row * a.act_row_bytes, y);
  Emit(a, row, panel, y);
}

template <class Product, int P>
TS_INLINE void RunRows(const MatMulArgs& a, uint32_t row, uint32_t row_end, uint32_t panel) {
  constexpr uint32_t kRows = Product::kRows;
  for (; row + kRows <= row_end; row += kRows) RunTile<Product, kRows, P>(a, row, panel);
  if (row + 2 <= row_end) {
    RunTile<Product, 2, P>(a, row, panel);
    row += 2;
  }
  if (row < row_end) RunTile<Product, 1, P>(a, row, panel);
}

template <class Product>
void RunProduct(const MatMulArgs& a) {
  for (uint32_t row = a.row_begin; row < a.row_end; row += kRowsAtOnce) {
    const uint32_t row_end = MinOf(row + kRowsAtOnce, a.row_end);
    uint32_t panel = a.panel_begin;
    for (; panel + 2 <= a.panel_end; panel += 2) RunRows<Product, 2>(a, row, row_end, panel);
    if (panel < a.panel_end) RunRows<Product, 1>(a, row, row_end, panel);
  }
}

// ---- f32 products of quantised types: a piece of the weights is decoded, then used for many rows
// ----

constexpr uint32_t kPieceCols = 256;  // a multiple of every unit

template <int M, int P>
TS_INLINE void DecodedTile(const float* weights, const uint8_t* acts, uint64_t act_row_bytes,
                           uint32_t cols, VF (*y)[P]) {
  VF sums[M][P];
  for (int m = 0; m < M; ++m) {
    for (int p = 0; p < P; ++p) sums[m][p] = y[m][p];
  }
  ColumnTile<ColumnsF32>((const uint8_t*)weights, kPieceCols * kLanes * sizeof(float), acts,
                         act_row_bytes, cols, sums);
  for (int m = 0; m < M; ++m) {
    for (int p = 0; p < P; ++p) y[m][p] = sums[m][p];
  }
}

// Rows row..row_end - 1, at most kRowsDecoded, by P panels.
template <class F, int P>
__attribute__((noinline)) void RunDecodedRows(const MatMulArgs& a, uint32_t row, uint32_t row_end,
                                              uint32_t panel) {
  alignas(64) float weights[P][kPieceCols * kLanes];
  VF y[kRowsDecoded][P];
  for (uint32_t r = 0; r < row_end - row; ++r) {
    for (int p = 0; p < P; ++p) y[r][p] = Zero();
  }
  for (uint32_t c = 0; c < a.w->cols; c += kPieceCols) {
    const uint32_t cols = MinOf(kPieceCols, a.w->cols - c);
    for (uint32_t p = 0; p < P; ++p) {
      const uint8_t* unit = a.w->data + (uint64_t)(panel + p) * a.w->panel_bytes +
                            (uint64_t)(c / UnitCols<F>()) * F::kUnitBytes;
      for (uint32_t i = 0; i < cols; i += UnitCols<F>(), unit += F::kUnitBytes) {
        F::Decode(unit, weights[p] + i * kLanes);
      }
    }
    const uint8_t* acts = a.acts + (uint64_t)row * a.act_row_bytes + (uint64_t)c * sizeof(float);
    uint32_t r = 0;
    for (; r + 4 <= row_end - row; r += 4) {
      DecodedTile<4, P>(weights[0], acts + r * a.act_row_bytes, a.act_row_bytes, cols, y + r);
    }
    for (; r < row_end - row; ++r) {
      DecodedTile<1, P>(weights[0], acts + r * a.act_row_bytes, a.act_row_bytes, cols, y + r);
    }
  }
  for (uint32_t r = 0; r < row_end - row; ++r) {
    VF one[1][P];
    for (int p = 0; p < P; ++p) one[0][p] = y[r][p];
    Emit(a, row + r, panel, one);
  }
}

template <class F>
void RunDecoded(const MatMulArgs& a) {
  for (uint32_t row = a.row_begin; row < a.row_end; row += kRowsDecoded) {
    const uint32_t row_end = MinOf(row + kRowsDecoded, a.row_end);
    uint32_t panel = a.panel_begin;
    for (; panel + 2 <= a.panel_end; panel += 2) RunDecodedRows<F, 2>(a, row, row_end, panel);
    if (panel < a.panel_end) RunDecodedRows<F, 1>(a, row, row_end, panel);
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
