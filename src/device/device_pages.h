// Memory of a CUDA device for the pages of a cache, and the stream that all work on them goes
// through.
#ifndef TINYSERVE_DEVICE_DEVICE_PAGES_H_
#define TINYSERVE_DEVICE_DEVICE_PAGES_H_

#include <cstdint>
#include <utility>

#include "kernels/cuda/device.h"
#include "kv/page_space.h"
#include "tinyserve/status.h"

namespace tinyserve::cuda {

class DevicePageMemory : public PageDevice {
 public:
  // On the device in use by the calling thread.
  static Result<std::unique_ptr<DevicePageMemory>> Create();

  PageGeometry GeometryOf(const KvShape& shape) const override;
  Result<PageMemory> Allocate(uint64_t bytes) override;
  void Copy(uint8_t* to, const uint8_t* from, uint64_t bytes) override;

  const DeviceStream& stream() const { return stream_; }
  // What a copy failed with since the last call.
  Status TakeFailure() { return std::exchange(failure_, Status()); }

 private:
  DeviceStream stream_;
  Status failure_;
};

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_DEVICE_DEVICE_PAGES_H_
