// A model's weights in the memory of a CUDA device.
#ifndef TINYSERVE_DEVICE_DEVICE_MODEL_H_
#define TINYSERVE_DEVICE_DEVICE_MODEL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/weights.h"
#include "model/config.h"
#include "tensor/gguf.h"
#include "tinyserve/status.h"

namespace tinyserve::cuda {

// y = W x + bias, of one or more stored tensors, one below the other. Tensors of different types
// stay apart and write next to each other.
struct DeviceLinear {
  struct Part {
    DeviceWeights weights;
    uint32_t out_offset;  // first output column
  };
  std::vector<Part> parts;
  Array<const float> bias{};  // [rows]; count 0: none
  uint32_t rows = 0, cols = 0;
  bool gated = false;                              // one part whose rows alternate gate and up
  bool takes_codes = false, takes_floats = false;  // as activations of generated rows
};

struct DeviceNorm {
  Array<const float> weight, bias;  // [dim]; bias: of layer norms, count 0 elsewhere

  RowSource source() const { return bias.count == 0 ? RowSource::kRmsNorm : RowSource::kLayerNorm; }
};

struct DeviceLayer {
  DeviceNorm attention_norm, ffn_norm;
  DeviceLinear qkv, attention_out;
  DeviceLinear up, down;  // up: gate and up where the model has gates
};

class DeviceModel {
 public:
  // Packs the file's weights on the host's threads and copies them. `progress` may be empty and
  // gets 0..1. Errors: kUnsupported (head size, query heads of a KV head, widths), kNotFound and
  // kCorrupt (tensors, keys), those of the device.
  static Result<std::unique_ptr<DeviceModel>> Load(const GgufFile& file, ThreadPool* threads,
                                                   const std::function<void(double)>& progress);

  const ModelConfig& config() const { return config_; }
  const std::vector<DeviceLayer>& layers() const { return layers_; }
  const DeviceWeights& embedding() const { return embedding_.parts[0].weights; }
  // gpt2's learned positions, added to the embedding; null where positions are rotated.
  const DeviceWeights* positions() const {
    return positions_.parts.empty() ? nullptr : &positions_.parts[0].weights;
  }
  const DeviceLinear& head() const { return head_.parts.empty() ? embedding_ : head_; }
  // silu(gate) * up; else gelu(up), by its tanh form.
  bool gated() const { return config_.architecture != "gpt2"; }
  const DeviceNorm& final_norm() const { return final_norm_; }
  // The same of one row on the host, by the reference kernels. x, out: [dim].
  void FinalNorm(const float* x, float* out) const;
  // Radians a token of each rotated pair, and what cosines and sines are multiplied with.
  const std::vector<float>& frequencies() const { return frequencies_; }
  float rope_magnitude() const { return rope_magnitude_; }

  uint64_t bytes() const { return arena_.size(); }
  // That a step reads, its logits included.
  uint64_t step_bytes() const { return step_bytes_; }

 private:
  DeviceModel() = default;

  ModelConfig config_;
  std::vector<DeviceLayer> layers_;
  DeviceLinear embedding_, positions_, head_;  // head_: no parts where it is the embedding
  DeviceNorm final_norm_{};
  struct {
    std::vector<float> weight, bias;
  } final_norm_of_host_;
  std::vector<float> frequencies_;
  float rope_magnitude_ = 1;
  DeviceMemory arena_;
  uint64_t step_bytes_ = 0;
};

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_DEVICE_DEVICE_MODEL_H_
