// What a program that was built without CUDA has in place of src/device.
#include "engine/backend.h"
#include "engine/device_peaks.h"
#include "kernels/cuda/device.h"

namespace tinyserve {
namespace {

Status NoDevice(uint32_t index) {
  const Status missing = cuda::FindDevice(index).status();
  if (!missing.ok()) return missing;
  return Status(Code::kUnsupported, "this program was linked without the engine's step on a GPU");
}

}  // namespace

Result<std::unique_ptr<Backend>> OpenDeviceBackend(const GgufFile&,
                                                   const DeviceBackendOptions& options) {
  return NoDevice(options.index);
}

Result<DevicePeaks> MeasureDevicePeaks(uint32_t index, const std::function<void(double)>&) {
  return NoDevice(index);
}

}  // namespace tinyserve
