#include "tools/eval_methods.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <functional>

#include "engine/selection_stats.h"
#include "tools/eval_plot.h"
#include "tools/eval_report.h"
#include "tools/eval_runner.h"
#include "tools/layer_report.h"
#include "tools/loaded_model.h"
#include "tools/progress.h"
#include "tools/trace_report.h"

namespace tinyserve {
namespace {

constexpr uint32_t kChunkTokens = 512;  // prompt tokens of one step

struct EvalCase {
  EvalShape shape;
  bool is_long;
  std::vector<uint64_t> windows;  // where they start in the text
};

// What all cases share.
struct MethodEval {
  const MethodEvalFlags* flags;
  const EngineFlags* engine;
  std::vector<Method> methods;
  LoadedModel model;
  TextTokens text;
};

// Where the windows of a case start in the text. Errors: kInvalidArgument (a short text).
Result<std::vector<uint64_t>> WindowsOf(const MethodEval& eval, const EvalShape& shape) {
  const uint64_t tokens =
      eval.flags->tokens == 0 ? MethodEvalFlags::kScoredDefault : eval.flags->tokens;
  const uint64_t of_text = shape.tokens() - eval.text.prefix.size();
  std::vector<uint64_t> windows = SpreadWindows(
      eval.text.tokens.size(), of_text, (tokens + shape.scored_tokens - 1) / shape.scored_tokens);
  if (windows.empty()) {
    return Status(Code::kInvalidArgument,
                  fmt::format("{}: {} tokens are too few for a context of {}", eval.flags->text,
                              eval.text.tokens.size(), shape.tokens()));
  }
  if (windows.size() * shape.scored_tokens < tokens) {
    fmt::print(stderr, "{}: at a context of {}, the text has windows for {} of {} scored tokens\n",
               eval.flags->text, shape.tokens(), windows.size() * shape.scored_tokens, tokens);
  }
  return windows;
}

// Contexts first, then the long run. Errors: kInvalidArgument.
Result<std::vector<EvalCase>> PlanCases(const MethodEval& eval) {
  const MethodEvalFlags& flags = *eval.flags;
  const uint32_t trained = eval.model.config().context, scored = flags.window_scored;
  const auto prefix = static_cast<uint32_t>(eval.text.prefix.size());
  std::vector<uint32_t> contexts = flags.contexts;
  if (contexts.empty() && flags.long_tokens == 0) {
    contexts.push_back(std::min(MethodEvalFlags::kContextDefault, trained));
  }
  std::vector<EvalCase> cases;
  for (uint32_t context : contexts) {
    if (context > trained || context <= scored + prefix) {
      return Status(Code::kInvalidArgument,
                    fmt::format("--context {}: allowed are {} to {}, the context that the model "
                                "was trained for, when --score is {}",
                                context, scored + prefix + 1, trained, scored));
    }
    cases.push_back({{.prompt_tokens = context - scored, .scored_tokens = scored}, false, {}});
  }
  if (flags.long_tokens > 0) {
    if (uint64_t{flags.long_prompt} + flags.long_tokens > trained || flags.long_prompt <= prefix) {
      return Status(Code::kInvalidArgument,
                    fmt::format("--long {} after --long-prompt {}: the model was trained for {} "
                                "tokens, and the prompt needs at least {}",
                                flags.long_tokens, flags.long_prompt, trained, prefix + 1));
    }
    cases.push_back(
        {{.prompt_tokens = flags.long_prompt, .scored_tokens = flags.long_tokens}, true, {}});
  }
  for (EvalCase& c : cases) {
    TS_ASSIGN_OR_RETURN(c.windows, WindowsOf(eval, c.shape));
  }
  return cases;
}

double Ratio(const std::vector<double>& of, const std::vector<double>& over) {
  std::vector<double> ratios;
  for (size_t i = 0; i < of.size(); ++i) ratios.push_back(of[i] / over[i]);
  return Median(std::move(ratios));
}

Result<EvalLine> LineOf(const MethodEval& eval, const EvalCase& c, const EvalRunner& runner,
                        size_t method) {
  const EvalRun &run = runner.run(method), &dense = runner.dense();
  const Method& m = eval.methods[method];
  const EngineFlags& engine = *eval.engine;
  TS_ASSIGN_OR_RETURN(const SelectorNeeds kept,
                      eval.model.NeedsOf(m.kv, {&m.spec, 1}, engine.page_tokens));
  TS_ASSIGN_OR_RETURN(const uint64_t f16_bytes,
                      eval.model.KvBytesPerToken("f16", engine.page_tokens, {}));
  TS_ASSIGN_OR_RETURN(const uint64_t method_bytes,
                      eval.model.KvBytesPerToken(m.kv, engine.page_tokens, kept));
  // Beside its pages: its newest tokens, where pages are coded, and its states.
  TS_ASSIGN_OR_RETURN(const uint64_t window_bytes,
                      eval.model.KvWindowBytes(m.kv, engine.page_tokens));
  const ModelConfig& config = eval.model.config();
  const uint64_t state_bytes = uint64_t{kept.state_bytes} * config.layers * config.kv_heads;
  const uint64_t block = BlockTokensFor(engine.page_tokens);
  const uint64_t held = (c.shape.tokens() + block - 1) / block * block;
  const uint64_t windows = run.figures.tokens() / c.shape.scored_tokens;
  const auto a_token = [](uint64_t count, const EvalRun& r) {
    return static_cast<double>(count) / static_cast<double>(r.decoded_tokens);
  };
  const MethodFigures& f = run.figures;
  EvalLine line{
      .method = m.typed,
      .resolved = m.resolved,
      .kv = m.kv,
      .context = c.shape.tokens(),
      .window_scored = c.shape.scored_tokens,
      .is_long = c.is_long,
      .windows = windows,
      .scored_tokens = f.tokens(),
      .kl = f.kl(),
      .kl_p99 = f.kl_quantile(0.99),
      .top1 = f.top1(),
      .dppl = f.dppl(),
      .dppl_se = f.dppl_se(),
      .dense_perplexity = f.dense_perplexity(),
      .kl_by_position = f.KlByPosition(kKlPeriodTokens),
      .kv_bytes = (held - run.dropped_tokens / windows) * method_bytes + window_bytes + state_bytes,
      .dense_kv_bytes = held * f16_bytes,
      .kv_bytes_read_per_token = a_token(run.kv_bytes_read, run),
      .dense_bytes_read_per_token =
          a_token(dense.pages_held * engine.page_tokens * f16_bytes, dense),
      .decode_tokens_per_s = Median(run.tokens_per_s),
      .dense_tokens_per_s = Median(dense.tokens_per_s),
      .speedup = Ratio(run.tokens_per_s, dense.tokens_per_s),
      .selector_failures = run.failures,
      .shadow = runner.shadow(method)};
  const std::vector<LayerSelection> layers = LayersOf(run.strips, eval.model.config().kv_heads);
  line.hit_rate = HitRate(SumOf(layers));
  if (eval.flags->layers) line.layers = layers;
  return Result<EvalLine>(std::move(line));
}

// `progress`: 0..1 of the case, and the window that is run.
Result<std::vector<EvalLine>> RunCase(
    const MethodEval& eval, const EvalCase& c,
    const std::function<void(size_t window, double fraction)>& progress) {
  const EvalRunnerOptions options{.model = &eval.model,
                                  .base_kv = BaseKv(eval.engine->kv),
                                  .page_tokens = eval.engine->page_tokens,
                                  .chunk_tokens = kChunkTokens,
                                  .methods = eval.methods,
                                  .kv_bytes_max = KvBytesMax(*eval.engine, eval.model),
                                  .timed_selection = eval.flags->layers,
                                  .shadow_check = eval.flags->shadow_check};
  TS_ASSIGN_OR_RETURN(const std::unique_ptr<EvalRunner> runner,
                      EvalRunner::Create(options, c.shape));
  const size_t of_text = c.shape.tokens() + 1 - eval.text.prefix.size();
  for (size_t w = 0; w < c.windows.size(); ++w) {
    std::vector<int32_t> tokens = eval.text.prefix;
    const auto first = eval.text.tokens.begin() + static_cast<int64_t>(c.windows[w]);
    tokens.insert(tokens.end(), first, first + static_cast<int64_t>(of_text));
    TS_RETURN_IF_ERROR(runner->RunWindow(tokens, [&](double part) {
      progress(w, (static_cast<double>(w) + part) / static_cast<double>(c.windows.size()));
    }));
  }
  std::vector<EvalLine> lines;
  for (size_t method = 0; method < eval.methods.size(); ++method) {
    TS_ASSIGN_OR_RETURN(EvalLine line, LineOf(eval, c, *runner, method));
    lines.push_back(std::move(line));
  }
  return lines;
}

// Runs all cases; prints each one's lines when it is done.
Result<std::vector<EvalLine>> RunCases(const MethodEval& eval, const std::vector<EvalCase>& cases,
                                       const EvalSetup& setup, JsonOutput* output) {
  std::vector<std::string> storages = StoragesOf(eval.methods);
  if (std::find(storages.begin(), storages.end(), setup.base_kv) == storages.end())
    storages.push_back(setup.base_kv);
  size_t columns = 6;
  for (const Method& method : eval.methods) columns = std::max(columns, method.typed.size());
  if (!output->on_stdout())
    fmt::print("{}{}", ResolvedLines(eval.methods), EvalTableHead(setup, columns));
  const auto work = [&](const EvalCase& c) {
    return WindowWork(c.shape, eval.methods.size(), storages.size()) *
           static_cast<double>(c.windows.size());
  };
  double total = 0, done = 0;
  for (const EvalCase& c : cases) total += work(c);
  Progress progress("", 0.3, 1.0);
  std::vector<EvalLine> lines;
  for (const EvalCase& c : cases) {
    const auto update = [&](size_t window, double fraction) {
      progress.SetLabel(
          fmt::format("{} tokens, window {}/{}", c.shape.tokens(), window + 1, c.windows.size()));
      progress.Update((done + fraction * work(c)) / total);
    };
    TS_ASSIGN_OR_RETURN(const std::vector<EvalLine> more, RunCase(eval, c, update));
    done += work(c);
    progress.Clear();
    for (const EvalLine& line : more) {
      if (output->wanted()) TS_RETURN_IF_ERROR(output->Write(EvalLineJson(line, setup)));
      if (!output->on_stdout()) fmt::print("{}", EvalTableRow(line, columns));
      lines.push_back(line);
    }
    std::fflush(stdout);
  }
  return lines;
}

Status WritePlot(const std::string& path, const std::string& svg) {
  std::FILE* file = std::fopen(path.c_str(), "we");
  const bool written =
      file != nullptr && std::fwrite(svg.data(), 1, svg.size(), file) == svg.size();
  if (file == nullptr || std::fclose(file) != 0 || !written) {
    return Status(Code::kIo, fmt::format("--plot: cannot write {}", path));
  }
  return Status();
}

}  // namespace

Result<int> EvaluateMethods(const MethodEvalFlags& flags, const EngineFlags& engine,
                            JsonOutput* output) {
  MethodEval eval{.flags = &flags, .engine = &engine, .methods = {}, .model = {}, .text = {}};
  TS_ASSIGN_OR_RETURN(eval.methods, LoadMethods(engine, flags.methods));
  TS_ASSIGN_OR_RETURN(eval.model, LoadWithProgress(engine));
  TS_ASSIGN_OR_RETURN(eval.text, ReadTextTokens(flags.text, *eval.model.file));
  TS_ASSIGN_OR_RETURN(const std::vector<EvalCase> cases, PlanCases(eval));
  const EvalSetup setup{.model = eval.model.config().name,
                        .text = flags.text,
                        .target = eval.model.backend->target(),
                        .base_kv = BaseKv(engine.kv),
                        .compute = engine.compute,
                        .threads = eval.model.threads->threads(),
                        .page_tokens = engine.page_tokens};
  TS_ASSIGN_OR_RETURN(const std::vector<EvalLine> lines, RunCases(eval, cases, setup, output));
  TS_RETURN_IF_ERROR(EndTrace(eval.model, engine));
  if (!flags.plot.empty()) TS_RETURN_IF_ERROR(WritePlot(flags.plot, EvalPlot(lines, setup)));
  return 0;
}

}  // namespace tinyserve
