#include "kv/page_space.h"

#include <cstring>

#include "base/buffer.h"
#include "base/check.h"

namespace tinyserve {

PageGeometry PageSpace::GeometryOf(const KvShape& shape) const {
  if (device_ != nullptr) return device_->GeometryOf(shape);
  uint32_t k = 0, v = 0;
  kernels_->page_bytes(&shape, &k, &v);
  TS_CHECK(k % 64 == 0 && v % 64 == 0 && k > 0 && v > 0);
  return {.page_bytes = k + v, .v_offset = k};
}

Result<PageMemory> PageSpace::Allocate(uint64_t bytes, bool huge) const {
  if (device_ != nullptr) return device_->Allocate(bytes);
  TS_ASSIGN_OR_RETURN(Buffer buffer, Buffer::Allocate(bytes, huge));
  const auto owner = std::make_shared<Buffer>(std::move(buffer));
  return PageMemory{.data = owner->data(), .size = bytes, .owner = owner};
}

void PageSpace::Copy(uint8_t* to, const uint8_t* from, uint64_t bytes) const {
  if (device_ != nullptr) return device_->Copy(to, from, bytes);
  std::memcpy(to, from, bytes);
}

}  // namespace tinyserve
