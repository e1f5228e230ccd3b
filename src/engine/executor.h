// Runs one StepBatch: resolves inputs, plans attention, runs the model's forward, computes what is
// wanted.
#ifndef TINYSERVE_ENGINE_EXECUTOR_H_
#define TINYSERVE_ENGINE_EXECUTOR_H_

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
#include "engine/step_batch.h"
#include "kernels/kernels.h"
#include "kv/kv_cache.h"
#include "model/model.h"
#include "select/selector.h"
#include "step/step_plugin.h"
#include "tinyserve/engine.h"
#include "tinyserve/status.h"

namespace tinyserve {

struct ExecutorOptions {
  std::string kv = "f16";
  uint64_t kv_memory_bytes;
  uint32_t page_tokens = 16;
  uint32_t block_tokens = 32;
  uint32_t sequences_max;
  uint32_t sequence_tokens_max;
  uint32_t step_tokens_max;  // at least sequences_max
  // Selectors that rows may name: StepRow::selector i is selectors[i - 1]. What they need to know
  // of a page is kept from the start (src/select/selector.h has the form of a specification).
  std::vector<std::string> selectors;
  uint32_t logits_max = 0;  // logits rows of one step; 0: sequences_max
  // Tokens that have room in the cache at a time without being committed; 0: step_tokens_max.
  uint32_t uncommitted_tokens_max = 0;
  EvictionKind cache_policy = EvictionKind::kLru;
  Trace* trace = nullptr;  // of steps and their phases; must outlive the executor
};

// What a step must read and multiply (nothing that it happens to read twice).
struct StepCost {
  uint64_t weight_bytes = 0;
  uint64_t kv_bytes = 0;
  uint64_t multiply_adds[kDotKinds] = {};
};

// log(sum(exp(x))), stable.
float LogSumExp(std::span<const float> logits);
// The `n` likeliest tokens, best first, equal ones by their ids. `log_sum`: LogSumExp(logits).
std::vector<TokenLogprob> TopLogprobs(std::span<const float> logits, float log_sum, uint32_t n);

class Executor {
 public:
  // `model`, `kernels` and `threads` must outlive the executor. Errors: kInvalidArgument,
  // kOutOfMemory.
  static Result<std::unique_ptr<Executor>> Create(const Model* model, const Kernels* kernels,
                                                  Compute compute, ThreadPool* threads,
                                                  const ExecutorOptions& options);

  KvCache* cache() { return cache_.get(); }

  // Runs the batch. REQUIRES: at most step_tokens_max tokens, room reserved in the cache for all of
  // them, token ids inside the vocabulary. `hook` may be empty. Results stay valid until the next
  // Run. The caller commits to the cache.
  void Run(const StepBatch& batch, const LayerHook& hook = {});

  // Of the last Run; row: index into batch.rows.
  // [vocab]; row wanted kLogits or kLogProbs. kEveryLogits: [length][vocab].
  std::span<float> logits(size_t row);
  std::span<const float> logprobs(size_t row) const;  // kLogProbs: [length - 1]
  // kLogProbs: [length - 1], the row's top_logprobs likeliest tokens at each place.
  std::span<const std::vector<TokenLogprob>> top_logprobs(size_t row) const {
    return top_logprobs_[row];
  }
  std::span<const float> hidden(
      size_t row) const;  // kHidden: [length][dim] of the residual stream after the last layer
  // The state of a row's i-th token after the final norm, into `out` [dim].
  void FinalState(size_t row, uint32_t i, std::span<float> out) const;
  // Records what was sampled after a row, for ~row inputs of the next step.
  void SetSampled(size_t row, int32_t token) { sampled_[row] = token; }

  // Work of the last Run.
  StepCost cost() const;
  // Pages of all runs since the last call to ResetSelectionCounts.
  SelectionCounts selection_counts() const { return attention_->selection_counts(); }
  // Of the last step's row, by its index in the batch. REQUIRES: a row of generated tokens.
  SelectionCounts ReadsOf(size_t row) const {
    return attention_->ReadsOf(static_cast<uint32_t>(row));
  }
  // The same by [layer][KV head].
  std::vector<SelectionCounts> strip_counts() const { return attention_->strip_counts(); }
  // What a sequence's last step read, if it was one generated token at `position`: a bit a page.
  // Empty: everything. The raw pages beside coded ones are always read and may be missing.
  std::span<const uint64_t> PagesRead(SequenceSlot slot, uint32_t layer, uint32_t kv_head,
                                      uint32_t position) const {
    return attention_->PagesRead(slot, layer, kv_head, position);
  }
  void ResetSelectionCounts() { attention_->ResetSelectionCounts(); }
  // Whether the counts hold times.
  void SetSelectionTimed(bool timed) { attention_->SetTimed(timed); }
  // What is held against dense attention (Attention::SetShadowShare), and what came of it: by
  // selectors that were checked.
  void SetShadowShare(double share) { attention_->SetShadowShare(share); }
  std::vector<ShadowStats> shadow_stats() const;
  uint64_t shadow_checks() const;
  // The index of a selector, opened if it is new. Errors: kInvalidArgument (what is wrong with it,
  // what CheckSelector says), kResourceExhausted (too many different ones).
  Result<uint32_t> FindSelector(const std::string& text);
  // Whether the cache serves a selector. May be called from any thread. Errors: kInvalidArgument
  // (pages are stored in a form that it cannot read, or too little is kept of them).
  Status CheckSelector(const SelectorSpec& spec) const;
  // The index of a set of step plugins, opened if it is new; 0: none. Errors: as FindSelector's.
  Result<uint32_t> FindSteps(std::span<const std::string> texts);
  // The set of an index; null for 0.
  const StepPlugins* steps_of(uint32_t steps) const {
    return steps == 0 ? nullptr : step_plugins_[steps - 1].get();
  }
  // A number for what generated tokens are made by: a selector and step plugins, by their indices.
  uint32_t MakerOf(uint32_t selector, uint32_t steps) const;
  // Counts by plugin, over all sets that it is in.
  std::vector<StepPluginStats> step_stats() const;
  // A selector as it was resolved: its name and every option.
  std::string selector_resolved(uint32_t selector) const;
  uint64_t steps() const { return steps_; }
  uint32_t step_tokens_max() const { return options_.step_tokens_max; }

 private:
  Executor() = default;
  void ResolveInputs(const StepBatch& batch);
  void RunLayers(const StepBatch& batch, const LayerHook& hook);
  void PlanLogits(const StepBatch& batch);
  void ComputeLogits();
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
  std::vector<int32_t> tokens_;      // [rows]
  std::vector<uint32_t> positions_;  // [rows]
  std::vector<SequenceRun> runs_;
  std::vector<std::unique_ptr<StepPlugins>> step_plugins_;
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

#endif  // TINYSERVE_ENGINE_EXECUTOR_H_
