// For kernels: floats as integers of the same order, for selection by digits.
#ifndef TINYSERVE_KERNELS_CUDA_ORDER_KEY_H_
#define TINYSERVE_KERNELS_CUDA_ORDER_KEY_H_

#include "kernels/cuda/simt.h"

namespace tinyserve::cuda {

// Order-preserving: a larger score has a larger key. NaN ranks below everything.
TS_DEVICE uint32_t KeyOf(float score) {
  if (score != score) return 0;
  const uint32_t bits = Bits(score);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_ORDER_KEY_H_
