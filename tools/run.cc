// `tinyserve run`: one prompt, one answer.
#include <fmt/format.h>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <chrono>
#include <iterator>
#include <memory>

#include "base/file.h"
#include "tools/commands.h"
#include "tools/config_file.h"
#include "tools/format.h"
#include "tools/generation.h"
#include "tools/json_output.h"
#include "tools/layer_report.h"
#include "tools/options.h"
#include "tools/run_cost.h"
#include "tools/shadow_report.h"
#include "tools/step_report.h"
#include "tools/terminal.h"
#include "tools/trace_report.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

constexpr uint64_t kPromptBytesMax = 64 << 20;

struct RunFlags {
  EngineFlags engine;
  SamplingFlags sampling;
  CLI::Option* prompt_option = nullptr;
  std::string prompt, file, system, json;
  int32_t logprobs = -1;
  bool raw = false, stats = false, quiet = false, layers = false;
};

Result<std::string> ReadStdin() {
  if (StdinIsTerminal()) fmt::print(stderr, "Type the prompt, then Ctrl-D:\n");
  std::string text;
  char buffer[1 << 16];
  for (size_t got; (got = std::fread(buffer, 1, sizeof buffer, stdin)) > 0;) {
    text.append(buffer, got);
    if (text.size() > kPromptBytesMax) {
      return Status(Code::kInvalidArgument,
                    fmt::format("standard input holds more than {}: no context is that long",
                                FormatBytes(kPromptBytesMax)));
    }
  }
  return text;
}

Result<std::string> ReadPrompt(const RunFlags& flags) {
  std::string text = flags.prompt;
  if (!flags.file.empty()) {
    TS_ASSIGN_OR_RETURN(text, ReadFile(flags.file, kPromptBytesMax));
  } else if (flags.prompt_option->count() == 0) {
    TS_ASSIGN_OR_RETURN(text, ReadStdin());
  }
  if (text.empty()) {
    return Status(
        Code::kInvalidArgument,
        "the prompt is empty: give --prompt TEXT, --file FILE, or text on standard input");
  }
  return text;
}

// The prompt's tokens: through the chat template where the model has one, unless --raw.
Result<std::vector<int32_t>> PromptTokens(const Engine& engine, const RunFlags& flags,
                                          const std::string& prompt) {
  if (flags.raw || (!engine.info().has_chat_template && flags.system.empty())) {
    return engine.Tokenize(prompt, /*add_special=*/true, /*parse_special=*/flags.raw);
  }
  std::vector<Message> messages;
  if (!flags.system.empty()) messages.push_back({"system", flags.system});
  messages.push_back({"user", prompt});
  TS_ASSIGN_OR_RETURN(const std::string text, engine.RenderChat(messages, true));
  return engine.Tokenize(text, /*add_special=*/false, /*parse_special=*/true);
}

// Cuts max_tokens to what the context holds, and says so.
Status FitRequest(const ModelInfo& info, Request* request) {
  const auto prompt = static_cast<uint32_t>(request->prompt.size());
  if (prompt >= info.context_tokens) {
    return Status(Code::kInvalidArgument,
                  fmt::format("the prompt has {} tokens: the context holds {}, the answer's "
                              "included. Shorten the prompt{}",
                              prompt, info.context_tokens,
                              info.context_tokens < info.context_trained
                                  ? fmt::format(", or raise --ctx (up to {}) and --kv-memory",
                                                info.context_trained)
                                  : ""));
  }
  const uint32_t room = info.context_tokens - prompt;
  if (request->max_tokens > room) {
    fmt::print(stderr, "tinyserve: the context of {} tokens leaves {} for the answer\n",
               info.context_tokens, room);
    request->max_tokens = room;
  }
  return Status();
}

Result<json::array> TokensJson(const Engine& engine, const GeneratedAnswer& generation,
                               bool logprobs) {
  json::array tokens;
  for (const SampledToken& sampled : generation.tokens) {
    TS_ASSIGN_OR_RETURN(const std::string text, engine.Detokenize({sampled.token}));
    json::object token = {{"id", sampled.token}, {"text", text}};
    if (logprobs) {
      token["logprob"] = sampled.logprob;
      json::array top;
      for (const TokenLogprob& other : sampled.top) {
        TS_ASSIGN_OR_RETURN(const std::string other_text, engine.Detokenize({other.token}));
        top.push_back(
            json::object{{"id", other.token}, {"text", other_text}, {"logprob", other.logprob}});
      }
      token["top"] = std::move(top);
    }
    tokens.push_back(std::move(token));
  }
  return tokens;
}

// Log-probabilities as a table on standard error, a row a token.
Status PrintLogprobs(const Engine& engine, const GeneratedAnswer& generation) {
  for (const SampledToken& sampled : generation.tokens) {
    TS_ASSIGN_OR_RETURN(const std::string text, engine.Detokenize({sampled.token}));
    std::string line = fmt::format("{:>8.3f}  {:>6} '{}'", sampled.logprob, sampled.token,
                                   PrintableLine(text, 24));
    const char* separator = "  |";
    for (const TokenLogprob& other : sampled.top) {
      TS_ASSIGN_OR_RETURN(const std::string other_text, engine.Detokenize({other.token}));
      line +=
          fmt::format("{} '{}' {:.3f}", separator, PrintableLine(other_text, 24), other.logprob);
      separator = ",";
    }
    fmt::print(stderr, "{}\n", line);
  }
  return Status();
}

