// Runs the cases of `bench`, and of `tune`: a runner for each storage, every method in turns.
#ifndef TINYSERVE_TOOLS_BENCH_CASES_H_
#define TINYSERVE_TOOLS_BENCH_CASES_H_

#include <functional>
#include <string>
#include <vector>

#include "tools/bench_plan.h"
#include "tools/bench_report.h"
#include "tools/engine_flags.h"
#include "tools/loaded_model.h"
#include "tools/machine_peaks.h"

namespace tinyserve {

struct BenchRequest {
  const EngineFlags* engine;
  const LoadedModel* model;
  std::vector<Method> methods;  // at least one
  BenchWishes wishes;           // of all methods, whatever `selectors` says
  uint32_t repeat;              // rounds over all cases
  uint32_t chunk_tokens;        // prompt tokens of one step
  TextTokens text;              // what prompts are made of; no tokens: random ones
  MachinePeaks peaks;
  bool layers;  // whether results have figures by layer
};

// Errors: kInvalidArgument (--ctx; a storage that does not go with the pages).
Result<BenchPlan> PlanCases(const BenchRequest& request);

// Every case `repeat` times, case after case in each round, so that a drift of the machine's speed
// touches all of them. `progress`: what runs, and 0..1 of the whole. Errors: kOutOfMemory,
// kInvalidArgument (a text that is too short). REQUIRES: the plan is the request's, and has cases.
Result<std::vector<CaseResult>> RunCases(
    const BenchRequest& request, const BenchPlan& plan,
    const std::function<void(const std::string& label, double fraction)>& progress);

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_BENCH_CASES_H_
