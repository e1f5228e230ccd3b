// From logits to tokens on a device, for the plain cases: the largest, or a draw at a temperature
// among all tokens of at least min_p. What it draws follows from seed and position by the engine's
// rule (engine/sampler.h), so a request's text does not depend on where it is sampled, but for
// draws within the rounding of a sum.
#ifndef TINYSERVE_KERNELS_CUDA_SAMPLE_H_
#define TINYSERVE_KERNELS_CUDA_SAMPLE_H_

#include <cstdint>

#include "kernels/cuda/launch.h"
#include "tinyserve/status.h"

namespace tinyserve::cuda {

struct SampleArgs {
  Array<const float> logits;  // [rows][vocab]
  uint32_t rows, vocab;
  // What each row wishes, [rows] each, read on the device.
  Array<const float> temperatures;  // 0: the largest logit, the first of equals
  Array<const float> min_ps;        // of the best token's weight: others below are not drawn
  Array<const uint64_t> seeds;
  Array<const uint64_t> positions;  // absolute, of the sampled token
  // [rows][(vocab + 31) / 32] bit t % 32 of word t / 32: token t may come; count 0: all may.
  Array<const uint32_t> allowed;
  Array<float> weights;   // [rows][vocab]: scratch
  Array<float> sums;      // [rows][(vocab + 63) / 64]: scratch
  Array<int32_t> tokens;  // [rows]
  Array<float> tops;  // [rows] the largest logit, no number where none is one; count 0: not kept
};
Status Sample(const SampleArgs& args, Stream stream);

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_SAMPLE_H_
