// A prompt row that goes through the layers by and by, some in each step: what lasts from step to
// step.
#ifndef TINYSERVE_ENGINE_PROMPT_PART_H_
#define TINYSERVE_ENGINE_PROMPT_PART_H_

#include <cstdint>
#include <memory>
#include <span>

#include "attend/attention.h"
#include "base/thread_pool.h"
#include "base/trace.h"
#include "engine/executor.h"
#include "kernels/kernels.h"
#include "model/model.h"
#include "model/step.h"
#include "model/sublayer_range.h"
#include "tinyserve/status.h"

namespace tinyserve {

// Its keys and values lie in the cache, uncommitted, in the layers that have run; its states lie
// here, in activations of its own. One at a time.
class PromptPart {
 public:
  // All must outlive this. Errors: kOutOfMemory.
  static Result<std::unique_ptr<PromptPart>> Create(const Model* model, const Kernels* kernels,
                                                    ThreadPool* threads, Attention* attention,
                                                    Trace* trace, uint32_t tokens_max);

  uint32_t tokens_max() const { return step_->sizes().rows_max; }
  // Runs some of the row's sublayers by themselves, with attention planned for it alone. REQUIRES:
  // the first ones, or those after what ran of the same row last. until_ns:
  // StepBatch::part_until_ns, by which none of them may run.
  void Run(const SequenceRun& run, std::span<const int32_t> tokens,
           std::span<const uint32_t> positions, SublayerRange part, uint64_t until_ns);
  uint32_t next_sublayer() const { return next_; }
  // Whether all have run.
  bool whole() const { return next_ == kSublayers * model_->config().layers; }
  // [rows][dim] of the residual stream after what has run.
  std::span<const float> states() const;
  // Time and work of the last Run.
  double seconds() const { return seconds_; }
  StepCost cost(DotKind attention_dot) const;

 private:
  PromptPart() = default;

  const Model* model_ = nullptr;
  std::unique_ptr<Step> step_;
  Attention* attention_ = nullptr;
  Trace* trace_ = nullptr;
  SequenceRun run_{};
  uint32_t next_ = 0;      // sublayer
  bool left_out_ = false;  // in the last Run
  double seconds_ = 0;     // of the last Run
  SublayerRange ran_;      // in the last Run
  uint64_t took_ns_[kSublayers] =
      {};  // the last attention, the last feed-forward part; 0: none yet
  uint64_t kv_bytes_ = 0, multiply_adds_ = 0;  // of its attention, all layers
};

}  // namespace tinyserve

#endif  // TINYSERVE_ENGINE_PROMPT_PART_H_
