// All that kernels see of CUDA. A .cu file includes this and uses nothing else of the language's
// extensions, so that the same file is compiled
//   - by nvcc, where everything below is a thin wrapper without cost (simt_device.h), and
//   - by the host's compiler with TINYSERVE_SIMT defined, where a block's threads are fibers and
//     every access is checked (tests/simt/emulated.h; docs/kernels/cuda.md says what is found).
//
// Both headers define, in namespace tinyserve::cuda:
//
//   TS_KERNEL, TS_DEVICE, TS_UNROLL     of a kernel, a device function, a loop
//   TS_BOUNDED_KERNEL(threads)          of a kernel whose blocks have so many threads at most
//   TS_RESIDENT_KERNEL(threads, blocks) the same, with registers for so many blocks of a
//                                       multiprocessor at a time
//   Status Launch(config, kernel, args...)
//   ThreadIndex() LaneIndex() WarpIndex() BlockThreads() BlockX/Y/Z() GridX/Y/Z()
//   SyncBlock(), SyncWarp(mask)         all threads of the block, or lanes of the mask, must come
//   Fence()                             __threadfence
//   Shuffle(v, lane, mask) ShuffleXor(v, lanes, mask) ShuffleDown(v, lanes, mask)
//   Ballot(mask, p) Any(mask, p)
//   Global<T>(array, name)              checked views: Get<V>(i), Set(i, v), Part(first, count)
//                                       GetFresh<V>(i): what other blocks of the launch have
//                                       written
//   Shared<T>                           the same of shared memory: SharedArena, or TS_SHARED;
//                                       As<V>(): the same bytes as elements of another type
//   AtomicAdd/AtomicMax(view, i, v)     the old value
//   CopyAsync16/8(shared, i, global, j) 16 or 8 bytes; CopyAsyncCommit(); CopyAsyncWait<N>()
//   MmaF16/MmaBF16(d, a, b)             m16n8k16, d += a * b in f32
//   LoadMatrices(shared, i, m)          ldmatrix x4: four 8 x 8 matrices of 16-bit elements, of
//                                       which lane l names row l % 8 of the (l / 8)-th; lane l gets
//                                       row l / 4, columns 2 (l % 4) and the next, of each
//   LoadTransposed(shared, i, m)        the same of the matrices transposed
//   PackHalves<F16 or BF16>(low, high)
//   Dp4a(a, b, c), Float(F16), ToF16(float), Float(BF16), ToBF16(float), Bits, FromBits, Fma, Exp2,
//   Exp
//
// Get<V>(i) reads a V that begins at element i: several elements at once, aligned to V's size.
#ifndef TINYSERVE_KERNELS_CUDA_SIMT_H_
#define TINYSERVE_KERNELS_CUDA_SIMT_H_

#include "kernels/cuda/launch.h"

#ifdef TINYSERVE_SIMT
#include "tests/simt/emulated.h"
#else
#include "kernels/cuda/simt_device.h"
#endif

namespace tinyserve::cuda {

constexpr uint32_t kWarpLanes = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

// Sixteen bytes, the widest access of a thread.
template <class T>
struct alignas(16) Line {
  static constexpr uint32_t kCount = 16 / sizeof(T);
  T at[kCount];
};

// By a butterfly, so that every lane has the same result, bit for bit.
TS_DEVICE float WarpSum(float value) {
  TS_UNROLL
  for (uint32_t lanes = kWarpLanes / 2; lanes > 0; lanes /= 2) {
    value += ShuffleXor(value, lanes, kAllLanes);
  }
  return value;
}
TS_DEVICE float WarpMax(float value) {
  TS_UNROLL
  for (uint32_t lanes = kWarpLanes / 2; lanes > 0; lanes /= 2) {
    const float other = ShuffleXor(value, lanes, kAllLanes);
    value = value > other ? value : other;
  }
  return value;
}

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_SIMT_H_
