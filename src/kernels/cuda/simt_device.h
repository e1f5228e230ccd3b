// kernels/cuda/simt.h for nvcc: thin wrappers, of which the compiler leaves nothing.
#ifndef TINYSERVE_KERNELS_CUDA_SIMT_DEVICE_H_
#define TINYSERVE_KERNELS_CUDA_SIMT_DEVICE_H_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <tuple>
#include <type_traits>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/runtime.h"
#include "tinyserve/status.h"

#define TS_KERNEL __global__ static void
#define TS_BOUNDED_KERNEL(threads) __global__ static void __launch_bounds__(threads, 1)
#define TS_RESIDENT_KERNEL(threads, blocks) \
  __global__ static void __launch_bounds__(threads, blocks)
#define TS_DEVICE __device__ __forceinline__
#define TS_UNROLL _Pragma("unroll")

namespace tinyserve::cuda {

// ---- launches -----------------------------------------------------------------------------------

// Queues a kernel; what goes wrong while it runs is found when its stream is waited for.
template <class... Parameters, class... Arguments>
Status Launch(const LaunchConfig& config, void (*kernel)(Parameters...), Arguments... arguments) {
  std::tuple<Parameters...> values(arguments...);
  void* pointers[sizeof...(Parameters)];
  std::apply(
      [&](auto&... value) {
        int i = 0;
        ((pointers[i++] = &value), ...);
      },
      values);
  const void* entry = reinterpret_cast<const void*>(kernel);
  cudaError_t error = cudaSuccess;
  if (config.shared_bytes > 48 * 1024) {
    error = cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(config.shared_bytes));
  }
  if (error == cudaSuccess) {
    error = cudaLaunchKernel(entry, dim3(config.grid.x, config.grid.y, config.grid.z),
                             dim3(config.threads), pointers, config.shared_bytes,
                             static_cast<cudaStream_t>(config.stream));
  }
  return runtime::AfterLaunch(config.kernel, static_cast<int>(error), config.stream);
}

// ---- threads ------------------------------------------------------------------------------------

TS_DEVICE uint32_t ThreadIndex() { return threadIdx.x; }
TS_DEVICE uint32_t LaneIndex() { return threadIdx.x % 32; }
TS_DEVICE uint32_t WarpIndex() { return threadIdx.x / 32; }
TS_DEVICE uint32_t BlockThreads() { return blockDim.x; }
TS_DEVICE uint32_t BlockX() { return blockIdx.x; }
TS_DEVICE uint32_t BlockY() { return blockIdx.y; }
TS_DEVICE uint32_t BlockZ() { return blockIdx.z; }
TS_DEVICE uint32_t GridX() { return gridDim.x; }
TS_DEVICE uint32_t GridY() { return gridDim.y; }
TS_DEVICE uint32_t GridZ() { return gridDim.z; }

TS_DEVICE void SyncBlock() { __syncthreads(); }
TS_DEVICE void SyncWarp(uint32_t mask) { __syncwarp(mask); }
TS_DEVICE void Fence() { __threadfence(); }

template <class T>
TS_DEVICE T Shuffle(T value, uint32_t lane, uint32_t mask) {
  return __shfl_sync(mask, value, static_cast<int>(lane));
}
template <class T>
TS_DEVICE T ShuffleXor(T value, uint32_t lanes, uint32_t mask) {
  return __shfl_xor_sync(mask, value, static_cast<int>(lanes));
}
template <class T>
TS_DEVICE T ShuffleDown(T value, uint32_t lanes, uint32_t mask) {
  return __shfl_down_sync(mask, value, lanes);
}
TS_DEVICE uint32_t Ballot(uint32_t mask, bool p) { return __ballot_sync(mask, p); }
TS_DEVICE bool Any(uint32_t mask, bool p) { return __any_sync(mask, p) != 0; }

// ---- memory -------------------------------------------------------------------------------------

// Of both memories: where it lies is the compiler's business.
template <class T>
class View {
 public:
  using Element = std::remove_const_t<T>;

  TS_DEVICE explicit View(T* base) : base_(base) {}

  template <class V = Element>
  TS_DEVICE V Get(uint64_t i) const {
    return *reinterpret_cast<const V*>(base_ + i);
  }
  template <class V = Element>
  TS_DEVICE void Set(uint64_t i, V value) const {
    *reinterpret_cast<V*>(base_ + i) = value;
  }
  TS_DEVICE T* at(uint64_t i) const { return base_ + i; }

 protected:
  T* base_;
};

template <class T>
class Global : public View<T> {
 public:
  TS_DEVICE Global(Array<T> array, const char*) : View<T>(array.data) {}
  // Past the caches of a multiprocessor: what other blocks of the launch have written.
  template <class V = std::remove_const_t<T>>
  TS_DEVICE V GetFresh(uint64_t i) const {
    return __ldcg(reinterpret_cast<const V*>(this->base_ + i));
  }
  TS_DEVICE Global Part(uint64_t first, uint64_t count) const {
    return Global({this->base_ + first, count}, nullptr);
  }
};

