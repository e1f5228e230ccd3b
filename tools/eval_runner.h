// Runs windows of a text on the executor, as dense attention and as each method would read them.
#ifndef TINYSERVE_TOOLS_EVAL_RUNNER_H_
#define TINYSERVE_TOOLS_EVAL_RUNNER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/executor.h"
#include "tools/eval_figures.h"
#include "tools/loaded_model.h"

namespace tinyserve {

// A window: a prompt that is read dense, then tokens that are decoded and scored.
struct EvalShape {
  uint32_t prompt_tokens;  // at least 1
  uint32_t scored_tokens;  // at least 1

  uint32_t tokens() const { return prompt_tokens + scored_tokens; }
};

// About how long a window takes, in prompt tokens (for progress).
double WindowWork(const EvalShape& shape, size_t methods, size_t storages);

struct EvalRunnerOptions {
  const LoadedModel* model;
  std::string base_kv;  // of the dense reference
  uint32_t page_tokens;
  uint32_t chunk_tokens;  // prompt tokens of one step
  std::vector<Method> methods;
  uint64_t kv_bytes_max;
  bool timed_selection;  // whether strips hold times
  double shadow_check;   // share of the tokens that are not timed
};

// What one way to read the context did, over all windows.
struct EvalRun {
  MethodFigures figures;                // empty for the dense reference
  std::vector<double> tokens_per_s;     // [window], decoding one token at a time at its end
  uint64_t kv_bytes_read = 0;           // by those tokens
  uint64_t pages_held = 0;              // by the cache at those tokens, for each (layer, KV head)
  uint64_t decoded_tokens = 0;          // those tokens
  uint64_t failures = 0;                // of the selector: everything was read
  std::vector<SelectionCounts> strips;  // [layer][KV head], of all scored tokens
  uint64_t dropped_tokens = 0;          // from the cache at the end of windows, summed
};

// Methods over the same storage share an executor, all executors the model. In a window, the
// prompt's cache is computed once for each storage (over coded pages it is another one: queries see
// decoded keys) and copied for its methods; those that drop tokens compute it for themselves, since
// the attention of its queries is measured. Then the text is forced on dense attention and on all
// methods in turns of a few tokens: as rows of several tokens first, and one token a step at the
// end of the window, which is timed. Both give the same numbers.
class EvalRunner {
 public:
  // Errors: kInvalidArgument (a method), kOutOfMemory.
  static Result<std::unique_ptr<EvalRunner>> Create(const EvalRunnerOptions& options,
                                                    const EvalShape& shape);

  // Takes what a method predicted after the window's token `position`.
  using OnToken = std::function<void(size_t method, uint32_t position, const TokenComparison&)>;
  // `tokens`: the window's and the one that follows it. `progress`: 0..1 of the window. `on_token`
  // may be empty. Errors: kInternal (logits that are not finite).
  Status RunWindow(std::span<const int32_t> tokens, const std::function<void(double)>& progress,
                   const OnToken& on_token = {});

  const EvalRun& dense() const { return lanes_[0].run; }
  const EvalRun& run(size_t method) const { return lanes_[method + 1].run; }
  // What the shadow checks of a method found; no checks where it does not select.
  ShadowStats shadow(size_t method) const;

 private:
  // One way to read the context, with the cache that it made.
  struct Lane {
    Executor* executor = nullptr;
    std::string name;  // as typed
    SequenceSlot slot = 0;
    uint32_t selector = 0;  // of its executor
    uint32_t steps = 0;     // step plugins, of its executor
    std::string selector_typed;
    std::vector<std::string> step_plugins;
    bool prunes = false;
    double seconds = 0;  // of the timed steps of this window
    uint32_t timed_steps = 0;
    EvalRun run;
  };
  struct Storage {
    std::string kv;
    std::unique_ptr<Executor> executor;
    std::vector<Lane*> lanes;  // at least one
  };
  // Scored tokens that all lanes run before the next ones: window tokens [first, first + count).
  struct Turn {
    uint32_t first, count;
    bool timed;
  };

  EvalRunner() = default;
  void AddLanes();
  // Bytes of KV cache that a storage's lanes take. Errors: kInvalidArgument.
  Result<uint64_t> BytesOf(const Storage& storage) const;
  // An executor for a storage's lanes, and what they are in it.
  Status Open(Storage* storage, uint64_t bytes);
  uint32_t step_tokens() const;
  uint32_t held_tokens() const;  // a sequence's, in whole blocks
  Status Restart();
  Status Prefill(Storage* storage, std::span<const int32_t> tokens,
                 const std::function<void(uint32_t)>& progress);
  Status PrefillLane(const Lane& lane, std::span<const int32_t> tokens,
                     const std::function<void(uint32_t)>& progress);
  // How many of the window's first tokens a lane's cache holds.
  static uint32_t HeldBy(const Lane& lane, uint32_t tokens) {
    return tokens - lane.executor->cache()->dropped_tokens(lane.slot);
  }
  Turn NextTurn(uint32_t first) const;
  // Logits after each token of the turn to out [count][vocab].
  Status RunTurn(const Turn& turn, std::span<const int32_t> tokens, Lane* lane, float* out);
  Status RunRow(const Lane& lane, uint32_t first, std::span<const int32_t> tokens, float* out);
  Status Score(const Turn& turn, std::span<const int32_t> tokens, size_t method,
               const OnToken& on_token);

  EvalRunnerOptions options_;
  EvalShape shape_{};
  std::vector<Lane> lanes_;                   // dense, then the methods
  std::vector<Storage> storages_;             // dense attention's first
  std::vector<float> dense_logits_, logits_;  // [tokens of a turn][vocab]
  std::vector<TokenComparison> comparisons_;  // [tokens of a turn]
  StepBatch batch_;
};

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_EVAL_RUNNER_H_
