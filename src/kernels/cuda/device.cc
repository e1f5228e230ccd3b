#include "kernels/cuda/device.h"

#include <fmt/format.h>

#include <charconv>
#include <string_view>

#include "base/check.h"

namespace tinyserve::cuda {

Result<DeviceMemory> DeviceMemory::Allocate(uint64_t bytes) {
  Result<void*> data = runtime::AllocateDevice(bytes);
  if (!data.ok()) {
    if (data.status().code() != Code::kOutOfMemory) return data.status();
    const Result<uint64_t> free = runtime::FreeBytes();
    return Status(Code::kOutOfMemory,
                  fmt::format("{} bytes of device memory were asked for, {} are free: {}", bytes,
                              free.ok() ? *free : 0, data.status().message()));
  }
  DeviceMemory memory;
  memory.data_ = Owned<runtime::FreeDevice>(*data);
  memory.bytes_ = bytes;
  return Result<DeviceMemory>(std::move(memory));
}

Result<PinnedMemory> PinnedMemory::Allocate(uint64_t bytes) {
  TS_ASSIGN_OR_RETURN(void* data, runtime::AllocatePinned(bytes));
  PinnedMemory memory;
  memory.data_ = Owned<runtime::FreePinned>(data);
  memory.bytes_ = bytes;
  return Result<PinnedMemory>(std::move(memory));
}

Result<Event> Event::Create() {
  TS_ASSIGN_OR_RETURN(EventHandle handle, runtime::CreateEvent());
  Event event;
  event.handle_ = Owned<runtime::DestroyEvent>(handle);
  return Result<Event>(std::move(event));
}

Result<DeviceStream> DeviceStream::Create() {
  TS_ASSIGN_OR_RETURN(Stream handle, runtime::CreateStream());
  DeviceStream stream;
  stream.handle_ = Owned<runtime::DestroyStream>(handle);
  return Result<DeviceStream>(std::move(stream));
}

Status DeviceStream::CopyIn(const DeviceMemory& to, uint64_t at, const void* from,
                            uint64_t bytes) const {
  TS_CHECK(at <= to.size() && bytes <= to.size() - at);
  return runtime::Copy(to.as<uint8_t>() + at, from, bytes, handle());
}

Status DeviceStream::CopyOut(void* to, const DeviceMemory& from, uint64_t at,
                             uint64_t bytes) const {
  TS_CHECK(at <= from.size() && bytes <= from.size() - at);
  return runtime::Copy(to, from.as<uint8_t>() + at, bytes, handle());
}

Status DeviceStream::Fill(const DeviceMemory& data, uint8_t value) const {
  return runtime::Fill(data.as<void>(), value, data.size(), handle());
}

Result<DeviceName> ParseDeviceName(const std::string& name) {
  using Kind = DeviceName::Kind;
  if (name.empty() || name == "auto") return DeviceName{Kind::kAuto, 0};
  if (name == "cpu") return DeviceName{Kind::kCpu, 0};
  if (name == "cuda") return DeviceName{Kind::kCuda, 0};
  constexpr std::string_view kPrefix = "cuda:";
  if (name.starts_with(kPrefix)) {
    uint32_t index = 0;
    const char* end = name.data() + name.size();
    const auto [stop, error] = std::from_chars(name.data() + kPrefix.size(), end, index);
    if (error == std::errc() && stop == end && index < 1024) return DeviceName{Kind::kCuda, index};
  }
  return Status(Code::kInvalidArgument,
                fmt::format("device is '{}': allowed are auto, cpu, cuda and cuda:N", name));
}

Result<DeviceInfo> FindDevice(uint32_t index) {
  TS_ASSIGN_OR_RETURN(const std::vector<DeviceInfo> devices, runtime::ListDevices());
  if (index >= devices.size()) {
    return Status(
        Code::kUnsupported,
        fmt::format("there is no such device: this machine has {}",
                    devices.size() == 1 ? "cuda:0 alone"
                                        : fmt::format("cuda:0 to cuda:{}", devices.size() - 1)));
  }
  const DeviceInfo& device = devices[index];
  if (device.capability < kCapabilityMin) {
    return Status(Code::kUnsupported,
                  fmt::format("{} has compute capability {}.{}: at least {}.{} is needed",
                              device.name, device.capability / 10, device.capability % 10,
                              kCapabilityMin / 10, kCapabilityMin % 10));
  }
  return device;
}

Status CheckEngineDevice(const std::string& name) {
  TS_ASSIGN_OR_RETURN(const DeviceName device, ParseDeviceName(name));
  if (device.kind != DeviceName::Kind::kCuda) return Status();
  const Status found = FindDevice(device.index).status();
  if (found.ok()) return found;
  return Status(found.code(), fmt::format("device {}: {}", name, found.message()));
}

std::string DescribeDevices() {
  const std::string built = runtime::Built();
  if (built.empty()) return "no CUDA";
  const Result<std::vector<DeviceInfo>> devices = runtime::ListDevices();
  if (!devices.ok()) return fmt::format("{}; {}", built, devices.status().message());
  std::string text = built;
  for (const DeviceInfo& d : *devices) {
    text += fmt::format("; cuda:{} {} (sm_{}, {} MiB)", d.index, d.name, d.capability,
                        d.memory_bytes >> 20);
  }
  return text;
}

}  // namespace tinyserve::cuda
