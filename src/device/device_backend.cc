#include <fmt/format.h>

#include <algorithm>

#include "device/device_executor.h"
#include "engine/backend.h"

namespace tinyserve {
namespace {

using cuda::DeviceExecutor;
using cuda::DeviceModel;
using cuda::DevicePageMemory;

// Left of the device's memory beside pages: what steps compute in, and what the driver takes.
constexpr uint64_t kMarginBytes = 256 << 20;

class DeviceBackend : public Backend {
 public:
  DeviceBackend(cuda::DeviceInfo device, ThreadPool* threads, bool graphs)
      : device_(std::move(device)), threads_(threads), graphs_(graphs) {}

  Status Load(const GgufFile& file, const std::function<void(double)>& progress) {
    TS_RETURN_IF_ERROR(cuda::runtime::UseDevice(device_.index));
    TS_ASSIGN_OR_RETURN(pages_, DevicePageMemory::Create());
    TS_ASSIGN_OR_RETURN(model_, DeviceModel::Load(file, threads_, progress));
    return Status();
  }

  const ModelConfig& config() const override { return model_->config(); }
  std::string target() const override {
    return fmt::format("cuda:{} {}", device_.index, device_.name);
  }
  uint64_t packed_bytes() const override { return model_->bytes(); }
  uint64_t step_weight_bytes() const override { return model_->step_bytes(); }
  PageSpace space() override { return pages_.get(); }
  // What is free, less a margin: the memory is this process's alone to use.
  uint64_t KvMemory(uint64_t) const override {
    const Result<uint64_t> free = cuda::runtime::FreeBytes();
    const uint64_t bytes = free.ok() ? *free : 0, margin = bytes / 8 + kMarginBytes;
    return bytes - std::min(bytes, margin);
  }
  Result<std::unique_ptr<Executor>> CreateExecutor(const ExecutorOptions& options) override {
    TS_RETURN_IF_ERROR(cuda::runtime::UseDevice(device_.index));
    TS_ASSIGN_OR_RETURN(std::unique_ptr<DeviceExecutor> executor,
                        DeviceExecutor::Create({.model = model_.get(),
                                                .pages = pages_.get(),
                                                .threads = threads_,
                                                .device = device_,
                                                .graphs = graphs_},
                                               options));
    return std::unique_ptr<Executor>(std::move(executor));
  }

 private:
  cuda::DeviceInfo device_;
  ThreadPool* threads_;
  bool graphs_;
  std::unique_ptr<DevicePageMemory> pages_;
  std::unique_ptr<DeviceModel> model_;
};

}  // namespace

Result<std::unique_ptr<Backend>> OpenDeviceBackend(const GgufFile& file,
                                                   const DeviceBackendOptions& options) {
  TS_ASSIGN_OR_RETURN(const Codec* codec, FindCodec(options.kv));
  TS_ASSIGN_OR_RETURN(const std::vector<SelectorSpec> specs, ParseSelectors(options.selectors));
  TS_RETURN_IF_ERROR(cuda::CheckDeviceSelectors(specs, *codec));
  TS_RETURN_IF_ERROR(cuda::CheckDeviceSteps(options.step_plugins));
  if (options.compute != Compute::kFast) {
    return Status(
        Code::kUnsupported,
        "compute 'f32': products on a device are those of compute fast; f32 is for the CPU");
  }
  TS_ASSIGN_OR_RETURN(const cuda::DeviceInfo device, cuda::FindDevice(options.index));
  auto backend = std::make_unique<DeviceBackend>(device, options.threads, options.graphs);
  TS_RETURN_IF_ERROR(backend->Load(file, options.progress));
  return std::unique_ptr<Backend>(std::move(backend));
}

}  // namespace tinyserve
