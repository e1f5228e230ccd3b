// Weights in memory: packed for the target once at load, never copied again.
#ifndef TINYSERVE_MODEL_WEIGHTS_H_
#define TINYSERVE_MODEL_WEIGHTS_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "base/thread_pool.h"
#include "kernels/kernels.h"
#include "tensor/gguf.h"
#include "tinyserve/status.h"

namespace tinyserve {

// A linear map whose rows come from one or more stored tensors: y = W x (+ bias). Parts with
// different types (attention's v in a wider type, say) stay apart and write next to each other.
struct Linear {
  struct Part {
    PackedMatrix matrix;
    uint32_t out_offset;  // first output column
  };
  std::vector<Part> parts;
  std::vector<float> bias;  // [rows] or empty
  uint32_t rows = 0;        // outputs
  uint32_t cols = 0;
  bool gated = false;     // one part whose panels alternate gate and up: rows = 2 * outputs
  uint8_t act_kinds = 0;  // bit i: some part takes ActKind i

  uint64_t bytes() const;  // of the packed panels
};

// Collects what a model needs, then loads all of it in one pass over the file. A missing or
// misshapen tensor is an error that names it, with what was expected.
class WeightLoader {
 public:
  WeightLoader(const GgufFile& file, const Kernels* kernels, Compute compute)
      : file_(file), kernels_(kernels), compute_(compute) {}

  // `names`: tensors stacked by rows, each [rows_of[i]][cols]. The pointees must stay where they
  // are until Load.
  void AddLinear(const std::vector<std::string>& names, const std::vector<uint32_t>& rows_of,
                 uint32_t cols, Linear* out);
  // Gate and up [rows][cols] for a fused SwiGLU. Where the two cannot be fused (types differ), two
  // stacked parts.
  void AddGated(const std::string& gate, const std::string& up, uint32_t rows, uint32_t cols,
                Linear* out);
  // Biases stacked likewise; absent tensors are an error unless `optional` (then the bias stays
  // empty).
  void AddBias(const std::vector<std::string>& names, const std::vector<uint32_t>& rows_of,
               bool optional, Linear* out);
  void AddVector(const std::string& name, uint32_t size, std::vector<float>* out);
  bool Has(const std::string& name) const { return file_.FindTensor(name) != nullptr; }

  // Packs everything into `arena`, on all threads, and releases the file's pages on the way.
  // `progress` gets 0..1.
  Status Load(ThreadPool* threads, const std::function<void(double)>& progress, Buffer* arena);

 private:
  struct Job {
    Linear* linear;
    size_t part;
    std::vector<const StoredTensor*> sources;  // stacked rows, or gate and up
    uint64_t arena_offset;
  };

  const StoredTensor* Require(const std::string& name, uint64_t rows, uint64_t cols);
  void AddPart(Linear* linear, const std::vector<const StoredTensor*>& sources, uint32_t rows,
               uint32_t out_offset);
  void PackPanel(const Job& job, uint32_t panel, uint8_t* panels) const;
  void ReadVector(const StoredTensor& tensor, float* out) const;
  void Fail(const Status& status) {
    if (status_.ok()) status_ = status;
  }

  const GgufFile& file_;
  const Kernels* kernels_;
  Compute compute_;
  std::vector<Job> jobs_;
  uint64_t arena_bytes_ = 0;
  Status status_;
};

}  // namespace tinyserve

#endif  // TINYSERVE_MODEL_WEIGHTS_H_
