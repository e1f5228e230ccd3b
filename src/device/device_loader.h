// From the tensors of a file to weights in the memory of a device.
#ifndef TINYSERVE_DEVICE_DEVICE_LOADER_H_
#define TINYSERVE_DEVICE_DEVICE_LOADER_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "device/device_model.h"
#include "kernels/cuda/device.h"
#include "tensor/gguf.h"
#include "tinyserve/status.h"

namespace tinyserve::cuda {

// Collects what a model needs, then loads all of it in one pass. A missing or misshapen tensor is
// an error that names it, with what was expected; the first one is told by Load.
class DeviceLoader {
 public:
  explicit DeviceLoader(const GgufFile& file) : file_(file) {}

  // `names`: tensors [rows_of[i]][cols], one below the other. The pointees must stay where they are
  // until Load.
  void AddLinear(const std::vector<std::string>& names, const std::vector<uint32_t>& rows_of,
                 uint32_t cols, DeviceLinear* out);
  // Gate and up [rows][cols], row by row in turn; one below the other where their types differ.
  void AddGated(const std::string& gate, const std::string& up, uint32_t rows, uint32_t cols,
                DeviceLinear* out);
  // Biases of a linear's tensors; optional: they may be absent, all of them where the first is.
  void AddBias(const std::vector<std::string>& names, const std::vector<uint32_t>& rows_of,
               bool optional, DeviceLinear* out);
  // of_host: may be null.
  void AddVector(const std::string& name, uint32_t size, Array<const float>* out,
                 std::vector<float>* of_host = nullptr);
  bool Has(const std::string& name) const { return file_.FindTensor(name) != nullptr; }

  Status Load(ThreadPool* threads, const std::function<void(double)>& progress,
              DeviceMemory* arena);

 private:
  struct Matrix {
    DeviceLinear* linear;
    size_t part;
    std::vector<const StoredTensor*> sources;  // one below the other, or in turn where gated
    WeightPlan plan;
    uint64_t codes_at, scales_at;  // of the arena
  };
  struct Vector {
    Array<const float>* out;
    std::vector<float> values;
    uint64_t at;
  };
  class Staging;

  const StoredTensor* Require(const std::string& name, uint64_t rows, uint64_t cols);
  void AddPart(DeviceLinear* linear, const std::vector<const StoredTensor*>& sources,
               uint32_t rows);
  void AddValues(std::vector<float> values, Array<const float>* out);
  uint64_t Place(uint64_t bytes);
  void PackRow(const Matrix& matrix, uint64_t row, uint8_t* codes, uint8_t* scales) const;
  Status LoadMatrix(const Matrix& matrix, ThreadPool* threads, const Staging& staging,
                    const std::function<void(uint64_t)>& done, const DeviceMemory& arena) const;
  void Fail(const Status& status) {
    if (status_.ok()) status_ = status;
  }

  const GgufFile& file_;
  std::vector<Matrix> matrices_;
  std::vector<Vector> vectors_;
  uint64_t arena_bytes_ = 0;
  Status status_;
};

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_DEVICE_DEVICE_LOADER_H_