Result<int> Report(const RunFlags& flags, Engine* opened, const GeneratedAnswer& generation,
                   double load_seconds, JsonOutput* output) {
  const Engine& engine = *opened;
  const std::vector<ShadowStats> shadow = engine.stats().shadow;  // of the one selector, or nothing
  const std::vector<StepPluginStats> steps = engine.stats().step_plugins;
  RunCost cost = CostOf(generation.usage, engine.info(), {}, engine.stats(), load_seconds);
  if (flags.logprobs >= 0 && !output->wanted())
    TS_RETURN_IF_ERROR(PrintLogprobs(engine, generation));
  if ((StderrIsTerminal() && !flags.quiet) || flags.stats) {
    cost.bandwidth_bytes_per_s = QuickBandwidth(engine.info().threads);
  }
  if (output->wanted()) {
    TS_ASSIGN_OR_RETURN(json::array tokens, TokensJson(engine, generation, flags.logprobs >= 0));
    json::object line = {{"engine", "tinyserve"},
                         {"model", engine.info().name},
                         {"target", engine.info().target},
                         {"text", generation.text},
                         {"finish", FinishName(generation.finish)},
                         {"tokens", std::move(tokens)},
                         {"cost", CostJson(cost)}};
    if (!steps.empty()) line["step_plugins"] = StepPluginsJson(steps);
    if (!shadow.empty()) line["shadow"] = ShadowJson(shadow.front());
    if (flags.layers) line["layers"] = LayersJson(engine.layer_selection());
    TS_RETURN_IF_ERROR(output->Write(line));
  } else if (flags.layers) {
    fmt::print(stderr, "\n{}", LayerTable(engine.layer_selection()));
  }
  if (!flags.quiet) fmt::print(stderr, "\n{}", FormatCost(cost));
  if (!flags.quiet) fmt::print(stderr, "{}", StepPluginsText(steps));
  if (!flags.quiet && !shadow.empty()) fmt::print(stderr, "{}\n", ShadowText(shadow.front()));
  TS_RETURN_IF_ERROR(EndTrace(opened, flags.engine, flags.quiet));
  return generation.interrupted ? kExitInterrupted : 0;
}

Result<int> Run(const RunFlags& flags, CLI::App* app) {
  TS_RETURN_IF_ERROR(ApplyConfigFile(flags.engine.config, app));
  TS_RETURN_IF_ERROR(RequireModel(flags.engine));
  Request request;
  TS_RETURN_IF_ERROR(flags.sampling.Apply(&request));
  request.top_logprobs = flags.logprobs;
  TS_ASSIGN_OR_RETURN(const std::string prompt, ReadPrompt(flags));
  TS_ASSIGN_OR_RETURN(JsonOutput output, JsonOutput::Open(flags.json));
  EngineOptions options = flags.engine.ToOptions();
  options.time_selection = flags.layers;
  options.prefix_cache = false;  // one request: nothing comes after it
  const auto start = std::chrono::steady_clock::now();
  TS_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, OpenEngine(options));
  const double load_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  TS_ASSIGN_OR_RETURN(request.prompt, PromptTokens(*engine, flags, prompt));
  TS_RETURN_IF_ERROR(FitRequest(engine->info(), &request));

  Status shown;
  InterruptFlag interrupt;
  GenerateHooks hooks{.interrupt = &interrupt};
  if (!output.on_stdout()) {
    hooks.show = [&](std::string_view text) {
      if (shown.ok()) shown = ShowText(text);
    };
  }
  TS_ASSIGN_OR_RETURN(const GeneratedAnswer generation, Generate(engine.get(), request, hooks));
  if (!output.on_stdout() && shown.ok()) shown = ShowText("\n");
  TS_RETURN_IF_ERROR(shown);
  return Report(flags, engine.get(), generation, load_seconds, &output);
}

}  // namespace

void AddRun(CLI::App* parent, Command* run) {
  CLI::App* app =
      parent->add_subcommand("run", "Answer one prompt: an option, a file or standard input");
  const auto flags = std::make_shared<RunFlags>();
  AddModelOption(app, &flags->engine.model, false);
  AddConfigOption(app, &flags->engine);
  flags->prompt_option =
      app->add_option("-p,--prompt", flags->prompt, "The prompt; default: standard input")
          ->type_name("TEXT");
  app->add_option("-f,--file", flags->file, "Read the prompt from this file")
      ->type_name("FILE")
      ->excludes(flags->prompt_option);
  app->add_option("--system", flags->system, "System message before the prompt")->type_name("TEXT");
  app->add_flag("--raw", flags->raw,
                "Continue the text as it is: no chat template, control tokens may be spelled out");
  Limit(app->add_option("--logprobs", flags->logprobs,
                        "Report each token's log-probability and the N likeliest tokens")
            ->type_name("N"),
        0, 20);
  CLI::Option* stats = app->add_flag(
      "--stats", flags->stats, "Measure this machine's bandwidth even where no one is watching");
  app->add_flag("-q,--quiet", flags->quiet, "Print the answer and no figures")->excludes(stats);
  AddLayersOption(app, &flags->layers);
  AddJsonOption(app, &flags->json);
  AddSamplingOptions(app, &flags->sampling);
  AddEngineOptions(app, &flags->engine);
  AddSelectorOptions(app, &flags->engine);
  AddExample(app,
             "tinyserve run --model model.gguf --prompt \"What is a cache?\" --max-tokens 100\n"
             "  tinyserve run --model model.gguf --system \"Summarise the text.\" < report.txt");
  app->callback([=] { *run = [=] { return Run(*flags, app); }; });
}

}  // namespace tinyserve
