// `tinyserve bench`: how fast this machine runs a model, beside what the machine could do.
#include <fmt/format.h>

#include <algorithm>
#include <boost/json/object.hpp>
#include <memory>
#include <numeric>

#include "base/machine.h"
#include "engine/executor.h"
#include "kernels/targets.h"
#include "model/model.h"
#include "tools/bench_plan.h"
#include "tools/bench_report.h"
#include "tools/bench_runner.h"
#include "tools/commands.h"
#include "tools/format.h"
#include "tools/json_output.h"
#include "tools/machine_peaks.h"
#include "tools/options.h"
#include "tools/progress.h"

namespace tinyserve {
namespace {

struct BenchFlags {
  EngineFlags engine;
  BenchWishes wishes = {
      .prefill = {512, 2048}, .decode = 64, .depth = {0, 2048, 4096}, .batch = {1}};
  uint32_t repeat = 3;
  uint32_t chunk_tokens = EngineOptions().step_tokens_max;
  bool machine = false;
  std::string json;
};

// A loaded model with what it runs on.
struct Bench {
  const Kernels* kernels = nullptr;
  Compute compute = Compute::kFast;
  std::unique_ptr<ThreadPool> threads;
  std::unique_ptr<GgufFile> file;
  std::unique_ptr<Model> model;
  MachinePeaks peaks;
};

uint32_t ThreadsOf(const EngineFlags& flags) {
  return flags.threads == 0 ? UsableCores() : flags.threads;
}

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

Status LoadBench(const BenchFlags& flags, Bench* bench) {
  TS_ASSIGN_OR_RETURN(bench->kernels, TargetFor(flags.engine.target));
  bench->compute = flags.engine.compute == "f32" ? Compute::kF32 : Compute::kFast;
  bench->threads = std::make_unique<ThreadPool>(ThreadsOf(flags.engine));
  TS_ASSIGN_OR_RETURN(bench->file, GgufFile::Open(flags.engine.model));
  Progress progress("Loading", 0.2, 0.5);
  TS_ASSIGN_OR_RETURN(bench->model,
                      LoadModel(*bench->file, {.kernels = bench->kernels,
                                               .compute = bench->compute,
                                               .threads = bench->threads.get(),
                                               .progress = [&](double f) { progress.Update(f); }}));
  progress.Clear();
  TS_ASSIGN_OR_RETURN(bench->peaks, MeasurePeaksWithNote(*bench->kernels, bench->threads.get()));
  return Status();
}

// KV memory that the benchmark may take: what --kv-memory says, else what is left of the limit with
// a tenth of it kept free.
uint64_t KvBytesMax(const BenchFlags& flags) {
  if (flags.engine.kv_memory_bytes != 0) return flags.engine.kv_memory_bytes;
  const uint64_t usable = MemoryLimitBytes() / 10 * 9, used = ResidentBytes();
  return usable > used ? usable - used : 0;
}

Result<BenchPlan> Plan(const BenchFlags& flags, const Bench& bench) {
  const ModelConfig& config = bench.model->config();
  if (flags.engine.context_tokens > config.context) {
    return Status(Code::kInvalidArgument,
                  fmt::format("--ctx {}: the model was trained for {} tokens",
                              flags.engine.context_tokens, config.context));
  }
  TS_ASSIGN_OR_RETURN(const Codec* codec, FindCodec(flags.engine.kv));
  const std::vector<LayerGroup> groups = {
      {.layers = config.layers, .kv_heads = config.kv_heads, .head_dim = config.head_dim}};
  const BenchLimits limits{
      .context_tokens =
          flags.engine.context_tokens == 0 ? config.context : flags.engine.context_tokens,
      .block_tokens = BlockTokensFor(flags.engine.page_tokens),
      .kv_bytes_per_token =
          KvCache::BytesPerToken(groups, *codec, flags.engine.page_tokens, bench.kernels),
      .kv_bytes_max = KvBytesMax(flags)};
  return PlanBench(flags.wishes, limits);
}

// About how long a case takes beside the others, for the progress bar.
double WorkOf(const BenchCase& c) {
  return c.kind == BenchKind::kPrefill ? c.tokens : 4.0 * c.tokens * c.batch;
}

// Every case `repeat` times, case after case in each round, so that a drift of the machine's speed
// touches all of them.
Result<std::vector<CaseResult>> RunCases(const BenchFlags& flags, const Bench& bench,
                                         const BenchPlan& plan) {
  const BenchRunnerOptions options{.model = bench.model.get(),
                                   .kernels = bench.kernels,
                                   .compute = bench.compute,
                                   .threads = bench.threads.get(),
                                   .kv = flags.engine.kv,
                                   .page_tokens = flags.engine.page_tokens,
                                   .block_tokens = BlockTokensFor(flags.engine.page_tokens),
                                   .chunk_tokens = flags.chunk_tokens,
                                   .peaks = bench.peaks};
  TS_ASSIGN_OR_RETURN(const std::unique_ptr<BenchRunner> runner,
                      BenchRunner::Create(options, plan));
  std::vector<CaseResult> results;
  double total = 0, done = 0;
  for (const BenchCase& c : plan.cases) {
    results.push_back({.bench_case = c});
    total += flags.repeat * WorkOf(c);
  }
  Progress progress("", 0, 0);
  for (uint32_t round = 0; round < flags.repeat; ++round) {
    for (CaseResult& result : results) {
      const BenchCase& c = result.bench_case;
      progress.SetLabel(fmt::format("Round {}/{}  {} {} at depth {}, batch {}", round + 1,
                                    flags.repeat, BenchKindName(c.kind), c.tokens, c.depth,
                                    c.batch));
      progress.Update(done / total);
      runner->Prepare(c, {});
      result.samples.push_back(runner->Run(c));
      done += WorkOf(c);
    }
  }
  return results;
}

Result<int> BenchModel(const BenchFlags& flags, JsonOutput* output) {
  Bench bench;
  TS_RETURN_IF_ERROR(LoadBench(flags, &bench));
  TS_ASSIGN_OR_RETURN(const BenchPlan plan, Plan(flags, bench));
  for (const SkippedCase& skipped : plan.skipped) {
    fmt::print(stderr, "{}\n", ToJson(SkippedJson(skipped)));
  }
  if (plan.cases.empty()) {
    return Status(Code::kInvalidArgument,
                  "no case is left to run: give smaller --prefill, --depth or --batch");
  }
  TS_ASSIGN_OR_RETURN(const std::vector<CaseResult> results, RunCases(flags, bench, plan));
  const BenchSetup setup{.model = bench.model->config().name,
                         .target = bench.kernels->name,
                         .kv = flags.engine.kv,
                         .compute = flags.engine.compute,
                         .threads = bench.threads->threads(),
                         .chunk_tokens = flags.chunk_tokens,
                         .peaks = bench.peaks};
  if (output->wanted()) {
    for (const CaseResult& result : results) {
      TS_RETURN_IF_ERROR(output->Write(CaseJson(result, setup)));
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
       "Tokens of context before a case. A batch's contexts are copies of one, in memory of their "
       "own");
  Limit(list("--batch", &flags->wishes.batch, "Sequences of a decode case"), 1, 1024);
  Limit(app->add_option("--repeat", flags->repeat, "Rounds over all cases")
            ->type_name("N")
            ->capture_default_str(),
        1, 1000);
  Limit(app->add_option("--chunk", flags->chunk_tokens, "Prompt tokens of one step")
            ->type_name("TOKENS")
            ->capture_default_str(),
        1, 8192);
  app->add_flag("--machine", flags->machine,
                "Measure this machine alone: memory bandwidth, and multiply-adds of each kind");
  AddJsonOption(app, &flags->json);
  AddEngineOptions(app, &flags->engine);
  AddExample(app, "tinyserve bench --model model.gguf --prefill 512 --depth 0,4096 --batch 1,8");
  app->callback([=] { *run = [=] { return RunBench(*flags); }; });
}

}  // namespace tinyserve
