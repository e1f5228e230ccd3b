// A model: configuration, weights, and the forward of one step.
#ifndef TINYSERVE_MODEL_MODEL_H_
#define TINYSERVE_MODEL_MODEL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "base/thread_pool.h"
#include "kernels/kernels.h"
#include "model/config.h"
#include "model/step.h"
#include "model/sublayer_range.h"
#include "model/weights.h"
#include "tensor/gguf.h"
#include "tinyserve/status.h"

namespace tinyserve {

struct ModelLoadOptions {
  const Kernels* kernels;
  Compute compute;
  ThreadPool* threads;
  std::function<void(double fraction)> progress;
};

// What one step of `rows` tokens must read and multiply in products, attention apart.
struct ProductCost {
  // Every layer's weights once if there are rows, the head if any logits are wanted.
  uint64_t weight_bytes = 0;
  uint64_t multiply_adds[kDotKinds] = {};  // by the kind of dot that the target uses for them
};

class Model {
 public:
  virtual ~Model() = default;

  // The residual stream of the step's tokens after all layers, left in step->x().
  void Forward(Step* step, const LayerHook& hook) const;
  // The same by sublayers: what the step needs before it goes through those from `first` on, and
  // each of them. Where that is not 0, step->x() has the states after the sublayers before.
  virtual void Prepare(Step* step, uint32_t first) const = 0;
  void ForwardSublayer(uint32_t sublayer, Step* step) const;
  // Logits of the wanted rows of the step, [wanted.size()][vocab].
  void Logits(Step* step, std::span<const uint32_t> wanted, float* out) const {
    step->Logits(wanted, final_norm_, config_.norm_eps, head_tied_ ? embedding_ : head_, out);
  }
  // What the head sees of one row of the step, [dim].
  void FinalState(const Step& step, uint32_t row, float* out) const {
    step.FinalState(row, final_norm_, config_.norm_eps, out);
  }

  const ModelConfig& config() const { return config_; }
  // Layer -> layer group of the cache, and the groups' shapes are the caller's to derive from
  // config().
  StepSizes Sizes(uint32_t rows_max, uint32_t logits_max) const;
  uint64_t packed_bytes() const { return arena_.size(); }
  ProductCost CostOf(uint64_t rows, uint64_t logits_rows) const;
  // Of those sublayers alone.
  ProductCost CostOfPart(uint64_t rows, SublayerRange part) const;
  // The same where only rows_of_layer[l] of the rows run in layer l, and the others' keys and
  // values alone are made there.
  ProductCost CostOfExits(std::span<const uint32_t> rows_of_layer, uint64_t rows,
                          uint64_t logits_rows) const;

 protected:
  friend Result<std::unique_ptr<Model>> LoadModel(const GgufFile& file,
                                                  const ModelLoadOptions& options);
  // Declares every weight of the architecture.
  virtual void Declare(WeightLoader* loader) = 0;
  // A layer's two halves, one after the other.
  virtual void ForwardAttention(uint32_t layer, Step* step) const = 0;
  virtual void ForwardFeedForward(uint32_t layer, Step* step) const = 0;
  // The same number a layer, layer after layer: kAttentionLinears of attention, that of q, k and v
  // first, then those of the feed-forward part.
  static constexpr size_t kAttentionLinears = 2;
  virtual std::vector<const Linear*> LayerLinears() const = 0;
  void DeclareEnds(WeightLoader* loader, bool norm_bias);

  ModelConfig config_;
  const Kernels* kernels_ = nullptr;
  Compute compute_ = Compute::kFast;
  Linear embedding_;
  Linear head_;  // empty where tied
  bool head_tied_ = false;
  Norm final_norm_;
  std::vector<float> frequencies_;  // of RoPE, radians a token
  float rope_magnitude_ = 1;
  Buffer arena_;  // the packed weights
};

// What the file's keys say, with the size of the vocabulary, which its embedding has. Errors: those
// of ReadModelConfig; kNotFound, kCorrupt (the embedding).
Result<ModelConfig> ReadModelShape(const GgufFile& file);
// Llama 3's rope_freqs: what each pair's frequency is divided by; empty where the file has none.
// Errors: kCorrupt.
Result<std::vector<float>> ReadRopeDivisors(const GgufFile& file, const ModelConfig& config);

// Errors: kUnsupported (architecture or tensor type), kNotFound and kCorrupt (tensors, keys),
// kOutOfMemory.
Result<std::unique_ptr<Model>> LoadModel(const GgufFile& file, const ModelLoadOptions& options);

}  // namespace tinyserve

#endif  // TINYSERVE_MODEL_MODEL_H_
