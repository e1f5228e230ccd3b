// Products of activation rows with weight matrices on a device: out[r][n] = sum_c w[n][c] x[r][c].
//
// Two kernels, by the class of the rows' tokens (docs/ARCHITECTURE.md, "Two classes of token"),
// each with one order of summation for any number of rows, so that a row's result does not depend
// on its batch:
//
//   generated  a warp for two weight rows; lane l sums the lines l, l + 32, ... of each in order,
//              and a butterfly sums the lanes. Codes meet int8 activations, floats meet floats.
//   prompt     tensor cores, f16 operands in f32: 32 columns after 32. Activations are scaled by a
//              power of two a row, so that none overflows.
#ifndef TINYSERVE_KERNELS_CUDA_PRODUCTS_H_
#define TINYSERVE_KERNELS_CUDA_PRODUCTS_H_

#include <cstdint>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/weights.h"
#include "kernels/kernels.h"
#include "tinyserve/status.h"

namespace tinyserve::cuda {

// Activations of generated rows for weights in codes, the numbers of kernels/acts.h by planes.
struct CodedActs {
  Array<const uint32_t> codes;  // [rows][cols / 4] four int8 each
  Array<const float> scales;    // [rows][cols / 32]
  Array<const uint32_t> sums;   // [rows][cols / 32] sums of the codes of each half, two int16
};

// Of prompt rows: x = halves * scale.
struct HalfActs {
  Array<const F16> halves;    // [rows][cols]
  Array<const float> scales;  // [rows], powers of two
};

// What a product's result meets, and where it goes.
struct ProductOut {
  Array<const float> bias;  // [weights.rows]; count 0: none
  Array<float> out;         // row r, column n at out[r * stride + n]
  uint32_t stride;          // floats
  // kSwiGlu: weight rows alternate gate, up; column n comes from rows 2n and 2n + 1.
  Epilogue epilogue;
};

struct GeneratedProduct {
  DeviceWeights weights;
  CodedActs coded;            // of weights in codes
  Array<const float> floats;  // [rows][weights.cols], of weights in floats
  uint32_t rows;              // at least 1
  ProductOut to;
};
// Whether weights of this form take CodedActs; the others take floats.
bool TakesCodedActs(WeightForm form);
// Errors: those of a launch. REQUIRES, as below: rows >= 1; an even number of weight rows for
// kSwiGlu.
Status MultiplyGenerated(const GeneratedProduct& product, Stream stream);

struct PromptProduct {
  DeviceWeights weights;
  HalfActs acts;
  uint32_t rows;
  ProductOut to;
};
Status MultiplyPrompt(const PromptProduct& product, Stream stream);

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_PRODUCTS_H_
