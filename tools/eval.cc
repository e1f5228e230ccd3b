// `tinyserve eval`: perplexity of a text, and what selectors change of its predictions.
#include <fmt/format.h>

#include <algorithm>
#include <boost/json/object.hpp>
#include <chrono>
#include <memory>

#include "base/file.h"
#include "tools/commands.h"
#include "tools/eval_methods.h"
#include "tools/eval_tasks.h"
#include "tools/format.h"
#include "tools/generation.h"
#include "tools/json_output.h"
#include "tools/options.h"
#include "tools/perplexity.h"
#include "tools/progress.h"
#include "tools/retrieval.h"
#include "tools/trace_report.h"

namespace tinyserve {
namespace {

constexpr uint32_t kWindowTokensDefault = 2048;
constexpr uint64_t kTextBytesMax = 256 << 20;

struct EvalFlags {
  EngineFlags engine;
  MethodEvalFlags methods;  // --context and --tokens are its own, too
  std::string text, json;
  uint32_t stride = 0, tokens_max = 0;
};

struct EvalText {
  std::vector<int32_t> prefix;  // what the model wants before every text (bos), maybe nothing
  std::vector<int32_t> tokens;
};

struct EvalResult {
  Perplexity perplexity;
  uint32_t window_tokens, stride;
  size_t windows;
  double seconds;
  uint64_t processed_tokens;
};

Result<EvalText> ReadText(const EvalFlags& flags, const Engine& engine) {
  TS_ASSIGN_OR_RETURN(const std::string text, ReadFile(flags.text, kTextBytesMax));
  EvalText out;
  TS_ASSIGN_OR_RETURN(out.prefix, engine.Tokenize("", true, false));
  TS_ASSIGN_OR_RETURN(out.tokens, engine.Tokenize(text, false, false));
  if (flags.tokens_max > 0 && out.tokens.size() > flags.tokens_max)
    out.tokens.resize(flags.tokens_max);
  if (out.tokens.size() < 2) {
    return Status(Code::kInvalidArgument,
                  fmt::format("{}: {} tokens are too few to score, at least 2 are needed",
                              flags.text, out.tokens.size()));
  }
  return out;
}

// The windows' text tokens and stride, from the flags and what the engine holds.
Status ChooseWindow(const EvalFlags& flags, const Engine& engine, const EvalText& text,
                    EvalResult* result) {
  const auto prefix = static_cast<uint32_t>(text.prefix.size());
  const uint32_t context = flags.engine.context_tokens == 0
                               ? std::min(kWindowTokensDefault, engine.info().context_tokens)
                               : flags.engine.context_tokens;
  if (context < prefix + 2) {
    return Status(Code::kInvalidArgument,
                  fmt::format("--context {}: at least {} tokens are needed", context, prefix + 2));
  }
  result->window_tokens = context - prefix;
  result->stride = flags.stride == 0 ? result->window_tokens : flags.stride;
  if (result->stride > result->window_tokens) {
    return Status(Code::kInvalidArgument,
                  fmt::format("--stride {}: allowed are 1 to {}, the tokens of a window",
                              result->stride, result->window_tokens));
  }
  return Status();
}

Status ScoreWindow(Engine* engine, const EvalText& text, const Window& window, EvalResult* result,
                   const std::function<void(double)>& progress) {
  Request request;
  request.prompt = text.prefix;
  request.prompt.insert(request.prompt.end(), text.tokens.begin() + window.first,
                        text.tokens.begin() + window.last);
  request.max_tokens = 0;
  request.prompt_logprobs = true;
  const GenerateHooks hooks{
      .show = {},
      .prompt_progress = [&](uint32_t done,
                             uint32_t total) { progress(static_cast<double>(done) / total); },
      .interrupt = nullptr};
  TS_ASSIGN_OR_RETURN(const GeneratedAnswer generation, Generate(engine, request, hooks));
  // Log-probability i belongs to prompt token i + 1; the very first token of a text has none.
  const std::span<const float> logprobs(generation.prompt_logprobs);
  const size_t position = text.prefix.size() + (window.scored - window.first);
  result->perplexity.Add(logprobs.subspan(std::max<size_t>(position, 1) - 1));
  result->processed_tokens += request.prompt.size();
  return Status();
}

Result<EvalResult> Evaluate(const EvalFlags& flags, Engine* engine) {
  TS_ASSIGN_OR_RETURN(const EvalText text, ReadText(flags, *engine));
  EvalResult result{};
  TS_RETURN_IF_ERROR(ChooseWindow(flags, *engine, text, &result));
  const std::vector<Window> windows =
      PlanWindows(static_cast<uint32_t>(text.tokens.size()), result.window_tokens, result.stride);
  result.windows = windows.size();
  Progress progress("Scoring", 0.3, 1.0);
  const auto start = std::chrono::steady_clock::now();
  for (size_t w = 0; w < windows.size(); ++w) {
    const auto update = [&](double part) {
      progress.Update((static_cast<double>(w) + part) / static_cast<double>(windows.size()));
    };
    TS_RETURN_IF_ERROR(ScoreWindow(engine, text, windows[w], &result, update));
    progress.SetLabel(fmt::format("Scoring  perplexity {:.3f}", result.perplexity.perplexity()));
  }
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

boost::json::object EvalJson(const EvalFlags& flags, const ModelInfo& info, const EvalResult& r) {
  return {{"engine", "tinyserve"},
          {"kind", "perplexity"},
          {"model", info.name},
          {"text", flags.text},
          {"perplexity", r.perplexity.perplexity()},
          {"perplexity_error", r.perplexity.error()},
          {"nll_mean", r.perplexity.mean_nll()},
          {"tokens", r.perplexity.tokens()},
          {"windows", r.windows},
          {"window_tokens", r.window_tokens},
          {"stride", r.stride},
          {"seconds", r.seconds},
          {"tokens_per_s", static_cast<double>(r.processed_tokens) / r.seconds},
          {"target", info.target},
          {"kv", info.kv},
          {"compute", flags.engine.compute}};
}

Result<int> EvalPerplexity(const EvalFlags& flags, JsonOutput* output) {
  TS_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, OpenEngine(flags.engine.ToOptions()));
  TS_ASSIGN_OR_RETURN(const EvalResult result, Evaluate(flags, engine.get()));
  TS_RETURN_IF_ERROR(EndTrace(engine.get(), flags.engine));
  if (output->wanted()) TS_RETURN_IF_ERROR(output->Write(EvalJson(flags, engine->info(), result)));
  if (!output->on_stdout()) {
    fmt::print("perplexity  {:.4f} +- {:.4f}\ntokens      {} scored, {} windows of {}\n",
               result.perplexity.perplexity(), result.perplexity.error(),
               result.perplexity.tokens(), result.windows, result.window_tokens);
    fmt::print("speed       {:.1f} tokens/s, {}\n",
               static_cast<double>(result.processed_tokens) / result.seconds,
               FormatSeconds(result.seconds));
  }
  return 0;
}

Result<int> Eval(EvalFlags flags) {
  TS_ASSIGN_OR_RETURN(JsonOutput output, JsonOutput::Open(flags.json));
  const std::vector<uint32_t>& contexts = flags.methods.contexts;
  if (!flags.methods.methods.empty()) {
    flags.methods.text = flags.text;
    flags.methods.tokens = flags.tokens_max;
    return flags.methods.tasks.empty() ? EvaluateMethods(flags.methods, flags.engine, &output)
                                       : EvaluateTasks(flags.methods, flags.engine, &output);
  }
  if (contexts.size() > 1) {
    return Status(Code::kInvalidArgument,
                  "--context: give one value, or say with --method what to compare at several");
  }
  if (!contexts.empty()) flags.engine.context_tokens = contexts[0];
  return EvalPerplexity(flags, &output);
}

void AddMethodOptions(CLI::App* app, MethodEvalFlags* flags) {
  CLI::Option* methods =
      app->add_option("--method", flags->methods,
                      "Compare this selector's predictions with dense attention's (may be "
                      "repeated), as in box:ratio=0.3; full: dense attention itself; SPEC@KV: "
                      "over keys and values stored so")
          ->type_name("SPEC")
          ->allow_extra_args(false)
          ->group("Methods");
  const auto add = [&](const char* name, auto* value, const char* type, const char* help) {
    return app->add_option(name, *value, help)->type_name(type)->needs(methods)->group("Methods");
  };
  Limit(add("--score", &flags->window_scored, "TOKENS",
            "Tokens at the end of each context that are decoded and scored")
            ->capture_default_str(),
        1, 1 << 20);
  Limit(add("--long", &flags->long_tokens, "TOKENS",
            "Decode so many tokens in one go, too, and show where in them predictions drift; 0: "
            "no")
            ->capture_default_str(),
        0, 1 << 20);
  Limit(add("--long-prompt", &flags->long_prompt, "TOKENS", "Tokens before those of --long")
            ->capture_default_str(),
        1, 1 << 20);
  CLI::Option* tasks =
      add("--task", &flags->tasks, "NAME",
          "Ask for what is hidden in a context, with the text as filler, in place of scoring the "
          "text (may be repeated)")
          ->allow_extra_args(false);
  Choose(tasks, RetrievalTaskNames());
  Limit(add("--trials", &flags->trials, "N", "Of each depth or conversation of a task")
            ->capture_default_str()
            ->needs(tasks),
        1, 1000);
  app->add_flag("--layers", flags->layers,
                "Also show what each method's selection did by layer and KV head")
      ->needs(methods)
      ->group("Methods");
  add("--plot", &flags->plot, "FILE.svg",
      "Draw KL over bytes read and over decode speed, with the Pareto front");
  for (const char* other : {"--long", "--tokens", "--layers", "--plot", "--shadow-check"})
    tasks->excludes(app->get_option(other));
}

}  // namespace

void AddEval(CLI::App* parent, Command* run) {
  CLI::App* app = parent->add_subcommand(
      "eval", "Measure a model's perplexity on a text, or what selectors change of it");
  const auto flags = std::make_shared<EvalFlags>();
  AddModelOption(app, &flags->engine.model, true);
  app->add_option("--text", flags->text, "The text to score")->type_name("FILE")->required();
  CLI::Option* stride =
      app->add_option("--stride", flags->stride,
                      "Tokens from one window's start to the next; smaller gives every token more "
                      "context; 0: windows do not overlap")
          ->type_name("TOKENS")
          ->capture_default_str();
  app->add_option("--tokens", flags->tokens_max,
                  fmt::format("Score only the first N tokens; 0: all. With --method: score about "
                              "N tokens of each context, spread over the text; 0: {}",
                              MethodEvalFlags::kScoredDefault))
      ->type_name("N")
      ->capture_default_str();
  AddJsonOption(app, &flags->json);
  AddShadowOption(app, &flags->methods.shadow_check);
  AddMethodOptions(app, &flags->methods);
  AddPluginOption(app, &flags->engine.plugins);
  stride->excludes(app->get_option("--method"));
  AddEngineOptions(app, &flags->engine);
  // The same figure, under the name that fits here.
  app->remove_option(app->get_option("--ctx"));
  app->add_option("--context", flags->methods.contexts,
                  fmt::format("Tokens of a window; default: {}, with --method {}, or the model's "
                              "context if that is smaller. With --method, several are allowed",
                              kWindowTokensDefault, MethodEvalFlags::kContextDefault))
      ->type_name("TOKENS,...")
      ->delimiter(',');
  AddExample(app,
             "tinyserve eval --model model.gguf --text book.txt --context 1024\n"
             "  tinyserve eval --model model.gguf --text book.txt --context 4096,8000 "
             "--method full \\\n      --method box:ratio=0.3");
  app->callback([=] { *run = [=] { return Eval(*flags); }; });
}

}  // namespace tinyserve
