#include "tools/bench_cases.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>

#include "tools/format.h"

namespace tinyserve {
namespace {

// What one storage, or several, cost.
struct KvCost {
  uint64_t token_bytes = 0;
  uint64_t fixed_bytes = 0;  // of `sequences` with `uncommitted` tokens
};

Result<KvCost> CostOf(const BenchRequest& request, uint32_t sequences, uint32_t uncommitted) {
  const LoadedModel& model = *request.model;
  const uint32_t page_tokens = request.engine->page_tokens;
  KvCost cost;
  for (const std::string& kv : StoragesOf(request.methods)) {
    TS_ASSIGN_OR_RETURN(const SelectorNeeds kept,
                        model.NeedsOf(kv, SelectorsOf(request.methods, kv), page_tokens));
    TS_ASSIGN_OR_RETURN(const uint64_t token_bytes, model.KvBytesPerToken(kv, page_tokens, kept));
    TS_ASSIGN_OR_RETURN(const uint64_t fixed_bytes,
                        model.KvFixedBytes(kv, page_tokens, kept, sequences, uncommitted));
    cost.token_bytes += token_bytes;
    cost.fixed_bytes += fixed_bytes;
  }
  return cost;
}

// About how long a case takes beside the others, for the progress bar.
double WorkOf(const BenchCase& c) {
  return c.kind == BenchKind::kPrefill ? c.tokens : 4.0 * c.tokens * c.batch;
}

// Tokens that are prefilled before all decodes in a storage: every sequence of a text, or the one
// that others are copies of.
double FillTokens(const BenchPlan& plan, bool has_text) {
  return static_cast<double>(has_text ? plan.pool_tokens() : plan.sequence_tokens[0]);
}

std::string CaseLabel(const BenchRequest& request, const BenchCase& c) {
  const bool selects = request.methods.size() > 1 && c.kind == BenchKind::kDecode;
  return fmt::format("{} {} at depth {}, batch {}{}", BenchKindName(c.kind), c.tokens, c.depth,
                     c.batch,
                     selects ? ", " + PrintableLine(request.methods[c.selector].typed, 16) : "");
}

using Runners = std::map<std::string, std::unique_ptr<BenchRunner>>;

// A runner for each storage.
Result<Runners> OpenRunners(const BenchRequest& request, const BenchPlan& plan) {
  BenchRunnerOptions options{.model = request.model,
                             .kv = {},
                             .page_tokens = request.engine->page_tokens,
                             .block_tokens = BlockTokensFor(request.engine->page_tokens),
                             .chunk_tokens = request.chunk_tokens,
                             .methods = request.methods,
                             .text = request.text,
                             .peaks = request.peaks,
                             .layers = request.layers};
  Runners runners;
  for (const std::string& kv : StoragesOf(request.methods)) {
    options.kv = kv;
    TS_ASSIGN_OR_RETURN(runners[kv], BenchRunner::Create(options, plan));
  }
  return Result<Runners>(std::move(runners));
}

}  // namespace

Result<BenchPlan> PlanCases(const BenchRequest& request) {
  const ModelConfig& config = request.model->config();
  const EngineFlags& engine = *request.engine;
  if (engine.context_tokens > config.context) {
    return Status(Code::kInvalidArgument,
                  fmt::format("--ctx {}: the model was trained for {} tokens",
                              engine.context_tokens, config.context));
  }
  BenchWishes wishes = request.wishes;
  wishes.selectors = static_cast<uint32_t>(request.methods.size());
  const auto most = [](const std::vector<uint32_t>& values) {
    return values.empty() ? 0u : *std::max_element(values.begin(), values.end());
  };
  const uint32_t batch = std::max(1u, most(wishes.batch));
  const uint64_t uncommitted =
      uint64_t{batch} * wishes.decode + most(wishes.prefill) + request.chunk_tokens;
  TS_ASSIGN_OR_RETURN(
      const KvCost cost,
      CostOf(request, batch, static_cast<uint32_t>(std::min<uint64_t>(uncommitted, UINT32_MAX))));
  const uint64_t bytes_max = KvBytesMax(engine, *request.model);
  const BenchLimits limits{
      .context_tokens = engine.context_tokens == 0 ? config.context : engine.context_tokens,
      .block_tokens = BlockTokensFor(engine.page_tokens),
      .kv_bytes_per_token = cost.token_bytes,
      .kv_bytes_max = bytes_max - std::min(bytes_max, cost.fixed_bytes)};
  return PlanBench(wishes, limits);
}

Result<std::vector<CaseResult>> RunCases(
    const BenchRequest& request, const BenchPlan& plan,
    const std::function<void(const std::string& label, double fraction)>& progress) {
  TS_ASSIGN_OR_RETURN(const Runners runners, OpenRunners(request, plan));
  std::vector<CaseResult> results;
  double total =
      FillTokens(plan, !request.text.tokens.empty()) * static_cast<double>(runners.size());
  double done = 0;
  for (const BenchCase& c : plan.cases) {
    results.push_back({.bench_case = c, .samples = {}});
    total += request.repeat * WorkOf(c);
  }
  for (uint32_t round = 0; round < request.repeat; ++round) {
    for (CaseResult& result : results) {
      const BenchCase& c = result.bench_case;
      const std::string label =
          fmt::format("Round {}/{}  {}", round + 1, request.repeat, CaseLabel(request, c));
      progress(label, done / total);
      BenchRunner* runner = runners.at(request.methods[c.selector].kv).get();
      runner->Prepare(c, [&](uint32_t tokens) { progress(label, (done += tokens) / total); });
      const TraceScope scope(request.model->trace.get(), CaseLabel(request, c), round);
      TS_RETURN_IF_ERROR(runner->status());
      result.samples.push_back(runner->Run(c));
      TS_RETURN_IF_ERROR(runner->status());
      done += WorkOf(c);
    }
  }
  return results;
}

}  // namespace tinyserve
