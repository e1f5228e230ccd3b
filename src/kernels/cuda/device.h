// What lives on a CUDA device, each with one owner: memory, pinned host memory, streams, events,
// recorded graphs. Errors are those of kernels/cuda/runtime.h.
#ifndef TINYSERVE_KERNELS_CUDA_DEVICE_H_
#define TINYSERVE_KERNELS_CUDA_DEVICE_H_

#include <cstdint>
#include <string>
#include <utility>

#include "kernels/cuda/runtime.h"
#include "tinyserve/status.h"

namespace tinyserve::cuda {

// A handle that `Release` gives back, once.
template <void (*Release)(void*)>
class Owned {
 public:
  Owned() = default;
  explicit Owned(void* handle) : handle_(handle) {}
  Owned(Owned&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Owned& operator=(Owned&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Owned() {
    if (handle_ != nullptr) Release(handle_);
  }
  void* get() const { return handle_; }

 private:
  void* handle_ = nullptr;
};

// Memory of the device, at least 256-byte aligned. Its contents are undefined until written.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  // Errors: kOutOfMemory says what was asked for and what is free.
  static Result<DeviceMemory> Allocate(uint64_t bytes);

  template <class T>
  T* as() const {
    return static_cast<T*>(data_.get());
  }
  uint64_t size() const { return bytes_; }

 private:
  Owned<runtime::FreeDevice> data_;
  uint64_t bytes_ = 0;
};

// Host memory that the device copies from and to while kernels run.
class PinnedMemory {
 public:
  PinnedMemory() = default;
  static Result<PinnedMemory> Allocate(uint64_t bytes);

  template <class T>
  T* as() const {
    return static_cast<T*>(data_.get());
  }
  uint64_t size() const { return bytes_; }

 private:
  Owned<runtime::FreePinned> data_;
  uint64_t bytes_ = 0;
};

class Event {
 public:
  Event() = default;
  static Result<Event> Create();
  EventHandle handle() const { return handle_.get(); }
  Status Await() const { return runtime::Await(handle()); }

 private:
  Owned<runtime::DestroyEvent> handle_;
};

// Work that was recorded once and is launched often, with the addresses it was recorded with.
class Graph {
 public:
  Graph() = default;
  explicit Graph(GraphHandle handle) : handle_(handle) {}
  GraphHandle handle() const { return handle_.get(); }

 private:
  Owned<runtime::DestroyGraph> handle_;
};

// Work in order. REQUIRES: its device is in use by the calling thread.
class DeviceStream {
 public:
  static Result<DeviceStream> Create();
  Stream handle() const { return handle_.get(); }

  // `bytes` of `to` from `from` on; REQUIRES: they lie within it.
  Status CopyIn(const DeviceMemory& to, uint64_t at, const void* from, uint64_t bytes) const;
  Status CopyOut(void* to, const DeviceMemory& from, uint64_t at, uint64_t bytes) const;
  Status Fill(const DeviceMemory& data, uint8_t value) const;
  Status Synchronize() const { return runtime::Synchronize(handle()); }

  Status Record(const Event& event) const { return runtime::Record(event.handle(), handle()); }
  Status WaitFor(const Event& event) const { return runtime::WaitFor(event.handle(), handle()); }

  // Records what `body` gives this stream. When `body` fails, nothing stays recorded.
  template <class Body>
  Result<Graph> Capture(const Body& body) const {
    TS_RETURN_IF_ERROR(runtime::BeginCapture(handle()));
    const Status status = body();
    Result<GraphHandle> handle = runtime::EndCapture(this->handle());
    Graph graph(handle.ok() ? *handle : nullptr);
    TS_RETURN_IF_ERROR(status);
    TS_RETURN_IF_ERROR(handle.status());
    return Result<Graph>(std::move(graph));
  }
  Status Launch(const Graph& graph) const { return runtime::LaunchGraph(graph.handle(), handle()); }

 private:
  Owned<runtime::DestroyStream> handle_;
};

// What a person calls a device: "cpu", "cuda", "cuda:N", "auto".
struct DeviceName {
  enum class Kind : uint8_t { kCpu, kCuda, kAuto };
  Kind kind;
  uint32_t index;  // of kCuda
};
// Errors: kInvalidArgument.
Result<DeviceName> ParseDeviceName(const std::string& name);

// The CUDA device of that index. Errors: kUnsupported says what is missing (CUDA in this program, a
// driver, the device, its compute capability).
Result<DeviceInfo> FindDevice(uint32_t index);

// Whether `name` names something that is there. Errors: kInvalidArgument, those of FindDevice.
Status CheckEngineDevice(const std::string& name);

// One line for `tinyserve --version`.
std::string DescribeDevices();

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_DEVICE_H_
