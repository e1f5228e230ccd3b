// `tinyserve bench`: how fast this machine runs a model, beside what the machine could do.
#include <fmt/format.h>

#include <algorithm>
#include <boost/json/object.hpp>
#include <memory>
#include <optional>

#include "engine/device_peaks.h"
#include "engine/executor.h"
#include "kernels/cuda/device.h"
#include "kernels/targets.h"
#include "text/json_text.h"
#include "tools/bench_cases.h"
#include "tools/bench_plan.h"
#include "tools/bench_report.h"
#include "tools/commands.h"
#include "tools/config_file.h"
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
  bool machine = false, no_peaks = false, layers = false;
  std::string json;
};

Result<MachinePeaks> MeasurePeaksWithNote(const Kernels& kernels, ThreadPool* threads) {
  Progress progress("Measuring this machine", 0, 0);
  progress.Update(0);
  return MeasurePeaks(kernels, threads, [&](double fraction) { progress.Update(fraction); });
}

Result<DevicePeaks> MeasureDevicePeaksWithNote(uint32_t index) {
  Progress progress("Measuring this device", 0, 0);
  progress.Update(0);
  return MeasureDevicePeaks(index, [&](double fraction) { progress.Update(fraction); });
}

Status PrintPeaks(const BenchSetup& setup, JsonOutput* output) {
  if (output->wanted()) TS_RETURN_IF_ERROR(output->Write(PeaksJson(setup)));
  if (!output->on_stdout()) fmt::print("{}", PeaksTable(setup));
  return Status();
}

Result<int> BenchMachine(const BenchFlags& flags, JsonOutput* output) {
  TS_RETURN_IF_ERROR(cuda::CheckEngineDevice(flags.engine.device));
  TS_ASSIGN_OR_RETURN(const cuda::DeviceName device, cuda::ParseDeviceName(flags.engine.device));
  if (device.kind == cuda::DeviceName::Kind::kCuda) {
    BenchSetup setup;
    TS_ASSIGN_OR_RETURN(setup.device_peaks, MeasureDevicePeaksWithNote(device.index));
    TS_RETURN_IF_ERROR(PrintPeaks(setup, output));
    return 0;
  }
  TS_ASSIGN_OR_RETURN(const Kernels* kernels, TargetFor(flags.engine.target));
  ThreadPool threads(ThreadsOf(flags.engine));
  TS_ASSIGN_OR_RETURN(const MachinePeaks peaks, MeasurePeaksWithNote(*kernels, &threads));
  TS_RETURN_IF_ERROR(
      PrintPeaks({.target = kernels->name, .threads = threads.threads(), .peaks = peaks}, output));
  return 0;
}

Result<std::vector<CaseResult>> RunWithBar(const BenchRequest& request, const BenchPlan& plan) {
  Progress progress("", 0, 0);
  return RunCases(request, plan, [&](const std::string& label, double fraction) {
    progress.SetLabel(label);
    progress.Update(fraction);
  });
}

Result<int> BenchModel(const BenchFlags& flags, JsonOutput* output) {
  TS_ASSIGN_OR_RETURN(const std::vector<Method> methods,
                      LoadMethods(flags.engine, flags.selectors));
  for (const Method& method : methods) {
    if (!method.prunes) continue;
    return Status(Code::kInvalidArgument,
                  fmt::format("--selector {}: a case is run again from the same depth, and tokens "
                              "that were dropped are gone: eval measures its speed",
                              method.typed));
  }
  TS_ASSIGN_OR_RETURN(const LoadedModel model, LoadWithProgress(flags.engine));
  MachinePeaks peaks;
  std::optional<DevicePeaks> device_peaks;
  if (!flags.no_peaks && model.on_device()) {
    TS_ASSIGN_OR_RETURN(const cuda::DeviceName device, cuda::ParseDeviceName(flags.engine.device));
    TS_ASSIGN_OR_RETURN(device_peaks, MeasureDevicePeaksWithNote(device.index));
    peaks = PeaksOf(*device_peaks);
  } else if (!flags.no_peaks) {
    TS_ASSIGN_OR_RETURN(peaks, MeasurePeaksWithNote(*model.kernels, model.threads.get()));
  }
  BenchRequest request{.engine = &flags.engine,
                       .model = &model,
                       .methods = methods,
                       .wishes = flags.wishes,
                       .repeat = flags.repeat,
                       .chunk_tokens = flags.chunk_tokens,
                       .text = {},
                       .peaks = peaks,
                       .layers = flags.layers};
  TS_ASSIGN_OR_RETURN(const BenchPlan plan, PlanCases(request));
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
  const BenchSetup setup{.model = model.config().name,
                         .target = model.backend->target(),
                         .base_kv = BaseKv(flags.engine.kv),
                         .compute = flags.engine.compute,
                         .text = flags.text,
                         .threads = model.threads->threads(),
                         .chunk_tokens = flags.chunk_tokens,
                         .methods = methods,
                         .peaks = peaks,
                         .device_peaks = device_peaks};
  if (!flags.text.empty()) {
    TS_ASSIGN_OR_RETURN(request.text, ReadTextTokens(flags.text, *model.file));
  }
  TS_ASSIGN_OR_RETURN(const std::vector<CaseResult> results, RunWithBar(request, plan));
  TS_RETURN_IF_ERROR(EndTrace(model, flags.engine));
  if (output->wanted()) {
    for (const CaseResult& result : results) {
      TS_RETURN_IF_ERROR(output->Write(CaseJson(result, results, setup)));
    }
  }
  if (!output->on_stdout()) {
    if (!flags.no_peaks) fmt::print("{}\n", PeaksTable(setup));
    fmt::print("{}", CaseTable(results, setup));
  }
  return 0;
}

Result<int> RunBench(const BenchFlags& flags, CLI::App* app) {
  TS_RETURN_IF_ERROR(ApplyConfigFile(flags.engine.config, app));
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
  AddConfigOption(app, &flags->engine);
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
  CLI::Option* machine = app->add_flag(
      "--machine", flags->machine,
      "Measure this machine alone, or the device that --device names: memory bandwidth, "
      "and multiply-adds of each kind");
  app->add_flag(
         "--no-peaks", flags->no_peaks,
         "Do not measure this machine, or its device, first, some three seconds: shares of its "
         "bandwidth and "
         "roofline are left out")
      ->excludes(machine);
  AddLayersOption(app, &flags->layers);
  AddJsonOption(app, &flags->json);
  AddEngineOptions(app, &flags->engine);
  app->get_option("--trace")->excludes(machine);
  AddExample(app,
             "tinyserve bench --model model.gguf --depth 0,4096 --batch 1,8\n"
             "  tinyserve bench --model model.gguf --depth 8000 --prefill 0 --text book.txt "
             "--selector full \\\n      --selector box:ratio=0.3");
  app->callback([=] { *run = [=] { return RunBench(*flags, app); }; });
}

}  // namespace tinyserve
