// The few names of CUDA's language that kernels of plugins use, for the host's compiler: their
// threads are those of an emulated device. What they read by bare pointers is not checked.
#ifndef TINYSERVE_TESTS_SIMT_PLUGIN_CUDA_NAMES_H_
#define TINYSERVE_TESTS_SIMT_PLUGIN_CUDA_NAMES_H_

#include "kernels/cuda/simt.h"

namespace tinyserve::simt {

struct Index3 {
  uint32_t x, y, z;
};
inline Index3 ThreadOfBlock() { return {cuda::ThreadIndex(), 0, 0}; }
inline Index3 BlockOfGrid() { return {cuda::BlockX(), cuda::BlockY(), cuda::BlockZ()}; }
inline Index3 ThreadsOfBlock() { return {cuda::BlockThreads(), 1, 1}; }

}  // namespace tinyserve::simt

#define __global__
#define threadIdx (::tinyserve::simt::ThreadOfBlock())
#define blockIdx (::tinyserve::simt::BlockOfGrid())
#define blockDim (::tinyserve::simt::ThreadsOfBlock())
#define __shfl_xor_sync(mask, value, lanes) ::tinyserve::cuda::ShuffleXor(value, lanes, mask)

#endif  // TINYSERVE_TESTS_SIMT_PLUGIN_CUDA_NAMES_H_
