#include "device/device_pages.h"

#include "kernels/cuda/coded_pages.h"

namespace tinyserve::cuda {

Result<std::unique_ptr<DevicePageMemory>> DevicePageMemory::Create() {
  auto memory = std::make_unique<DevicePageMemory>();
  TS_ASSIGN_OR_RETURN(memory->stream_, DeviceStream::Create());
  return Result<std::unique_ptr<DevicePageMemory>>(std::move(memory));
}

PageGeometry DevicePageMemory::GeometryOf(const KvShape& shape) const {
  if (IsCoded(shape.type)) {
    const CodedPageSize size = CodedPageSizeOf(shape.type, shape.head_dim);
    return {.page_bytes = size.page_bytes, .v_offset = size.v_at};
  }
  const uint32_t element = shape.type == KvType::kF32 ? 4 : 2;
  const uint32_t v = shape.page_tokens * shape.head_dim * element;
  return {.page_bytes = 2 * v, .v_offset = v};
}

Result<PageMemory> DevicePageMemory::Allocate(uint64_t bytes) {
  TS_ASSIGN_OR_RETURN(DeviceMemory memory, DeviceMemory::Allocate(bytes));
  const auto owner = std::make_shared<DeviceMemory>(std::move(memory));
  return PageMemory{.data = owner->as<uint8_t>(), .size = bytes, .owner = owner};
}

void DevicePageMemory::Copy(uint8_t* to, const uint8_t* from, uint64_t bytes) {
  const Status copied = runtime::Copy(to, from, bytes, stream_.handle());
  if (failure_.ok()) failure_ = copied;
}

}  // namespace tinyserve::cuda
