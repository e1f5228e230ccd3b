#include "kernels/ref/rows.h"

#include <cmath>

namespace tinyserve::ref {

void RmsNorm(const float* x, uint64_t x_stride, uint32_t rows, uint32_t cols, const float* weight,
             float eps, float* out, uint64_t out_stride) {
  for (uint32_t r = 0; r < rows; ++r, x += x_stride, out += out_stride) {
    double squares = 0;
    for (uint32_t c = 0; c < cols; ++c) squares += double{x[c]} * x[c];
    const auto scale = static_cast<float>(1.0 / std::sqrt(squares / cols + eps));
    for (uint32_t c = 0; c < cols; ++c) out[c] = x[c] * scale * weight[c];
  }
}

void LayerNorm(const float* x, uint64_t x_stride, uint32_t rows, uint32_t cols, const float* weight,
               const float* bias, float eps, float* out, uint64_t out_stride) {
  for (uint32_t r = 0; r < rows; ++r, x += x_stride, out += out_stride) {
    double sum = 0;
    for (uint32_t c = 0; c < cols; ++c) sum += x[c];
    const double mean = sum / cols;
    double squares = 0;
    for (uint32_t c = 0; c < cols; ++c) squares += (x[c] - mean) * (x[c] - mean);
    const double scale = 1.0 / std::sqrt(squares / cols + eps);
    for (uint32_t c = 0; c < cols; ++c) {
      out[c] = static_cast<float>((x[c] - mean) * scale) * weight[c] + bias[c];
    }
  }
}

void Rope(float* x, uint32_t heads, uint32_t head_dim, uint32_t rotary_dim, bool interleaved,
          const float* cos_sin) {
  const uint32_t pairs = rotary_dim / 2;
  for (uint32_t h = 0; h < heads; ++h, x += head_dim) {
    for (uint32_t i = 0; i < pairs; ++i) {
      float* a = interleaved ? x + 2 * i : x + i;
      float* b = interleaved ? a + 1 : a + pairs;
      const float cos = cos_sin[2 * i], sin = cos_sin[2 * i + 1];
      const float rotated = *a * cos - *b * sin;
      *b = *a * sin + *b * cos;
      *a = rotated;
    }
  }
}

}  // namespace tinyserve::ref
