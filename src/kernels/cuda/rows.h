// Work on single rows of activations on a device: embedding, norms, and the forms that products
// take (kernels/cuda/products.h). A row's result depends on that row alone.
#ifndef TINYSERVE_KERNELS_CUDA_ROWS_H_
#define TINYSERVE_KERNELS_CUDA_ROWS_H_

#include <cstdint>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/weights.h"
#include "tinyserve/status.h"

namespace tinyserve::cuda {

// The id of a row whose token is not known to the host: the i-th that the device drew last.
constexpr int32_t DrawnId(uint32_t i) { return -2 - static_cast<int32_t>(i); }

struct EmbedRows {
  DeviceWeights embedding;
  Array<const int32_t> ids;  // [rows] of embedding's rows, or a DrawnId; another one gives zeros
  uint32_t rows, cols;       // cols: of x, at most embedding.cols
  Array<float> x;            // [rows][cols]
  bool add;                  // to x, as positions do
  Array<const int32_t> drawn = {};  // that DrawnIds name; count 0: no id is one
  Array<int32_t> tokens = {};       // [rows] gets the id that each row's names; count 0: not kept
};
// Errors: those of a launch.
Status Embed(const EmbedRows& rows, Stream stream);

// What a row is made of.
enum class RowSource : uint8_t {
  kPlain,      // x
  kRmsNorm,    // x / sqrt(mean(x^2) + eps) * weight
  kLayerNorm,  // (x - mean) / sqrt(var + eps) * weight + bias
  kGated,      // silu(x[c]) * x[cols + c]
};

// A row's forms, each written where its arrays are there (count above 0). Columns are padded with
// zeros to a multiple of 32.
struct RowForms {
  Array<float> floats;  // [rows][padded]
  // As CodedActs, by the rule of kernels/acts.h.
  Array<uint32_t> codes;
  Array<float> code_scales;
  Array<uint32_t> code_sums;
  // As HalfActs: the row's largest magnitude becomes 0.5 .. 1.
  Array<F16> halves;
  Array<float> half_scales;
};

struct MakeRows {
  RowSource source;
  Array<const float> x;  // row r at x[from * x_stride]
  uint32_t x_stride;     // floats
  // [rows] where row r is found in x; count 0: at r. Read on the device: wanted rows of a step.
  Array<const uint32_t> from;
  uint32_t rows, cols;
  Array<const float> weight, bias;  // [cols] of norms
  float eps;
  RowForms to;
};
Status Make(const MakeRows& rows, Stream stream);

struct FiniteRows {
  Array<const float> x;  // [rows][cols]
  uint32_t rows, cols;
  Array<uint32_t> finite;  // [rows] 1 where all of a row are numbers, else 0
};
Status CheckFinite(const FiniteRows& rows, Stream stream);

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_ROWS_H_
