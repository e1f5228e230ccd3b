// Times prefill and decode steps on the executor: no server, no sampling but the likeliest token.
#ifndef TINYSERVE_TOOLS_BENCH_RUNNER_H_
#define TINYSERVE_TOOLS_BENCH_RUNNER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "engine/executor.h"
#include "tools/bench_plan.h"
#include "tools/loaded_model.h"
#include "tools/machine_peaks.h"

namespace tinyserve {

// One timing of a case.
struct BenchSample {
  double seconds = 0;           // of `tokens` * batch tokens
  double bytes = 0;             // that its steps must read
  double roofline_seconds = 0;  // the least time for its steps' bytes and multiply-adds
  uint64_t steps = 0;
  DeviceTimes times;                   // of a decode on a device
  std::vector<LayerSelection> layers;  // of a decode, where they were asked for
};

struct BenchRunnerOptions {
  const LoadedModel* model;
  std::string kv;
  uint32_t page_tokens, block_tokens;
  uint32_t chunk_tokens;        // prompt tokens of one step
  std::vector<Method> methods;  // that cases name by their index; it runs those of its storage
  TextTokens text;              // what prompts are made of; no tokens: random ones
  MachinePeaks peaks;
  bool layers;  // whether samples have them
};

// Sequences hold prompt tokens that are a function of their position, so that a case may run over
// what is already there. Over a text, each sequence reads it from another place on. Random prompts
// are the same for all: sequence 0's is computed, the others are copies of it in blocks of their
// own. What is committed ends at the depth of the last case; what a case adds never is. A decode
// case overwrites some tokens; they are put back before a case at another depth. So a context is
// computed once, not once a case, but for the window that a depth lies in. One runner has one
// storage of keys and values, and reads that alone.
class BenchRunner {
 public:
  // Errors: kOutOfMemory, kInvalidArgument (a selector, a text that is too short).
  static Result<std::unique_ptr<BenchRunner>> Create(const BenchRunnerOptions& options,
                                                     const BenchPlan& plan);

  // Makes sure that the case's sequences hold its depth. `progress` gets the tokens of each step
  // that this takes.
  void Prepare(const BenchCase& c, const std::function<void(uint32_t)>& progress);
  // REQUIRES: Prepare(c) was the last call; the case's method is of this storage.
  BenchSample Run(const BenchCase& c);
  // What a step failed with, on a device: samples since then mean nothing.
  const Status& status() const { return status_; }

 private:
  struct Sequence {
    SequenceSlot slot = 0;
    // Of those that are no copies: tokens [0, filled) are its prompt, but for these.
    uint32_t filled = 0;
    uint32_t overwritten_first = 0, overwritten_last = 0;
  };

  BenchRunner() = default;
  bool has_text() const { return !options_.text.tokens.empty(); }
  void Reserve(uint32_t sequence, uint32_t tokens);
  bool RunBatch();                      // false: a step has failed
  int32_t Likeliest(size_t row) const;  // the token after a row of the last step
  // Makes [0, depth) of a sequence prompt tokens, and commits them.
  void MoveTo(uint32_t sequence, uint32_t depth, const std::function<void(uint32_t)>& progress);
  void SetCommitted(uint32_t sequence, uint32_t tokens);
  // Runs and commits prompt tokens [first, last). REQUIRES: `first` is what is committed.
  void Fill(uint32_t sequence, uint32_t first, uint32_t last,
            const std::function<void(uint32_t)>& progress);
  // Runs prompt tokens [first, last) of a sequence in chunks.
  void Prefill(uint32_t sequence, uint32_t first, uint32_t last, BenchSample* sample,
               const std::function<void(uint32_t)>& progress);
  void Decode(const BenchCase& c, uint32_t steps, BenchSample* sample);
  void FillDecode(const BenchCase& c, uint32_t step);  // batch_
  bool FinishBatch();                                  // as RunBatch, of a step that was begun
  void CountStep(BenchSample* sample) const;
  int32_t PromptToken(uint32_t sequence, uint32_t position) const;
  BenchSample RunPrefill(const BenchCase& c);
  BenchSample RunDecode(const BenchCase& c);

  BenchRunnerOptions options_;
  std::unique_ptr<Executor> executor_;
  std::vector<uint32_t> selectors_;  // the executor's, by method; those of this storage
  std::vector<uint32_t> steps_;      // step plugins likewise
  std::vector<Sequence> sequences_;
  StepBatch batch_;
  Status status_;
};

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_BENCH_RUNNER_H_
