// Where a cache's pages lie and in whose layout: memory of the host, laid out as a kernel table
// reads it, or memory of a device, which the host never touches.
#ifndef TINYSERVE_KV_PAGE_SPACE_H_
#define TINYSERVE_KV_PAGE_SPACE_H_

#include <cstdint>
#include <memory>

#include "kernels/kernels.h"
#include "page/page.h"
#include "tinyserve/status.h"

namespace tinyserve {

struct PageGeometry {
  uint32_t page_bytes, v_offset;  // multiples of 64
};

// Given back with its last copy.
struct PageMemory {
  uint8_t* data = nullptr;
  uint64_t size = 0;
  std::shared_ptr<void> owner;
};

// A device that keeps pages in memory of its own.
class PageDevice {
 public:
  virtual ~PageDevice() = default;

  virtual PageGeometry GeometryOf(const KvShape& shape) const = 0;
  // Errors: kOutOfMemory, those of the device.
  virtual Result<PageMemory> Allocate(uint64_t bytes) = 0;
  // After the steps before, before those that follow. What fails here fails the next step.
  virtual void Copy(uint8_t* to, const uint8_t* from, uint64_t bytes) = 0;
};

class PageSpace {
 public:
  // Implicit: a cache is created for a kernel table, or for a device. It must outlive the cache.
  PageSpace(const Kernels* kernels) : kernels_(kernels) {}  // NOLINT
  PageSpace(PageDevice* device) : device_(device) {}        // NOLINT

  MemorySpace space() const {
    return device_ != nullptr ? MemorySpace::kDevice : MemorySpace::kHost;
  }
  PageGeometry GeometryOf(const KvShape& shape) const;
  // `huge`: by huge pages where the host has them; memory of the host is zeros. Errors:
  // kOutOfMemory, those of the device.
  Result<PageMemory> Allocate(uint64_t bytes, bool huge) const;
  void Copy(uint8_t* to, const uint8_t* from, uint64_t bytes) const;

 private:
  const Kernels* kernels_ = nullptr;
  PageDevice* device_ = nullptr;
};

}  // namespace tinyserve

#endif  // TINYSERVE_KV_PAGE_SPACE_H_
