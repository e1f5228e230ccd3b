// What the engine asks of whatever computes its steps: a CPU (engine/cpu_executor.h) or a device.
// An executor owns the cache, whose pages lie where it computes; the engine keeps the books of it.
#ifndef TINYSERVE_ENGINE_EXECUTOR_H_
#define TINYSERVE_ENGINE_EXECUTOR_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "attend/selection_counts.h"
#include "base/trace.h"
#include "engine/step_batch.h"
#include "kernels/kernels.h"
#include "kv/kv_cache.h"
#include "model/config.h"
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
  uint32_t uncommitted_max() const {
    return uncommitted_tokens_max != 0 ? uncommitted_tokens_max : step_tokens_max;
  }
  EvictionKind cache_policy = EvictionKind::kLru;
  Trace* trace = nullptr;  // of steps and their phases; must outlive the executor
};

// Errors: kInvalidArgument (no sequences, or fewer tokens a step than those).
Status CheckSizes(const ExecutorOptions& options);

// The cache that the options ask for, with nothing kept beside keys and values yet. `products`:
// multiply-adds of the matrix products of one token, which say what it costs to compute again.
KvCacheOptions CacheOptionsOf(const ExecutorOptions& options, const Codec* codec,
                              const ModelConfig& config, uint64_t products);

// What a step must read and multiply (nothing that it happens to read twice).
struct StepCost {
  uint64_t weight_bytes = 0;
  uint64_t kv_bytes = 0;
  uint64_t multiply_adds[kDotKinds] = {};
};

// Where the time of steps on a device went, each from the end of the step before it on.
struct DeviceTimes {
  uint64_t steps = 0;
  double host_seconds = 0;    // that the host did not wait for the device
  double device_seconds = 0;  // that the device was busy with the steps
  double idle_seconds = 0;    // that it waited for their begin
};

// What an executor draws by itself: nothing, or what DrawRules say with so many edits of a row.
struct DrawLimits {
  bool draws = false;
  uint32_t edits_max = 0;
};

// A token that an executor has drawn, and what its row's rule asks for of the model's own
// log-probabilities.
struct DrawnToken {
  int32_t token;  // -1: its logits, or what was asked of them, were no numbers
  float logprob = 0;
  std::vector<TokenLogprob> top = {};
};

class Executor {
 public:
  virtual ~Executor() = default;

  virtual KvCache* cache() = 0;

  virtual DrawLimits draw_limits() const { return {}; }

  // How many tokens a prompt row may have that goes through the layers by and by, some sublayers in
  // each step (StepRow::part); 0: there are none. One such row is in the making at a time, the last
  // of its batch, uncommitted until its last one has run; where it begins with the first, what was
  // in the making is forgotten. Other steps may come between. Its bits are those of a whole row.
  virtual uint32_t part_tokens_max() const { return 0; }
  // The sublayer that is next for such a row of the last step.
  virtual uint32_t part_sublayer() const { return 0; }
  // How long those of such a row took in the last step; 0: it had none.
  virtual double part_seconds() const { return 0; }

  // Runs the batch. REQUIRES: at most step_tokens_max tokens, room reserved in the cache for all of
  // them, token ids inside the vocabulary. Results stay valid until the next step. The caller
  // commits to the cache. Errors: those of a device (a CPU has none); then there are no results,
  // and what the batch's sequences hold beyond what is committed is undefined.
  virtual Status RunStep(const StepBatch& batch) = 0;

  // Whether RunStep has halves: a step may be begun while the one before it still runs.
  virtual bool begins_ahead() const { return false; }
  // The first half: the step goes to the device. REQUIRES: as RunStep; of the steps that are begun
  // at most one is not finished, and that one draws after all of its rows itself (drawn()). Then an
  // input ~i is what it draws after its row i. What the step fails with, FinishStep says.
  virtual void BeginStep(const StepBatch&) {}
  // Nobody wants a row of the step that FinishStep is to finish next: it is not counted, and the
  // rows after it move up.
  virtual void DropRow(size_t) {}
  // Waits for the step that was begun first: from now on it is the last step. A step without rows
  // does not count.
  virtual Status FinishStep() { return Status(); }

