#include "kernels/ref/products.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "kernels/acts.h"
#include "kernels/ref/codes.h"
#include "tensor/convert.h"

namespace tinyserve::ref {
namespace {

constexpr uint32_t kRowsAtOnce = 64;   // activation rows that share one decoding of a weight row
constexpr uint32_t kChunkCols = 2048;  // columns decoded at once; a multiple of every block
constexpr uint32_t kPartialSums = 8;   // of an f32 dot: column c adds to sum c % 8

uint64_t RoundUp(uint64_t bytes, uint64_t unit) { return (bytes + unit - 1) / unit * unit; }

// y[i] = w . x[first_row + i] over dequantised weights.
void FloatDots(const MatMulArgs& args, const uint8_t* panel, uint32_t first_row, uint32_t rows,
               float* y) {
  const PackedMatrix& w = *args.w;
  float sums[kRowsAtOnce][kPartialSums] = {};
  float weights[kChunkCols];
  for (uint32_t begin = 0; begin < w.cols; begin += kChunkCols) {
    const uint32_t cols = std::min(kChunkCols, w.cols - begin);
    DequantizeRow(w.type, panel + RowBytes(w.type, begin), cols, weights);
    for (uint32_t i = 0; i < rows; ++i) {
      const uint8_t* row = args.acts + (first_row + i) * args.act_row_bytes;
      const float* x = reinterpret_cast<const float*>(row) + begin;
      float* sum = sums[i];
      uint32_t c = 0;
      for (; c + kPartialSums <= cols; c += kPartialSums) {
        for (uint32_t k = 0; k < kPartialSums; ++k) sum[k] += weights[c + k] * x[c + k];
      }
      for (; c < cols; ++c) sum[c % kPartialSums] += weights[c] * x[c];
    }
  }
  for (uint32_t i = 0; i < rows; ++i) {
    y[i] = 0;
    for (float sum : sums[i]) y[i] += sum;
  }
}

int32_t CodeDot(const int16_t* w, const int8_t* x) {
  int32_t sum = 0;
  for (uint32_t i = 0; i < kActBlockCols; ++i) sum += w[i] * x[i];
  return sum;
}

// y[i] = w . x[first_row + i] over codes; blocks in increasing column order, each with two fused
// operations.
void CodeDots(const MatMulArgs& args, const uint8_t* panel, uint32_t first_row, uint32_t rows,
              float* y) {
  const PackedMatrix& w = *args.w;
  constexpr uint32_t kChunkBlocks = kChunkCols / kActBlockCols;
  const uint32_t blocks = w.cols / kActBlockCols;
  CodeBlock codes[kChunkBlocks];
  std::fill_n(y, rows, 0.0f);
  for (uint32_t begin = 0; begin < blocks; begin += kChunkBlocks) {
    const uint32_t n = std::min(kChunkBlocks, blocks - begin);
    for (uint32_t b = 0; b < n; ++b) codes[b] = DecodeCodes(w.type, panel, begin + b);
    for (uint32_t i = 0; i < rows; ++i) {
      const uint8_t* row = args.acts + (first_row + i) * args.act_row_bytes;
      const ActBlock* x = reinterpret_cast<const ActBlock*>(row) + begin;
      for (uint32_t b = 0; b < n; ++b) {
        const auto dot = static_cast<float>(CodeDot(codes[b].code, x[b].codes));
        y[i] = std::fma(dot, codes[b].scale * x[b].scale, y[i]);
        y[i] = std::fma(codes[b].min, x[b].scaled_sum, y[i]);
      }
    }
  }
}

// One weight row against up to kRowsAtOnce activation rows, bias added.
void PanelDots(const MatMulArgs& args, uint32_t panel, uint32_t first_row, uint32_t rows,
               float* y) {
  const uint8_t* data = args.w->data + panel * args.w->panel_bytes;
  if (args.w->acts == ActKind::kQ8) {
    CodeDots(args, data, first_row, rows, y);
  } else {
    FloatDots(args, data, first_row, rows, y);
  }
  if (args.bias == nullptr) return;
  for (uint32_t i = 0; i < rows; ++i) y[i] += args.bias[panel];
}

float Silu(float x) { return x / (1.0f + std::exp(-x)); }

float GeluTanh(float x) {
  const float u = 0.797884561f * (x + 0.044715f * x * x * x);
  return 0.5f * x * (1.0f + std::tanh(u));
}

void MakeQ8Row(const float* x, uint32_t cols, ActBlock* out) {
  for (uint32_t b = 0; b < cols / kActBlockCols; ++b, x += kActBlockCols) {
    out[b] = {};
    float absmax = 0;
    for (uint32_t i = 0; i < kActBlockCols; ++i) absmax = std::max(absmax, std::fabs(x[i]));
    if (!(absmax >= kActAbsmaxMin)) continue;
    const float inverse = 127.0f / absmax;
    int sums[2] = {};
    for (uint32_t i = 0; i < kActBlockCols; ++i) {
      const auto code = static_cast<int>(std::nearbyint(x[i] * inverse));
      out[b].codes[i] = static_cast<int8_t>(code);
      sums[i / 16] += code;
    }
    out[b].scale = absmax / 127.0f;
    out[b].scaled_sum = out[b].scale * static_cast<float>(sums[0] + sums[1]);
    for (int half = 0; half < 2; ++half) out[b].half_sums[half] = static_cast<int16_t>(sums[half]);
  }
}

}  // namespace

void PlanMatrix(DType type, Compute compute, uint32_t rows, uint32_t cols, PackedMatrix* out) {
  const bool codes = HasCodes(type) && compute == Compute::kFast;
  out->type = type;
  out->acts = codes ? ActKind::kQ8 : ActKind::kF32;
  out->layout = 0;
  out->rows = rows;
  out->cols = cols;
  out->panel_rows = 1;
  out->panels = rows;
  out->panel_bytes = RoundUp(RowBytes(type, cols), 64);
}

void PackPanel(const PackedMatrix* w, const uint8_t* const* source_rows, uint8_t* panel) {
  std::memset(panel, 0, w->panel_bytes);
  if (source_rows[0] != nullptr) std::memcpy(panel, source_rows[0], RowBytes(w->type, w->cols));
}

void UnpackRow(const PackedMatrix* w, uint32_t row, float* out) {
  DequantizeRow(w->type, w->data + row * w->panel_bytes, w->cols, out);
}

uint64_t ActRowBytes(ActKind kind, uint32_t cols) {
  switch (kind) {
    case ActKind::kF32:
      return RoundUp(uint64_t{cols} * sizeof(float), 64);
    case ActKind::kQ8:
      return RoundUp(uint64_t{cols} / kActBlockCols * sizeof(ActBlock), 64);
    case ActKind::kBF16:
      return RoundUp(uint64_t{cols} * sizeof(uint16_t), 64);
  }
  TS_CHECK(false && "an ActKind outside its enumerators");
  return 0;
}

void MakeActs(ActKind kind, const float* x, uint64_t x_stride, uint32_t rows, uint32_t cols,
              uint8_t* out) {
  const uint64_t row_bytes = ActRowBytes(kind, cols);
  for (uint32_t r = 0; r < rows; ++r, x += x_stride, out += row_bytes) {
    std::memset(out, 0, row_bytes);
    switch (kind) {
      case ActKind::kF32:
        std::memcpy(out, x, cols * sizeof(float));
        break;
      case ActKind::kQ8:
        MakeQ8Row(x, cols, reinterpret_cast<ActBlock*>(out));
        break;
      case ActKind::kBF16:
        for (uint32_t c = 0; c < cols; ++c) {
          const uint16_t bits = F32ToBF16(x[c]);
          std::memcpy(out + c * sizeof bits, &bits, sizeof bits);
        }
        break;
    }
  }
}

void MatMul(const MatMulArgs* args) {
  const uint32_t step = args->epilogue == Epilogue::kSwiGlu ? 2 : 1;
  float y[kRowsAtOnce], up[kRowsAtOnce];
  for (uint32_t first = args->row_begin; first < args->row_end; first += kRowsAtOnce) {
    const uint32_t rows = std::min(kRowsAtOnce, args->row_end - first);
    for (uint32_t panel = args->panel_begin; panel < args->panel_end; panel += step) {
      PanelDots(*args, panel, first, rows, y);
      if (step == 2) PanelDots(*args, panel + 1, first, rows, up);
      for (uint32_t i = 0; i < rows; ++i) {
        float* out = args->out + (first + i) * args->out_stride + panel / step;
        switch (args->epilogue) {
          case Epilogue::kStore:
            *out = y[i];
            break;
          case Epilogue::kAdd:
            *out += y[i];
            break;
          case Epilogue::kSwiGlu:
            *out = Silu(y[i]) * up[i];
            break;
          case Epilogue::kGelu:
            *out = GeluTanh(y[i]);
            break;
        }
      }
    }
  }
}

}  // namespace tinyserve::ref
