#include "engine/backend.h"

#include "kernels/cuda/device.h"

namespace tinyserve {

Result<std::unique_ptr<Backend>> OpenBackend(const GgufFile& file, const BackendOptions& options) {
  using Kind = cuda::DeviceName::Kind;
  TS_ASSIGN_OR_RETURN(const cuda::DeviceName name, cuda::ParseDeviceName(options.name));
  DeviceBackendOptions device = options.device;
  device.index = name.index;
  const bool may = name.kind == Kind::kAuto && cuda::FindDevice(0).ok();
  if (may || name.kind == Kind::kCuda) {
    Result<std::unique_ptr<Backend>> opened = OpenDeviceBackend(file, device);
    // What may be the device is the CPU where the device cannot compute it.
    if (opened.ok() || !may || opened.status().code() != Code::kUnsupported) return opened;
  }
  return OpenCpuBackend(file, {.kernels = options.kernels,
                               .compute = device.compute,
                               .threads = device.threads,
                               .progress = device.progress});
}

}  // namespace tinyserve
