// What host code and kernels have in common: arrays in device memory, element types, launches.
//
// Plain C++: nothing here needs CUDA's headers.
#ifndef TINYSERVE_KERNELS_CUDA_LAUNCH_H_
#define TINYSERVE_KERNELS_CUDA_LAUNCH_H_

#include <cstdint>

namespace tinyserve::cuda {

// Memory of the device (of the host, where kernels are emulated), not owned. Kernels reach it
// through a Global view alone (kernels/cuda/simt.h).
template <class T>
struct Array {
  T* data;
  uint64_t count;
};

// 16-bit floats as their bits: any compiler can pass them on; kernels compute in float.
struct F16 {
  uint16_t bits;
};
struct BF16 {
  uint16_t bits;
};

// A cudaStream_t; null is the default stream.
using Stream = void*;

struct Grid {
  uint32_t x = 1, y = 1, z = 1;
};

struct LaunchConfig {
  const char* kernel;  // named in errors; static storage
  Grid grid;
  uint32_t threads;           // of a block, in one dimension: a multiple of 32, at most 1024
  uint32_t shared_bytes = 0;  // dynamic
  Stream stream = nullptr;
};

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_LAUNCH_H_
