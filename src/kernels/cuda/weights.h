// Weight matrices as they lie on a device, and the packing of them, on the host.
//
// A row is 16-byte lines, what one thread loads at once; rows follow each other. Scales lie apart,
// by rows too, so that neighbouring lanes read neighbouring bytes of both. Columns are padded with
// zeros to a multiple of 32.
#ifndef TINYSERVE_KERNELS_CUDA_WEIGHTS_H_
#define TINYSERVE_KERNELS_CUDA_WEIGHTS_H_

#include <cstdint>

#include "kernels/cuda/launch.h"
#include "tensor/dtype.h"

namespace tinyserve::cuda {

enum class WeightForm : uint8_t {
  // Lines of 32 codes, as in Q4_0: byte j has code j (low) and j + 16. One f16 a line: the scale
  // of code - 8.
  kQ4,
  kQ4M,  // the same with two f16: scale and minimum (Q4_1)
  // Lines of 16 signed codes. One f16 for two lines: the scale (Q8_0).
  kQ8,
  // The same with a scale and a minimum in f32 for each line: what Q5_0, Q5_1, Q4_K, Q5_K and Q6_K
  // are widened to.
  kQ8M,
  kF16,   // lines of 8
  kBF16,  // lines of 8
  kF32,   // lines of 4
};
static constexpr uint32_t kWeightForms = 7;

static constexpr uint32_t kLineBytes = 16;
static constexpr uint32_t kColsUnit = 32;

struct WeightPlan {
  WeightForm form;
  uint32_t rows, cols;   // cols: padded
  uint32_t row_lines;    // lines of a row
  uint32_t row_scales;   // f16 of a row
  uint64_t code_bytes;   // of the matrix
  uint64_t scale_bytes;  // of the matrix
};
// REQUIRES: cols is a multiple of the type's block.
WeightPlan PlanWeights(DType type, uint32_t rows, uint32_t cols);

// One row from the type's own format (null: a zero row); `cols` as the plan was asked for. Writes
// row_lines lines to `codes` and row_scales f16 to `scales`.
void PackWeightRow(const WeightPlan& plan, DType type, uint32_t cols, const uint8_t* source,
                   uint8_t* codes, uint8_t* scales);

// A matrix on the device: w[rows][cols].
struct DeviceWeights {
  WeightForm form;
  uint32_t rows, cols;
  Array<const uint32_t> codes;  // [rows][row_lines][4]
  Array<const F16> scales;      // [rows][row_scales]
};

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_WEIGHTS_H_
