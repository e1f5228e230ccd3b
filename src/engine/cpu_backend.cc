#include <algorithm>

#include "base/machine.h"
#include "engine/backend.h"
#include "engine/cpu_executor.h"

namespace tinyserve {
namespace {

class CpuBackend : public Backend {
 public:
  CpuBackend(std::unique_ptr<Model> model, const ModelLoadOptions& options)
      : model_(std::move(model)),
        kernels_(options.kernels),
        compute_(options.compute),
        threads_(options.threads) {}

  const ModelConfig& config() const override { return model_->config(); }
  std::string target() const override { return kernels_->name; }
  uint64_t packed_bytes() const override { return model_->packed_bytes(); }
  uint64_t step_weight_bytes() const override { return model_->CostOf(1, 1).weight_bytes; }
  PageSpace space() override { return kernels_; }
  // At most half of what is left beside the weights.
  uint64_t KvMemory(uint64_t wanted) const override {
    const uint64_t limit = MemoryLimitBytes(), weights = packed_bytes();
    return std::min(wanted, limit > weights ? (limit - weights) / 2 : 0);
  }
  Result<std::unique_ptr<Executor>> CreateExecutor(const ExecutorOptions& options) override {
    TS_ASSIGN_OR_RETURN(std::unique_ptr<CpuExecutor> executor,
                        CpuExecutor::Create(model_.get(), kernels_, compute_, threads_, options));
    return std::unique_ptr<Executor>(std::move(executor));
  }

 private:
  std::unique_ptr<Model> model_;
  const Kernels* kernels_;
  Compute compute_;
  ThreadPool* threads_;
};

}  // namespace

Result<std::unique_ptr<Backend>> OpenCpuBackend(const GgufFile& file,
                                                const ModelLoadOptions& options) {
  TS_ASSIGN_OR_RETURN(std::unique_ptr<Model> model, LoadModel(file, options));
  return std::unique_ptr<Backend>(std::make_unique<CpuBackend>(std::move(model), options));
}

}  // namespace tinyserve
