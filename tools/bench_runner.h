// Times prefill and decode steps on the executor: no server, no sampling but the likeliest token.
#ifndef TINYSERVE_TOOLS_BENCH_RUNNER_H_
#define TINYSERVE_TOOLS_BENCH_RUNNER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "engine/executor.h"
#include "model/model.h"
#include "tools/bench_plan.h"
#include "tools/machine_peaks.h"

namespace tinyserve {

// One timing of a case.
struct BenchSample {
  double seconds = 0;           // of `tokens` * batch tokens
  double bytes = 0;             // that its steps must read
  double roofline_seconds = 0;  // the least time for its steps' bytes and multiply-adds
  uint64_t steps = 0;
};

struct BenchRunnerOptions {
  const Model* model;
  const Kernels* kernels;
  Compute compute;
  ThreadPool* threads;
  std::string kv;
  uint32_t page_tokens, block_tokens;
  uint32_t chunk_tokens;  // prompt tokens of one step
  MachinePeaks peaks;
};

// Sequence 0 always holds prompt tokens that are a function of their position, so that a prefill
// case may run over what is already there. The other sequences are copies of it in blocks of their
// own; a decode case overwrites some tokens, which are put back afterwards. So the context is
// computed once, not once a case.
class BenchRunner {
 public:
  // Errors: kOutOfMemory, kInvalidArgument.
  static Result<std::unique_ptr<BenchRunner>> Create(const BenchRunnerOptions& options,
                                                     const BenchPlan& plan);

  // Makes sure that the case's sequences hold its depth. `progress`: 0..1 of a long fill.
  void Prepare(const BenchCase& c, const std::function<void(double)>& progress);
  // REQUIRES: Prepare(c) was the last call.
  BenchSample Run(const BenchCase& c);

 private:
  BenchRunner() = default;
  // Runs prompt tokens [first, last) of sequence 0 in chunks.
  void Prefill(uint32_t first, uint32_t last, BenchSample* sample,
               const std::function<void(double)>& progress);
  void Decode(const BenchCase& c, uint32_t steps, BenchSample* sample);
  void CountStep(BenchSample* sample) const;
  int32_t PromptToken(uint32_t sequence, uint32_t position) const;
  // Copies whole pages that hold tokens [first, last) from sequence 0 to `sequence`.
  void CopyPages(uint32_t sequence, uint32_t first, uint32_t last);
  // Calls visit(page bytes, size) for every page of sequence 0 that holds tokens [first, last).
  void VisitPages(uint32_t first, uint32_t last,
                  const std::function<void(uint8_t*, uint32_t)>& visit) const;
  BenchSample RunPrefill(const BenchCase& c);
  BenchSample RunDecode(const BenchCase& c);

  BenchRunnerOptions options_;
  std::unique_ptr<Executor> executor_;
  std::vector<SequenceSlot> slots_;
  std::vector<uint32_t> filled_;  // tokens of each sequence that are sequence 0's prompt
  std::vector<uint8_t> saved_;    // pages of sequence 0 that a decode overwrites
  StepBatch batch_;
};

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_BENCH_RUNNER_H_
