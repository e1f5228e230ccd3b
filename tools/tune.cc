// `tinyserve tune`: the fastest way to read the cache within a bound on what it loses.
#include <fmt/format.h>

#include <algorithm>
#include <boost/json/object.hpp>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>

#include "base/machine.h"
#include "tools/bench_cases.h"
#include "tools/commands.h"
#include "tools/eval_runner.h"
#include "tools/format.h"
#include "tools/json_output.h"
#include "tools/loaded_model.h"
#include "tools/options.h"
#include "tools/progress.h"
#include "tools/tune_search.h"

namespace tinyserve {
namespace {

constexpr uint32_t kChunkTokens = 512;      // prompt tokens of one step
constexpr uint32_t kContextDefault = 4096;  // or the model's, where that is smaller
constexpr uint32_t kDecodeSteps = 64, kRounds = 3;

struct TuneFlags {
  EngineFlags engine;
  std::string text, check_text, output = "tinyserve.toml", json;
  std::vector<std::string> methods;
  double kl = 0.006;
  uint32_t context = 0, scored = 256, tokens = 1024, batch = 1;
};

// What all steps share.
struct Tuning {
  const TuneFlags* flags;
  TuneTexts texts;
  TuneSetup setup;

  EvalShape shape() const {
    return {.prompt_tokens = setup.context - flags->scored, .scored_tokens = flags->scored};
  }
};

using OnProgress = std::function<void(double fraction)>;

// The model with f32 products: int8 activations would add noise of their own to every KL.
Result<LoadedModel> LoadExact(const TuneFlags& flags) {
  EngineFlags exact = flags.engine;
  exact.compute = "f32";
  return LoadWithProgress(exact);
}

// Windows of a text, as tokens that EvalRunner takes. Errors: kInvalidArgument (a short text).
Result<std::vector<std::vector<int32_t>>> WindowsOf(const Tuning& tuning, const TextTokens& text,
                                                    const std::string& name, uint64_t least) {
  const EvalShape shape = tuning.shape();
  const uint64_t of_text = shape.tokens() - text.prefix.size();
  const uint64_t wanted = std::max<uint64_t>(
      least, (uint64_t{tuning.flags->tokens} + shape.scored_tokens - 1) / shape.scored_tokens);
  const std::vector<uint64_t> starts = SpreadWindows(text.tokens.size(), of_text, wanted);
  if (starts.size() < least) {
    return Status(Code::kInvalidArgument,
                  fmt::format("{} has {} tokens: {} windows of {} need {}", name,
                              text.tokens.size(), least, shape.tokens(), least * of_text + 1));
  }
  std::vector<std::vector<int32_t>> windows;
  for (const uint64_t start : starts) {
    std::vector<int32_t> tokens = text.prefix;
    const auto first = text.tokens.begin() + static_cast<int64_t>(start);
    tokens.insert(tokens.end(), first, first + static_cast<int64_t>(of_text + 1));
    windows.push_back(std::move(tokens));
  }
  return windows;
}

TuneQuality QualityOf(const MethodFigures& figures) {
  return {.kl = figures.kl(),
          .kl_se = figures.kl_se(),
          .top1 = figures.top1(),
          .scored_tokens = figures.tokens()};
}

// A runner for as many of the settings as fit in memory at once, from the first on; `*count`: how
// many.
Result<std::unique_ptr<EvalRunner>> OpenRunner(const Tuning& tuning, const LoadedModel& model,
                                               std::span<TuneSetting* const> settings,
                                               size_t* count) {
  for (*count = settings.size();; *count = (*count + 1) / 2) {
    EvalRunnerOptions options{.model = &model,
                              .base_kv = tuning.setup.base_kv,
                              .page_tokens = tuning.setup.page_tokens,
                              .chunk_tokens = kChunkTokens,
                              .methods = {},
                              .kv_bytes_max = KvBytesMax(tuning.flags->engine, model),
                              .timed_selection = false,
                              .shadow_check = 0};
    for (const TuneSetting* setting : settings.first(*count))
      options.methods.push_back(setting->method);
    Result<std::unique_ptr<EvalRunner>> runner = EvalRunner::Create(options, tuning.shape());
    if (runner.ok() || runner.status().code() != Code::kOutOfMemory || *count == 1) return runner;
  }
}

// Quality of settings over windows. A setting that is dense attention itself runs too: it shows
// that the comparison is what it should be.
Status MeasureQuality(const Tuning& tuning, const LoadedModel& model,
                      std::span<const std::vector<int32_t>> windows,
                      std::span<TuneSetting* const> settings, const OnProgress& progress) {
  for (size_t first = 0, count = 0; first < settings.size(); first += count) {
    TS_ASSIGN_OR_RETURN(const std::unique_ptr<EvalRunner> runner,
                        OpenRunner(tuning, model, settings.subspan(first), &count));
    for (size_t w = 0; w < windows.size(); ++w) {
      TS_RETURN_IF_ERROR(runner->RunWindow(windows[w], [&](double part) {
        const double done = static_cast<double>(w) + part,
                     all = static_cast<double>(windows.size());
        progress((static_cast<double>(first) + done / all * static_cast<double>(count)) /
                 static_cast<double>(settings.size()));
      }));
    }
    for (size_t i = 0; i < count; ++i)
      settings[first + i]->quality = QualityOf(runner->run(i).figures);
  }
  return Status();
}

// Decode speed of settings, and of dense attention beside them, over a text.
Status MeasureSpeed(const Tuning& tuning, const LoadedModel& model, const TextTokens& text,
                    std::span<TuneSetting* const> settings, const OnProgress& progress) {
  const TuneFlags& flags = *tuning.flags;
  TS_ASSIGN_OR_RETURN(std::vector<Method> methods, ParseMethods({"full"}, flags.engine.kv));
  for (const TuneSetting* setting : settings) methods.push_back(setting->method);
  const uint32_t steps = std::min(kDecodeSteps, tuning.setup.context / 4);
  BenchRequest request{};
  request.engine = &flags.engine;
  request.model = &model;
  request.methods = methods;
  request.wishes.decode = steps;
  request.wishes.depth = {tuning.setup.context - steps};
  request.wishes.batch = {flags.batch};
  request.repeat = kRounds;
  request.chunk_tokens = kChunkTokens;
  request.text = text;
  TS_ASSIGN_OR_RETURN(const BenchPlan plan, PlanCases(request));
  if (!plan.skipped.empty()) {
    return Status(Code::kOutOfMemory, fmt::format("{} sequences of {} tokens: {}", flags.batch,
                                                  tuning.setup.context, plan.skipped[0].reason));
  }
  TS_ASSIGN_OR_RETURN(
      const std::vector<CaseResult> results,
      RunCases(request, plan, [&](const std::string&, double fraction) { progress(fraction); }));
  const BenchSetup setup{.base_kv = tuning.setup.base_kv, .methods = methods};
  for (size_t i = 0; i < settings.size(); ++i) {
    const CaseResult& result = results[i + 1];
    settings[i]->speed = {.tokens_per_s = FiguresOf(result, {}).tokens_per_s_median,
                          .speedup = SpeedupOverFull(result, results, setup)};
    settings[i]->timed = true;
  }
  return Status();
}

// Runs a step with a bar of its own: how long a later one takes depends on what this one drops.
template <class Body>
Status WithBar(int number, fmt::format_string<size_t> what,
               const std::vector<TuneSetting*>& settings, const Body& body) {
  Progress progress(fmt::format("Step {} of 4: {}", number, fmt::format(what, settings.size())),
                    0.3, 1.0);
  return body([&](double fraction) { progress.Update(fraction); });
}

// Measures all settings on the first text: a window of all, then the others of those that may be
// within the ceiling, then the speed of those that are.
Status Search(const Tuning& tuning, std::vector<TuneSetting>* settings) {
  const double ceiling = tuning.flags->kl;
  TS_ASSIGN_OR_RETURN(const auto windows,
                      WindowsOf(tuning, tuning.texts.tuning, tuning.setup.text, 2));
  std::vector<TuneSetting*> left;
  for (TuneSetting& setting : *settings) left.push_back(&setting);
  const auto keep = [&](auto&& is_kept) {
    std::erase_if(left, [&](const TuneSetting* s) { return !is_kept(s->quality, ceiling); });
  };
  {
    TS_ASSIGN_OR_RETURN(const LoadedModel exact, LoadExact(*tuning.flags));
    TS_RETURN_IF_ERROR(WithBar(1, "a look at {} settings", left, [&](const OnProgress& progress) {
      return MeasureQuality(tuning, exact, std::span(windows).first(1), left, progress);
    }));
    keep(MayBeWithin);
    TS_RETURN_IF_ERROR(WithBar(2, "KL of {} settings", left, [&](const OnProgress& progress) {
      return MeasureQuality(tuning, exact, std::span(windows).subspan(1), left, progress);
    }));
    keep(IsWithin);
  }
  if (left.empty()) {
    return Status(Code::kInvalidArgument,
                  fmt::format("--kl {}: no setting keeps to it; full always does", ceiling));
  }
  TS_ASSIGN_OR_RETURN(const LoadedModel model, LoadWithProgress(tuning.flags->engine));
  return WithBar(3, "speed of {} settings", left, [&](const OnProgress& progress) {
    return MeasureSpeed(tuning, model, tuning.texts.tuning, left, progress);
  });
}

// What the chosen setting does on the other text.
Status Check(const Tuning& tuning, TuneSetting* setting) {
  TS_ASSIGN_OR_RETURN(const auto windows,
                      WindowsOf(tuning, tuning.texts.check, tuning.setup.check_text, 1));
  TuneSetting* const settings[] = {setting};
  Progress progress("Step 4 of 4: the chosen one on other text", 0.3, 1.0);
  constexpr double kQualityShare = 0.8;  // of the time, about
  {
    TS_ASSIGN_OR_RETURN(const LoadedModel exact, LoadExact(*tuning.flags));
    TS_RETURN_IF_ERROR(MeasureQuality(tuning, exact, windows, settings, [&](double fraction) {
      progress.Update(kQualityShare * fraction);
    }));
  }
  progress.Clear();
  TS_ASSIGN_OR_RETURN(const LoadedModel model, LoadWithProgress(tuning.flags->engine));
  return MeasureSpeed(tuning, model, tuning.texts.check, settings, [&](double fraction) {
    progress.Update(kQualityShare + (1 - kQualityShare) * fraction);
  });
}

// Settings that are tried. Errors: kInvalidArgument (a specification).
Result<std::vector<TuneSetting>> SettingsOf(const TuneFlags& flags) {
  TS_ASSIGN_OR_RETURN(
      const std::vector<Method> methods,
      LoadMethods(flags.engine, flags.methods.empty() ? DefaultGrid() : flags.methods));
  std::vector<TuneSetting> settings;
  for (const Method& method : methods) {
    if (!method.steps.empty()) {
      return Status(Code::kInvalidArgument,
                    fmt::format("--method {}: step plugins are not searched", method.typed));
    }
    settings.push_back({.method = method, .quality = {}, .speed = {}});
  }
  return settings;
}

// The texts, and what the run is about. Errors: kInvalidArgument (--context), what reading reports.
Result<Tuning> Prepare(const TuneFlags& flags) {
  Tuning tuning{.flags = &flags, .texts = {}, .setup = {}};
  TS_ASSIGN_OR_RETURN(const LoadedModel model, LoadWithProgress(flags.engine));
  TS_ASSIGN_OR_RETURN(TextTokens text, ReadTextTokens(flags.text, *model.file));
  const auto prefix = static_cast<uint32_t>(text.prefix.size());
  TuneSetup& setup = tuning.setup;
  if (flags.check_text.empty()) {
    tuning.texts = Halves(std::move(text));
    setup.text = "the first half of " + flags.text;
    setup.check_text = "the second half of " + flags.text;
  } else {
    tuning.texts.tuning = std::move(text);
    TS_ASSIGN_OR_RETURN(tuning.texts.check, ReadTextTokens(flags.check_text, *model.file));
    setup.text = flags.text;
    setup.check_text = flags.check_text;
  }
  const ModelConfig& config = model.config();
  setup.context = flags.context == 0 ? std::min(kContextDefault, config.context) : flags.context;
  if (setup.context > config.context || setup.context <= flags.scored + prefix) {
    return Status(
        Code::kInvalidArgument,
        fmt::format("--context {}: allowed are {} to {}, the context that the model was "
                    "trained for, when --score is {}",
                    setup.context, flags.scored + prefix + 1, config.context, flags.scored));
  }
  setup.model = config.name;
  setup.target = model.backend->target();
  setup.cpu = CpuName();
  setup.base_kv = BaseKv(flags.engine.kv);
  setup.ceiling = flags.kl;
  setup.batch = flags.batch;
  setup.threads = model.threads->threads();
  setup.page_tokens = flags.engine.page_tokens;
  setup.plugins = flags.engine.plugins;
  return Result<Tuning>(std::move(tuning));
}

// A file that exists may be somebody's: it is told before the work.
Status CheckOutput(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return Status();
  return Status(Code::kInvalidArgument,
                fmt::format("--output: {} exists; name another file, or remove it", path));
}

Status WriteConfig(const std::string& path, const std::string& text) {
  std::FILE* file = std::fopen(path.c_str(), "wxe");  // only a new one
  const bool written =
      file != nullptr && std::fwrite(text.data(), 1, text.size(), file) == text.size();
  if (file == nullptr || std::fclose(file) != 0 || !written) {
    return Status(Code::kIo,
                  fmt::format("--output: cannot write {}: {}", path, std::strerror(errno)));
  }
  return Status();
}

Status Show(const Tuning& tuning, const std::vector<TuneSetting>& settings, JsonOutput* output) {
  size_t columns = 7;
  for (const TuneSetting& s : settings) columns = std::max(columns, s.method.typed.size());
  if (!output->on_stdout()) fmt::print("{}", TuneTableHead(tuning.setup, columns));
  for (const TuneSetting& setting : settings) {
    if (output->wanted()) TS_RETURN_IF_ERROR(output->Write(TuneSettingJson(setting, tuning.setup)));
    if (!output->on_stdout()) fmt::print("{}", TuneTableRow(setting, tuning.flags->kl, columns));
  }
  std::fflush(stdout);
  return Status();
}

Result<int> Tune(const TuneFlags& flags) {
  TS_RETURN_IF_ERROR(CheckOutput(flags.output));
  TS_ASSIGN_OR_RETURN(std::vector<TuneSetting> settings, SettingsOf(flags));
  TS_ASSIGN_OR_RETURN(JsonOutput output, JsonOutput::Open(flags.json));
  TS_ASSIGN_OR_RETURN(const Tuning tuning, Prepare(flags));
  TS_RETURN_IF_ERROR(Search(tuning, &settings));
  TS_RETURN_IF_ERROR(Show(tuning, settings, &output));
  const TuneSetting& tuned = settings[Fastest(settings)];
  TuneSetting measured = tuned;
  TS_RETURN_IF_ERROR(Check(tuning, &measured));
  TS_RETURN_IF_ERROR(WriteConfig(flags.output, TunedConfig(tuned, measured, tuning.setup)));
  if (output.wanted())
    TS_RETURN_IF_ERROR(output.Write(TunedJson(tuned, measured, tuning.setup, flags.output)));
  if (!output.on_stdout()) fmt::print("{}", TunedText(measured, tuning.setup, flags.output));
  return 0;
}

}  // namespace

void AddTune(CLI::App* parent, Command* run) {
  CLI::App* app = parent->add_subcommand(
      "tune", "Find the fastest selector within a bound on what it loses, for --config");
  const auto flags = std::make_shared<TuneFlags>();
  const auto add = [&](const char* name, auto* value, const char* type, const std::string& help) {
    return app->add_option(name, *value, help)->type_name(type);
  };
  AddModelOption(app, &flags->engine.model, true);
  add("--text", &flags->text, "FILE", "The text to tune on")->required();
  add("--check-text", &flags->check_text, "FILE",
      "What is published is measured on this text; default: the second half of --text, which is "
      "then tuned on the first half of it alone");
  Limit(add("--kl", &flags->kl, "NATS",
            "The largest mean KL of the next token from dense attention's")
            ->capture_default_str(),
        0, 100);
  add("--context", &flags->context, "TOKENS",
      fmt::format("Tokens of a window; default: {}, or the model's context if that is smaller",
                  kContextDefault));
  Limit(add("--batch", &flags->batch, "N", "Sequences that decode at once while speed is measured")
            ->capture_default_str(),
        1, 1024);
  Limit(add("--tokens", &flags->tokens, "N", "Score about N tokens of each text")
            ->capture_default_str(),
        1, 1 << 24);
  Limit(add("--score", &flags->scored, "TOKENS",
            "Tokens at the end of each window that are decoded and scored")
            ->capture_default_str(),
        2, 1 << 20);
  add("--method", &flags->methods, "SPEC",
      "A setting to try, as in box:ratio=0.3 or SPEC@KV (may be repeated); default: points of "
      "docs/selection.md")
      ->allow_extra_args(false);
  add("--output", &flags->output, "FILE", "The configuration file that is written")
      ->capture_default_str();
  AddPluginOption(app, &flags->engine.plugins);
  AddJsonOption(app, &flags->json);
  AddEngineOptions(app, &flags->engine);
  for (const char* other : {"--ctx", "--trace"}) app->remove_option(app->get_option(other));
  AddExample(app,
             "tinyserve tune --model model.gguf --text book.txt --kl 0.006 --context 8000\n"
             "  tinyserve serve --model model.gguf --config tinyserve.toml");
  app->callback([=] { *run = [=] { return Tune(*flags); }; });
}

}  // namespace tinyserve
