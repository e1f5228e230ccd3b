// What a program that was built without CUDA has in place of src/device.
#include "engine/backend.h"
#include "kernels/cuda/device.h"

namespace tinyserve {

Result<std::unique_ptr<Backend>> OpenDeviceBackend(const GgufFile&,
                                                   const DeviceBackendOptions& options) {
  const Status missing = cuda::FindDevice(options.index).status();
  if (!missing.ok()) return missing;
  return Status(Code::kUnsupported, "this program was linked without the engine's step on a GPU");
}

}  // namespace tinyserve
