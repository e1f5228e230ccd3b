// A whole llama model on the emulated device: the launches of a decoding step in their order, from
// token ids to tokens. Every row is a generated one, those of the prompt too.
#ifndef TINYSERVE_TESTS_SIMT_DEVICE_MODEL_H_
#define TINYSERVE_TESTS_SIMT_DEVICE_MODEL_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/cuda/paged.h"
#include "kernels/cuda/products.h"
#include "kernels/cuda/rows.h"
#include "kernels/kernels.h"
#include "model/config.h"
#include "tensor/gguf.h"
#include "tinyserve/status.h"

namespace tinyserve::cuda {

// Rows of tensors, packed.
struct DeviceMatrix {
  WeightPlan plan;
  std::vector<uint32_t> codes;
  std::vector<F16> scales;

  DeviceWeights weights() const {
    return {plan.form,
            plan.rows,
            plan.cols,
            {codes.data(), codes.size()},
            {scales.data(), scales.size()}};
  }
};

// Row r of a step: token at `position` of `sequence`; position kNoPosition: the row is not in use.
struct StepRow {
  int32_t token;
  uint32_t position, sequence;
};

class DeviceModel {
 public:
  // A model file whose layers are llama's, with head sizes that attention has. `tokens_max` of each
  // of `sequences`.
  static Result<std::unique_ptr<DeviceModel>> Load(const std::string& path, KvType kv,
                                                   uint32_t sequences, uint32_t tokens_max);

  // Runs the rows through all layers, and the logits of all of them.
  Status Run(const std::vector<StepRow>& rows);
  const float* logits(uint32_t row) const { return logits_.data() + uint64_t{row} * config_.vocab; }
  // Of the last step, by the largest logit, on the device.
  Result<std::vector<int32_t>> Greedy();

  const ModelConfig& config() const { return config_; }

 private:
  struct Layer {
    std::vector<float> attention_norm, ffn_norm;
    DeviceMatrix q, k, v, out, gate_up, down;
    std::vector<uint8_t> pages;
  };
  // A row's activations in the forms that products take.
  struct Forms {
    std::vector<float> floats, code_scales;
    std::vector<uint32_t> codes, code_sums;
  };

  DeviceModel() = default;
  Status LoadWeights(const GgufFile& file);
  Status LoadLayer(const GgufFile& file, uint32_t l);
  void PlacePages(uint32_t sequences, uint32_t tokens_max);
  void BeginStep(const std::vector<StepRow>& rows);
  Status RunLayer(Layer* layer);
  Status Attend(Layer* layer);
  // forms_ = source(x) [rows][cols]; `norm`: weights of a norm.
  Status MakeForms(RowSource source, const std::vector<float>& x, uint32_t cols,
                   const std::vector<float>& norm);
  // Columns of `out` from `first` on.
  Status Multiply(const DeviceMatrix& w, std::vector<float>* out, uint32_t stride, uint32_t first,
                  Epilogue epilogue);

  ModelConfig config_;
  std::vector<float> frequencies_;
  float magnitude_ = 1;
  DeviceMatrix embedding_, head_;
  std::vector<float> final_norm_;
  std::vector<Layer> layers_;
  DecodeShape shape_{};
  uint32_t table_pages_ = 0, page_bytes_ = 0, v_offset_ = 0;
  uint64_t head_stride_ = 0, extent_stride_ = 0;
  std::vector<uint32_t> sequence_tables_;  // [sequences][table_pages]

  // Of the step.
  uint32_t rows_ = 0;
  std::vector<int32_t> ids_;
  std::vector<uint32_t> positions_, tokens_, table_of_, tables_, arrived_;
  std::vector<float> cos_sin_, x_, qkv_, q_, o_, a_, partials_, logits_;
  Forms forms_;
};

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_TESTS_SIMT_DEVICE_MODEL_H_
