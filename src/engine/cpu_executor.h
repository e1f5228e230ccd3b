// Runs one StepBatch on the CPU: resolves inputs, plans attention, runs the model's forward,
// computes what is wanted.
#ifndef TINYSERVE_ENGINE_CPU_EXECUTOR_H_
#define TINYSERVE_ENGINE_CPU_EXECUTOR_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "attend/attention.h"
#include "base/buffer.h"
#include "base/thread_pool.h"
#include "base/trace.h"
#include "engine/early_exits.h"
#include "engine/executor.h"
#include "engine/prompt_part.h"
#include "engine/step_batch.h"
#include "engine/step_sets.h"
#include "kernels/kernels.h"
#include "kv/kv_cache.h"
#include "model/model.h"
#include "select/selector.h"
#include "step/step_plugin.h"
#include "tinyserve/engine.h"
#include "tinyserve/status.h"

namespace tinyserve {

class CpuExecutor : public Executor {
 public:
  // `model`, `kernels` and `threads` must outlive the executor. Errors: kInvalidArgument,
  // kOutOfMemory.
  static Result<std::unique_ptr<CpuExecutor>> Create(const Model* model, const Kernels* kernels,
                                                     Compute compute, ThreadPool* threads,
                                                     const ExecutorOptions& options);

  KvCache* cache() override { return cache_.get(); }
  uint32_t part_tokens_max() const override { return part_->tokens_max(); }
  uint32_t part_sublayer() const override { return part_->next_sublayer(); }
  double part_seconds() const override { return ran_part_ ? part_->seconds() : 0; }

  Status RunStep(const StepBatch& batch) override {
    Run(batch);
    return Status();
  }
  // The same, with a hook after each layer of the rows that go through all; it may be empty.
  void Run(const StepBatch& batch, const LayerHook& hook = {});

  bool finite(size_t row) const override;
  std::span<float> logits(size_t row) override;
  std::span<const float> logprobs(size_t row) const override { return logprobs_[row]; }
  std::span<const std::vector<TokenLogprob>> top_logprobs(size_t row) const override {
    return top_logprobs_[row];
  }
  // kHidden: [length][dim] of the residual stream after the last layer.
  std::span<const float> hidden(size_t row) const;
  void FinalState(size_t row, uint32_t i, std::span<float> out) const override;
  void SetSampled(size_t row, int32_t token) override { sampled_[row] = token; }

  StepCost cost() const override;
  SelectionCounts selection_counts() const override { return attention_->selection_counts(); }
  SelectionCounts ReadsOf(size_t row) const override { return reads_[row]; }
  std::vector<SelectionCounts> strip_counts() const override { return attention_->strip_counts(); }
  std::span<const uint64_t> PagesRead(SequenceSlot slot, uint32_t layer, uint32_t kv_head,
                                      uint32_t position) const override {
    return attention_->PagesRead(slot, layer, kv_head, position);
  }
  void ResetSelectionCounts() override { attention_->ResetSelectionCounts(); }
  void SetSelectionTimed(bool timed) override { attention_->SetTimed(timed); }
  void SetShadowShare(double share) override { attention_->SetShadowShare(share); }
  std::vector<ShadowStats> shadow_stats() const override;
  uint64_t shadow_checks() const override;

  Result<uint32_t> FindSelector(const std::string& text) override;
  Status CheckSelector(const SelectorSpec& spec) const override;
  std::string selector_resolved(uint32_t selector) const override;
  Result<uint32_t> FindSteps(std::span<const std::string> texts) override;
  const StepPlugins* steps_of(uint32_t steps) const override { return step_sets_.at(steps); }
  std::vector<StepPluginStats> step_stats() const override { return step_sets_.stats(); }
  uint32_t Prune(SequenceSlot slot, uint32_t steps) override;
  uint32_t MakerOf(uint32_t selector, uint32_t steps) const override;
  uint64_t steps() const override { return steps_; }
  uint32_t step_tokens_max() const { return options_.step_tokens_max; }

 private:
  CpuExecutor() = default;
  void ResolveInputs(const StepBatch& batch);
  size_t part_rows() const { return ran_part_ ? length_.back() : 0; }  // of activations
  // Rows that go through all layers, and what was read for them.
  void RunRows(const StepBatch& batch, const LayerHook& hook);
  void RunLayers(const StepBatch& batch, const LayerHook& hook);
  // The layers that are to run of the part; if it is whole, its states join the others.
  void RunPart(const StepBatch& batch);
  void PlanLogits(const StepBatch& batch);
  // Of wanted_ from `first` to before `end`.
  void ComputeLogits(size_t first, size_t end);
  void ComputeLogProbs(const StepBatch& batch);

  ExecutorOptions options_;
  const Model* model_ = nullptr;
  const Kernels* kernels_ = nullptr;
  Compute compute_ = Compute::kFast;
  ThreadPool* threads_ = nullptr;
  std::unique_ptr<KvCache> cache_;
  tinyserve_shape shape_{};
  std::vector<SummaryPlace> summaries_;
  std::vector<std::unique_ptr<Selector>> selectors_;
  std::unique_ptr<Attention> attention_;
  std::unique_ptr<Step> step_;
  std::unique_ptr<PromptPart> part_;
  bool ran_part_ = false;  // in the last step
  // Of the last step's rows that went through all layers: their attention's work, and what
  // generated ones read, by batch row.
  uint64_t kv_bytes_ = 0, multiply_adds_[2] = {};  // by TokenClass
  std::vector<SelectionCounts> reads_;
  std::vector<int32_t> tokens_;      // [rows]
  std::vector<uint32_t> positions_;  // [rows]
  std::vector<SequenceRun> runs_;
  StepSets step_sets_;
  std::unique_ptr<EarlyExits> exits_;
  std::vector<const StepPlugins*> plugins_of_row_;  // [rows]
  std::vector<int32_t> logits_of_row_;  // [rows] index into logits_ of rows that may leave, -1
  std::vector<uint8_t> have_logits_;    // by index into logits_: the row has left with them
  std::vector<uint32_t> wanted_;        // rows whose logits are computed
  std::vector<uint32_t> first_row_;     // batch row -> first activation row
  std::vector<uint32_t> length_;        // batch row -> tokens
  std::vector<int32_t> logits_index_;   // batch row -> index into logits_, -1
  std::vector<uint32_t> logits_count_;  // batch row -> rows of logits from there
  std::vector<int32_t> sampled_;        // batch row -> token sampled after it, -1
  std::vector<std::vector<float>> logprobs_;
  std::vector<std::vector<std::vector<TokenLogprob>>> top_logprobs_;
  Buffer logits_;   // [logits_max][vocab]
  Buffer scoring_;  // [kScoreRows][vocab], for kLogProbs
  uint64_t steps_ = 0;
  uint64_t logits_rows_ = 0;
};

}  // namespace tinyserve

#endif  // TINYSERVE_ENGINE_CPU_EXECUTOR_H_
