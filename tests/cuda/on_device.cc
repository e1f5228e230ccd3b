// Makes a test of tests/simt one for a real GPU: the same source, linked with this and with the
// kernels as nvcc has compiled them.
//
// Tests hand kernels what lies in their vectors. Here all memory that `new` gives is managed
// memory, which host and device both reach; every launch waits for its kernel (TINYSERVE_CUDA_SYNC,
// set by CMakeLists.txt), so that the host never reads too early.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <new>

#include "kernels/cuda/device.h"
#include "tests/simt/emulator.h"

namespace {

constexpr int kSkipped = 77;  // SKIP_RETURN_CODE
constexpr size_t kPoolBytes = size_t{2} << 30, kLeastBytes = 256;

// Blocks of powers of two, taken from one managed allocation and kept for their size.
class ManagedPool {
 public:
  void* Take(size_t bytes) {
    const std::lock_guard lock(mutex_);
    if (!opened_) Open();
    const size_t size = std::bit_ceil(bytes < kLeastBytes ? kLeastBytes : bytes);
    Block*& kept = kept_[std::countr_zero(size)];
    if (kept != nullptr) {
      Block* block = kept;
      kept = block->next;
      return block;
    }
    if (base_ == nullptr || kPoolBytes - used_ < size) return nullptr;
    void* block = base_ + used_;
    used_ += size;
    sizes_[IndexOf(block)] = static_cast<uint8_t>(std::countr_zero(size));
    return block;
  }
  // False where the memory is not the pool's.
  bool Give(void* memory) {
    auto* at = static_cast<char*>(memory);
    if (base_ == nullptr || at < base_ || at >= base_ + kPoolBytes) return false;
    const std::lock_guard lock(mutex_);
    Block*& kept = kept_[sizes_[IndexOf(memory)]];
    kept = ::new (memory) Block{kept};
    return true;
  }

 private:
  struct Block {
    Block* next;
  };
  size_t IndexOf(void* block) const {
    return static_cast<size_t>(static_cast<char*>(block) - base_) / kLeastBytes;
  }
  // The runtime may itself call `new` here: it gets plain memory, for opened_ is set first.
  void Open() {
    opened_ = true;
    void* base = nullptr;
    if (cudaMallocManaged(&base, kPoolBytes, cudaMemAttachGlobal) != cudaSuccess) {
      (void)cudaGetLastError();
      return;
    }
    sizes_ = static_cast<uint8_t*>(std::calloc(kPoolBytes / kLeastBytes, 1));
    if (sizes_ != nullptr) base_ = static_cast<char*>(base);
  }

  std::recursive_mutex mutex_;
  bool opened_ = false;
  char* base_ = nullptr;
  size_t used_ = 0;
  uint8_t* sizes_ = nullptr;  // log2 of a block's size, at the index of its first kLeastBytes
  Block* kept_[64] = {};
};

ManagedPool& Pool() {
  // Never destroyed: memory is given back until the very end.
  alignas(ManagedPool) static char bytes[sizeof(ManagedPool)];
  static ManagedPool* pool = ::new (bytes) ManagedPool;
  return *pool;
}

}  // namespace

void* operator new(size_t bytes) {
  void* memory = Pool().Take(bytes);
  if (memory == nullptr) memory = std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) std::abort();
  return memory;
}
void operator delete(void* memory) noexcept {
  if (memory != nullptr && !Pool().Give(memory)) std::free(memory);
}
void operator delete(void* memory, size_t) noexcept { operator delete(memory); }

namespace tinyserve::simt {

// A device has its own order.
void SetSeed(uint64_t) {}

}  // namespace tinyserve::simt

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const tinyserve::Status device = tinyserve::cuda::FindDevice(0).status();
  if (!device.ok()) {
    std::printf("skipped: %s\n", device.message().c_str());
    return kSkipped;
  }
  return RUN_ALL_TESTS();
}
