// For tests of the CUDA kernels: matrices and activations in the forms that kernels read.
#ifndef TINYSERVE_TESTS_SIMT_DEVICE_TESTING_H_
#define TINYSERVE_TESTS_SIMT_DEVICE_TESTING_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/acts.h"
#include "kernels/cuda/products.h"
#include "kernels/testing.h"
#include "tests/simt/arrays.h"

namespace tinyserve::cuda {

inline std::vector<float> RandomRows(uint64_t count, uint64_t seed) {
  testing::Random random(seed);
  std::vector<float> x(count);
  for (float& value : x) value = random.Signed();
  return x;
}

struct PackedWeights {
  WeightPlan plan;
  std::vector<uint32_t> codes;
  std::vector<F16> scales;

  explicit PackedWeights(const testing::Source& source)
      : plan(PlanWeights(source.type, source.rows, source.cols)),
        codes(plan.code_bytes / sizeof(uint32_t)),
        scales(plan.scale_bytes / sizeof(F16)) {
    for (uint32_t r = 0; r < source.rows; ++r) {
      PackWeightRow(plan, source.type, source.cols, source.Row(r),
                    reinterpret_cast<uint8_t*>(codes.data()) + uint64_t{r} * plan.row_lines * 16,
                    reinterpret_cast<uint8_t*>(scales.data() + uint64_t{r} * plan.row_scales));
    }
  }
  DeviceWeights weights() const {
    return {plan.form, plan.rows, plan.cols, ArrayOf(codes), ArrayOf(scales)};
  }
};

// Rows padded with zeros.
inline std::vector<float> Padded(const std::vector<float>& x, uint32_t cols, uint32_t padded) {
  const uint64_t rows = x.size() / cols;
  std::vector<float> out(rows * padded);
  for (uint64_t r = 0; r < rows; ++r) {
    std::copy_n(x.begin() + static_cast<ptrdiff_t>(r * cols), cols,
                out.begin() + static_cast<ptrdiff_t>(r * padded));
  }
  return out;
}

// What `ref` codes activations to, by planes. REQUIRES: cols is a multiple of 32.
struct CodedRows {
  std::vector<uint32_t> codes, sums;
  std::vector<float> scales;

  CodedRows(const std::vector<ActBlock>& blocks)
      : codes(blocks.size() * 8), sums(blocks.size()), scales(blocks.size()) {
    for (size_t b = 0; b < blocks.size(); ++b) {
      std::memcpy(&codes[b * 8], blocks[b].codes, 32);
      std::memcpy(&sums[b], blocks[b].half_sums, 4);
      scales[b] = blocks[b].scale;
    }
  }
  CodedActs acts() const { return {ArrayOf(codes), ArrayOf(scales), ArrayOf(sums)}; }
};

// Rows as halves: each row's largest magnitude scaled to 0.5 .. 1.
struct HalfRows {
  std::vector<F16> halves;
  std::vector<float> scales;

  HalfRows(const std::vector<float>& x, uint32_t cols) : halves(x.size()), scales(x.size() / cols) {
    for (size_t r = 0; r < scales.size(); ++r) {
      float absmax = 0;
      for (uint32_t c = 0; c < cols; ++c) absmax = std::max(absmax, std::fabs(x[r * cols + c]));
      int exponent = 0;
      std::frexp(absmax, &exponent);
      scales[r] = std::ldexp(1.0f, exponent);
      for (uint32_t c = 0; c < cols; ++c) {
        halves[r * cols + c] = {F32ToF16(x[r * cols + c] / scales[r])};
      }
    }
  }
  HalfActs acts() const { return {ArrayOf(halves), ArrayOf(scales)}; }
};

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_TESTS_SIMT_DEVICE_TESTING_H_