template <class T>
class Shared : public View<T> {
 public:
  TS_DEVICE explicit Shared(T* base) : View<T>(base) {}
  template <class V>
  TS_DEVICE Shared<V> As() const {
    return Shared<V>(reinterpret_cast<V*>(this->base_));
  }
  TS_DEVICE Shared Part(uint64_t first, uint64_t) const { return Shared(this->base_ + first); }
};

// Hands out the launch's dynamic shared memory, each part at a multiple of 16 bytes.
class SharedArena {
 public:
  TS_DEVICE SharedArena() : used_(0) {}
  template <class T>
  TS_DEVICE Shared<T> Take(uint32_t count, const char*) {
    extern __shared__ uint4 ts_dynamic_shared[];
    T* base = reinterpret_cast<T*>(reinterpret_cast<char*>(ts_dynamic_shared) + used_);
    used_ += (count * static_cast<uint32_t>(sizeof(T)) + 15) / 16 * 16;
    return Shared<T>(base);
  }

 private:
  uint32_t used_;
};

#define TS_SHARED(T, name, count)            \
  __shared__ alignas(16) T name##_ts[count]; \
  const ::tinyserve::cuda::Shared<T> name(name##_ts)

template <class T>
TS_DEVICE T AtomicAdd(const View<T>& view, uint64_t i, T value) {
  return atomicAdd(view.at(i), value);
}
// CUDA knows 64 bits by another name of theirs.
TS_DEVICE uint64_t AtomicAdd(const View<uint64_t>& view, uint64_t i, uint64_t value) {
  return atomicAdd(reinterpret_cast<unsigned long long*>(view.at(i)), value);
}
template <class T>
TS_DEVICE T AtomicMax(const View<T>& view, uint64_t i, T value) {
  return atomicMax(view.at(i), value);
}

// Copies 16 bytes of global memory while the thread goes on; nobody may touch them before the
// thread's CopyAsyncWait, nor another thread before a barrier after that.
template <class T, class U>
TS_DEVICE void CopyAsync16(const Shared<T>& to, uint64_t i, const Global<U>& from, uint64_t j) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to.at(i)));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from.at(j))
               : "memory");
}
// The same of 8 bytes.
template <class T, class U>
TS_DEVICE void CopyAsync8(const Shared<T>& to, uint64_t i, const Global<U>& from, uint64_t j) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to.at(i)));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(address), "l"(from.at(j))
               : "memory");
}
TS_DEVICE void CopyAsyncCommit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all but the thread's newest kLeft groups have arrived.
template <int kLeft>
TS_DEVICE void CopyAsyncWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// ---- arithmetic ---------------------------------------------------------------------------------

TS_DEVICE float Float(F16 x) { return __half2float(__ushort_as_half(x.bits)); }
TS_DEVICE F16 ToF16(float x) { return {__half_as_ushort(__float2half_rn(x))}; }
TS_DEVICE float Float(BF16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
TS_DEVICE BF16 ToBF16(float x) { return {__bfloat16_as_ushort(__float2bfloat16_rn(x))}; }
TS_DEVICE float Float(float x) { return x; }
TS_DEVICE uint32_t Bits(float x) { return __float_as_uint(x); }
TS_DEVICE float FromBits(uint32_t bits) { return __uint_as_float(bits); }
TS_DEVICE float Fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
TS_DEVICE float SquareRoot(float x) { return __fsqrt_rn(x); }
TS_DEVICE float RoundEven(float x) { return rintf(x); }
TS_DEVICE float RoundUp(float x) { return ceilf(x); }
TS_DEVICE float Exp2(float x) { return exp2f(x); }
TS_DEVICE float Exp(float x) { return __expf(x); }
TS_DEVICE int Dp4a(int a, int b, int c) { return __dp4a(a, b, c); }
TS_DEVICE uint32_t PopCount(uint32_t x) { return __popc(x); }

// Two numbers as the halves of a word, the first one below.
template <class Half>
TS_DEVICE uint32_t PackHalves(float low, float high) {
  if constexpr (std::is_same_v<Half, F16>) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
}

// See kernels/cuda/simt.h.
template <class T>
TS_DEVICE void LoadMatrices(const Shared<T>& view, uint64_t i, uint32_t (&m)[4]) {
  static_assert(sizeof(T) == 2);
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(view.at(i)));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(address)
               : "memory");
}
template <class T>
TS_DEVICE void LoadTransposed(const Shared<T>& view, uint64_t i, uint32_t (&m)[4]) {
  static_assert(sizeof(T) == 2);
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(view.at(i)));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(address)
               : "memory");
}

// d += a * b of a warp: a [16][16], b [16][8], d [16][8] in the fragments of mma.m16n8k16.
TS_DEVICE void MmaF16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
TS_DEVICE void MmaBF16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_SIMT_DEVICE_H_
