// `tinyserve bench`: how fast this machine runs a model, beside what the machine could do.
#include <fmt/format.h>

#include <algorithm>
#include <boost/json/object.hpp>
#include <map>
#include <memory>
#include <numeric>

#include "engine/executor.h"
#include "kernels/targets.h"
#include "text/json_text.h"
#include "tools/bench_plan.h"
#include "tools/bench_report.h"
#include "tools/bench_runner.h"
#include "tools/commands.h"
#include "tools/format.h"
#include "tools/json_output.h"
#include "tools/loaded_model.h"
#include "tools/machine_peaks.h"
#include "tools/options.h"
#include "tools/progress.h"
#include "tools/trace_report.h"

namespace tinyserve {
namespace {

struct BenchFlags {
  EngineFlags engine;
  std::vector<std::string> selectors = {"full"};
  std::string text;
  BenchWishes wishes = {
      .prefill = {512, 2048}, .decode = 64, .depth = {0, 2048, 4096}, .batch = {1}};
  uint32_t repeat = 3;
  uint32_t chunk_tokens = EngineOptions().step_tokens_max;
  bool machine = false, layers = false;
  std::string json;
};

Result<MachinePeaks> MeasurePeaksWithNote(const Kernels& kernels, ThreadPool* threads) {
  Progress progress("Measuring this machine", 0, 0);
  progress.Update(0);
  return MeasurePeaks(kernels, threads, [&](double fraction) { progress.Update(fraction); });
}

Result<int> BenchMachine(const BenchFlags& flags, JsonOutput* output) {
  TS_ASSIGN_OR_RETURN(const Kernels* kernels, TargetFor(flags.engine.target));
  ThreadPool threads(ThreadsOf(flags.engine));
  TS_ASSIGN_OR_RETURN(const MachinePeaks peaks, MeasurePeaksWithNote(*kernels, &threads));
  const BenchSetup setup{.target = kernels->name, .threads = threads.threads(), .peaks = peaks};
  if (output->wanted()) TS_RETURN_IF_ERROR(output->Write(PeaksJson(setup)));
  if (!output->on_stdout()) fmt::print("{}", PeaksTable(setup));
  return 0;
}

// What one storage, or several, cost.
struct KvCost {
  uint64_t token_bytes = 0;
  uint64_t fixed_bytes = 0;  // of `sequences` with `uncommitted` tokens
};

Result<KvCost> CostOf(const BenchFlags& flags, const LoadedModel& model,
                      const std::vector<Method>& methods, uint32_t sequences,
                      uint32_t uncommitted) {
  const uint32_t page_tokens = flags.engine.page_tokens;
  KvCost cost;
  for (const std::string& kv : StoragesOf(methods)) {
    TS_ASSIGN_OR_RETURN(const SelectorNeeds kept,
                        model.NeedsOf(kv, SelectorsOf(methods, kv), page_tokens));
    TS_ASSIGN_OR_RETURN(const uint64_t token_bytes, model.KvBytesPerToken(kv, page_tokens, kept));
    TS_ASSIGN_OR_RETURN(const uint64_t fixed_bytes,
                        model.KvFixedBytes(kv, page_tokens, kept, sequences, uncommitted));
    cost.token_bytes += token_bytes;
    cost.fixed_bytes += fixed_bytes;
  }
  return cost;
}

Result<BenchPlan> Plan(const BenchFlags& flags, const LoadedModel& model,
                       const std::vector<Method>& methods) {
  const ModelConfig& config = model.model->config();
  if (flags.engine.context_tokens > config.context) {
    return Status(Code::kInvalidArgument,
                  fmt::format("--ctx {}: the model was trained for {} tokens",
                              flags.engine.context_tokens, config.context));
  }
  const BenchWishes& wished = flags.wishes;
  const auto most = [](const std::vector<uint32_t>& values) {
    return values.empty() ? 0u : *std::max_element(values.begin(), values.end());
  };
  const uint32_t batch = std::max(1u, most(wished.batch));
  const uint64_t uncommitted =
      uint64_t{batch} * wished.decode + most(wished.prefill) + flags.chunk_tokens;
  TS_ASSIGN_OR_RETURN(const KvCost cost,
                      CostOf(flags, model, methods, batch,
                             static_cast<uint32_t>(std::min<uint64_t>(uncommitted, UINT32_MAX))));
  const uint64_t bytes_max = KvBytesMax(flags.engine);
  const BenchLimits limits{.context_tokens = flags.engine.context_tokens == 0
                                                 ? config.context
                                                 : flags.engine.context_tokens,
                           .block_tokens = BlockTokensFor(flags.engine.page_tokens),
                           .kv_bytes_per_token = cost.token_bytes,
                           .kv_bytes_max = bytes_max - std::min(bytes_max, cost.fixed_bytes)};
  BenchWishes wishes = flags.wishes;
  wishes.selectors = static_cast<uint32_t>(flags.selectors.size());
  return PlanBench(wishes, limits);
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

std::string CaseLabel(const BenchFlags& flags, const BenchCase& c) {
  const bool selects = flags.selectors.size() > 1 && c.kind == BenchKind::kDecode;
  return fmt::format("{} {} at depth {}, batch {}{}", BenchKindName(c.kind), c.tokens, c.depth,
                     c.batch, selects ? ", " + PrintableLine(flags.selectors[c.selector], 16) : "");
}

using Runners = std::map<std::string, std::unique_ptr<BenchRunner>>;

// A runner for each storage.
Result<Runners> OpenRunners(const BenchFlags& flags, const LoadedModel& model,
                            const BenchPlan& plan, const std::vector<Method>& methods,
                            const MachinePeaks& peaks) {
  BenchRunnerOptions options{.model = &model,
                             .kv = {},
                             .page_tokens = flags.engine.page_tokens,
                             .block_tokens = BlockTokensFor(flags.engine.page_tokens),
                             .chunk_tokens = flags.chunk_tokens,
                             .methods = methods,
                             .text = {},
                             .peaks = peaks,
                             .layers = flags.layers};
  if (!flags.text.empty()) {
    TS_ASSIGN_OR_RETURN(options.text, ReadTextTokens(flags.text, *model.file));
  }
  Runners runners;
  for (const std::string& kv : StoragesOf(methods)) {
    options.kv = kv;
    TS_ASSIGN_OR_RETURN(runners[kv], BenchRunner::Create(options, plan));
  }
  return Result<Runners>(std::move(runners));
}

// Every case `repeat` times, case after case in each round, so that a drift of the machine's speed
// touches all of them.
Result<std::vector<CaseResult>> RunCases(const BenchFlags& flags, const LoadedModel& model,
                                         const BenchPlan& plan, const std::vector<Method>& methods,
                                         const MachinePeaks& peaks) {
  TS_ASSIGN_OR_RETURN(const Runners runners, OpenRunners(flags, model, plan, methods, peaks));
  std::vector<CaseResult> results;
  double total = FillTokens(plan, !flags.text.empty()) * static_cast<double>(runners.size());
  double done = 0;
  for (const BenchCase& c : plan.cases) {
    results.push_back({.bench_case = c, .samples = {}});
    total += flags.repeat * WorkOf(c);
  }
  Progress progress("", 0, 0);
  for (uint32_t round = 0; round < flags.repeat; ++round) {
    for (CaseResult& result : results) {
      const BenchCase& c = result.bench_case;
      progress.SetLabel(
          fmt::format("Round {}/{}  {}", round + 1, flags.repeat, CaseLabel(flags, c)));
      progress.Update(done / total);
      BenchRunner* runner = runners.at(methods[c.selector].kv).get();
      runner->Prepare(c, [&](uint32_t tokens) { progress.Update((done += tokens) / total); });
      const TraceScope scope(model.trace.get(), CaseLabel(flags, c), round);
      result.samples.push_back(runner->Run(c));
      done += WorkOf(c);
    }
  }
  return results;
}

Result<int> BenchModel(const BenchFlags& flags, JsonOutput* output) {
  TS_ASSIGN_OR_RETURN(const std::vector<Method> methods,
                      LoadMethods(flags.engine, flags.selectors));
  TS_ASSIGN_OR_RETURN(const LoadedModel model, LoadWithProgress(flags.engine));
  TS_ASSIGN_OR_RETURN(const MachinePeaks peaks,
                      MeasurePeaksWithNote(*model.kernels, model.threads.get()));
  TS_ASSIGN_OR_RETURN(const BenchPlan plan, Plan(flags, model, methods));
  for (const SkippedCase& skipped : plan.skipped) {
    fmt::print(stderr, "{}\n", ToJson(SkippedJson(skipped)));
  }
  if (plan.cases.empty()) {
    return Status(Code::kInvalidArgument,
                  "no case is left to run: give smaller --prefill, --depth or --batch");
  }
  if (flags.text.empty() && flags.selectors != std::vector<std::string>{"full"}) {
    fmt::print(stderr,
               "Selection over random tokens, the same in every sequence, says little: name a "
               "text with --text FILE.\n");
  }
  const BenchSetup setup{.model = model.model->config().name,
                         .target = model.kernels->name,
                         .base_kv = BaseKv(flags.engine.kv),
                         .compute = flags.engine.compute,
                         .text = flags.text,
                         .threads = model.threads->threads(),
                         .chunk_tokens = flags.chunk_tokens,
                         .methods = methods,
                         .peaks = peaks};
  TS_ASSIGN_OR_RETURN(const std::vector<CaseResult> results,
                      RunCases(flags, model, plan, methods, peaks));
  TS_RETURN_IF_ERROR(EndTrace(model, flags.engine));
  if (output->wanted()) {
    for (const CaseResult& result : results) {
      TS_RETURN_IF_ERROR(output->Write(CaseJson(result, results, setup)));
    }
  }
  if (!output->on_stdout()) {
    fmt::print("{}\n{}", PeaksTable(setup), CaseTable(results, setup));
  }
  return 0;
}

Result<int> RunBench(const BenchFlags& flags) {
  if (!flags.machine && flags.engine.model.empty()) {
    return Status(Code::kInvalidArgument,
                  "bench: name a model with --model FILE, or measure the machine with --machine");
  }
  TS_ASSIGN_OR_RETURN(JsonOutput output, JsonOutput::Open(flags.json));
  return flags.machine ? BenchMachine(flags, &output) : BenchModel(flags, &output);
}

}  // namespace

void AddBench(CLI::App* parent, Command* run) {
  CLI::App* app = parent->add_subcommand(
      "bench", "Measure prefill and decode speed, and their share of this machine's peaks");
  const auto flags = std::make_shared<BenchFlags>();
  AddModelOption(app, &flags->engine.model, false);
  const auto list = [&](const char* name, std::vector<uint32_t>* values, const char* help) {
    return app->add_option(name, *values, help)
        ->type_name("N,...")
        ->delimiter(',')
        ->capture_default_str();
  };
  list("--prefill", &flags->wishes.prefill,
       "Prompt lengths in tokens, each run after every depth for one sequence; 0: none");
  app->add_option("--decode", flags->wishes.decode, "Steps of a decode case; 0: none")
      ->type_name("N")
      ->capture_default_str();
  list("--depth", &flags->wishes.depth,
       "Tokens of context before a case, in memory of its own for each sequence of a batch");
  Limit(list("--batch", &flags->wishes.batch, "Sequences of a decode case"), 1, 1024);
  Limit(app->add_option("--repeat", flags->repeat, "Rounds over all cases")
            ->type_name("N")
            ->capture_default_str(),
        1, 1000);
  Limit(app->add_option("--chunk", flags->chunk_tokens, "Prompt tokens of one step")
            ->type_name("TOKENS")
            ->capture_default_str(),
        1, 8192);
  app->add_option(
         "--selector", flags->selectors,
         "Which KV pages decodes read (may be repeated: they take turns in each round), as "
         "in box:ratio=0.3; SPEC@KV: from keys and values stored so")
      ->type_name("SPEC")
      ->capture_default_str()
      ->allow_extra_args(false);
  AddPluginOption(app, &flags->engine.plugins);
  app->add_option("--text", flags->text,
                  "Prompts are parts of this text, another one for each sequence; without it they "
                  "are random tokens, the same in all")
      ->type_name("FILE");
  CLI::Option* machine =
      app->add_flag("--machine", flags->machine,
                    "Measure this machine alone: memory bandwidth, and multiply-adds of each kind");
  AddLayersOption(app, &flags->layers);
  AddJsonOption(app, &flags->json);
  AddEngineOptions(app, &flags->engine);
  app->get_option("--trace")->excludes(machine);
  AddExample(app,
             "tinyserve bench --model model.gguf --depth 0,4096 --batch 1,8\n"
             "  tinyserve bench --model model.gguf --depth 8000 --prefill 0 --text book.txt "
             "--selector full \\\n      --selector box:ratio=0.3");
  app->callback([=] { *run = [=] { return RunBench(*flags); }; });
}

}  // namespace tinyserve
