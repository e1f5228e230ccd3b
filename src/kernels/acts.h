// Activations in ActKind::kQ8: a row is cols / 32 of these blocks, padded to a multiple of 64
// bytes. One form for every table, so that integer dots agree between targets to the last bit. POD
// only: included by units compiled with a target's flags.
#ifndef TINYSERVE_KERNELS_ACTS_H_
#define TINYSERVE_KERNELS_ACTS_H_

#include <stdint.h>

namespace tinyserve {

static constexpr uint32_t kActBlockCols = 32;

// scale = absmax / 127; codes are x * (127 / absmax), rounded to nearest even, -127..127. A block
// whose absmax is below kActAbsmaxMin (there 127 / absmax would overflow) is all zero.
struct ActBlock {
  int8_t codes[kActBlockCols];
  float scale;
  float scaled_sum;      // scale * sum of all codes: for formats with a minimum
  int16_t half_sums[2];  // sums of the codes of columns 0-15 and 16-31: for formats with an offset
  uint32_t zero;
};
static_assert(sizeof(ActBlock) == 48);

static constexpr float kActAbsmaxMin = 1e-30f;

}  // namespace tinyserve

#endif  // TINYSERVE_KERNELS_ACTS_H_