  // Of the last step that has ended; row: index into batch.rows. Different rows may be asked for
  // from different threads at once.
  // Whether the states after the last layer of all of a row's tokens are numbers.
  virtual bool finite(size_t row) const = 0;
  // The token after a row that the executor has drawn by its rule (StepRow::draw). Such a row has
  // no logits here. None: it is for the caller to draw.
  virtual std::optional<DrawnToken> drawn(size_t) const { return std::nullopt; }
  // [vocab]; row wanted kLogits or kLogProbs. kEveryLogits: [length][vocab].
  virtual std::span<float> logits(size_t row) = 0;
  virtual std::span<const float> logprobs(size_t row) const = 0;  // kLogProbs: [length - 1]
  // kLogProbs: [length - 1], the row's top_logprobs likeliest tokens at each place.
  virtual std::span<const std::vector<TokenLogprob>> top_logprobs(size_t row) const = 0;
  // The state of a row's i-th token after the final norm, into `out` [dim].
  virtual void FinalState(size_t row, uint32_t i, std::span<float> out) const = 0;
  // Records what was sampled after a row, for ~row inputs of the next step.
  virtual void SetSampled(size_t row, int32_t token) = 0;

  // Work of the last step.
  virtual StepCost cost() const = 0;
  // Of the steps since the last call but the first of them. A CPU has none.
  virtual DeviceTimes TakeDeviceTimes() { return {}; }
  // Pages of all steps since the last reset.
  virtual SelectionCounts selection_counts() const = 0;
  // Of the last step's row, by its index in the batch. REQUIRES: a row of generated tokens.
  virtual SelectionCounts ReadsOf(size_t row) const = 0;
  // Those of all steps by [layer][KV head].
  virtual std::vector<SelectionCounts> strip_counts() const = 0;
  virtual void ResetSelectionCounts() = 0;
  // What a sequence's last step read, if it was one generated token at `position` of the tokens
  // that the cache holds: a bit a page. Empty: everything. The raw pages beside coded ones are
  // always read and may be missing.
  virtual std::span<const uint64_t> PagesRead(SequenceSlot slot, uint32_t layer, uint32_t kv_head,
                                              uint32_t position) const = 0;
  // Whether the counts hold times.
  virtual void SetSelectionTimed(bool timed) = 0;
  // What is held against dense attention (Attention::SetShadowShare), and what came of it: by
  // selectors that were checked.
  virtual void SetShadowShare(double share) = 0;
  virtual std::vector<ShadowStats> shadow_stats() const = 0;
  virtual uint64_t shadow_checks() const = 0;

  // The index of a selector, opened if it is new. Errors: kInvalidArgument (what is wrong with it,
  // what CheckSelector says), kResourceExhausted (too many different ones).
  virtual Result<uint32_t> FindSelector(const std::string& text) = 0;
  // Whether a selector can be served. May be called from any thread. Errors: kInvalidArgument
  // (pages are stored in a form that it cannot read, or too little is kept of them), kUnsupported
  // (a device that does not know it).
  virtual Status CheckSelector(const SelectorSpec& spec) const = 0;
  // A selector as it was resolved: its name and every option.
  virtual std::string selector_resolved(uint32_t selector) const = 0;
  // Whether step plugins can be served. May be called from any thread. Errors: kInvalidArgument (as
  // ParseStepPlugins), kUnsupported (a device that cannot do what they decide).
  virtual Status CheckSteps(std::span<const std::string> texts) const {
    return ParseStepPlugins(texts).status();
  }
  // The index of a set of step plugins, opened if it is new; 0: none. Errors: as FindSelector's.
  virtual Result<uint32_t> FindSteps(std::span<const std::string> texts) = 0;
  // The set of an index; null for 0.
  virtual const StepPlugins* steps_of(uint32_t steps) const = 0;
  // Counts by plugin, over all sets that it is in.
  virtual std::vector<StepPluginStats> step_stats() const = 0;
  // Lets a set's plugins drop units (KvCache::share_tokens) of a sequence's committed tokens.
  // Returns how many tokens were dropped. What they are asked is as of the steps that have run, so
  // texts stay the same where this is called at the same positions.
  virtual uint32_t Prune(SequenceSlot, uint32_t) { return 0; }
  // A number for what generated tokens are made by: a selector and step plugins, by their indices.
  virtual uint32_t MakerOf(uint32_t selector, uint32_t steps) const = 0;
  virtual uint64_t steps() const = 0;
};

}  // namespace tinyserve

#endif  // TINYSERVE_ENGINE_EXECUTOR_H_
