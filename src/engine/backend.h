// A model where it computes: packed for the CPU, or in the memory of a device. The engine opens one
// and asks it for an executor.
#ifndef TINYSERVE_ENGINE_BACKEND_H_
#define TINYSERVE_ENGINE_BACKEND_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "engine/executor.h"
#include "kv/page_space.h"
#include "model/model.h"
#include "tinyserve/status.h"

namespace tinyserve {

class Backend {
 public:
  virtual ~Backend() = default;

  virtual const ModelConfig& config() const = 0;
  virtual std::string target() const = 0;  // "avx2", or a device by its name
  virtual uint64_t packed_bytes() const = 0;
  // Of weights, that a step with logits reads.
  virtual uint64_t step_weight_bytes() const = 0;
  // Where its pages lie.
  virtual PageSpace space() = 0;
  // Bytes for keys and values where nobody says how many, of `wanted`, which many contexts take.
  virtual uint64_t KvMemory(uint64_t wanted) const = 0;
  // Must not outlive the backend. Errors: those of the executor.
  virtual Result<std::unique_ptr<Executor>> CreateExecutor(const ExecutorOptions& options) = 0;
};

// Errors: those of LoadModel. `options.threads` and `options.kernels` must outlive the backend.
Result<std::unique_ptr<Backend>> OpenCpuBackend(const GgufFile& file,
                                                const ModelLoadOptions& options);

// What a device is asked to compute; all of it is checked before weights are read.
struct DeviceBackendOptions {
  uint32_t index;  // of the CUDA device
  std::string kv;
  std::vector<std::string> selectors;
  std::vector<std::string> step_plugins = {};
  Compute compute = Compute::kFast;
  bool graphs = true;  // whether steps that decode alone are recorded and replayed
  ThreadPool* threads;
  std::function<void(double fraction)> progress;
};

// Errors: kUnsupported (no such device, or something that it cannot compute: the architecture, KV
// type, selector, step plugins), those of LoadModel, those of the device. A program that was built
// without CUDA refuses. `options.threads` must outlive the backend.
Result<std::unique_ptr<Backend>> OpenDeviceBackend(const GgufFile& file,
                                                   const DeviceBackendOptions& options);

// The backend that a device's name asks for: cpu, cuda[:N], or auto (and empty): the first CUDA
// device where there is one that can compute what is asked, else the CPU. device.index is not read.
struct BackendOptions {
  std::string name;
  DeviceBackendOptions device;
  const Kernels* kernels;  // of the CPU
};
Result<std::unique_ptr<Backend>> OpenBackend(const GgufFile& file, const BackendOptions& options);

}  // namespace tinyserve

#endif  // TINYSERVE_ENGINE_BACKEND_H_
