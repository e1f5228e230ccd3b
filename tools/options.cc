#include "tools/options.h"

#include <fmt/format.h>

#include <CLI/Validators.hpp>
#include <algorithm>
#include <charconv>
#include <string_view>

#include "base/machine.h"

namespace tinyserve {
namespace {

// "ID:VALUE" of --logit-bias.
Result<std::pair<int32_t, float>> ParseBias(const std::string& text) {
  const char* end = text.data() + text.size();
  int32_t id = 0;
  float value = 0;
  const auto [colon, id_error] = std::from_chars(text.data(), end, id);
  if (id_error == std::errc() && colon != end && *colon == ':') {
    const auto [last, value_error] = std::from_chars(colon + 1, end, value);
    if (value_error == std::errc() && last == end) return std::pair(id, value);
  }
  return Status(Code::kInvalidArgument,
                fmt::format("--logit-bias {}: write a token id, a colon and a number from -100 to "
                            "100, as in 11:-5",
                            text));
}

// A name of the embedding API and the flag that sets it. Names that are plain words too count at a
// message's start alone, where the API puts the field that it refuses.
struct FlagOfField {
  const char* field;
  const char* flag;
  bool plain_word;
};
constexpr FlagOfField kFlags[] = {{"context_tokens", "--ctx", false},
                                  {"context_tokens", "--context", false},
                                  {"kv_memory_bytes", "--kv-memory", false},
                                  {"page_tokens", "--page-tokens", false},
                                  {"kv", "--kv", true},
                                  {"max_tokens", "--max-tokens", false},
                                  {"top_logprobs", "--logprobs", false},
                                  {"top_k", "--top-k", false},
                                  {"top_p", "--top-p", false},
                                  {"min_p", "--min-p", false},
                                  {"repetition_penalty", "--repetition-penalty", false},
                                  {"presence_penalty", "--presence-penalty", false},
                                  {"frequency_penalty", "--frequency-penalty", false},
                                  {"logit_bias", "--logit-bias", false},
                                  {"selector", "--selector", true},
                                  {"shadow_check", "--shadow-check", false},
                                  {"step_plugins", "--step-plugin", false},
                                  {"stop", "--stop", true},
                                  {"target", "--target", true},
                                  {"device", "--device", true},
                                  {"temperature", "--temperature", true},
                                  {"threads", "--threads", true}};

// Part of a longer name, of a path or of a key.
bool IsNamePart(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
         std::string_view("_-./").find(c) != std::string_view::npos;
}

}  // namespace

void Limit(CLI::Option* option, double low, double high) {
  option->description(fmt::format("{} ({} to {})", option->get_description(), low, high));
  option->check(
      [=](const std::string& text) {
        double value = 0;
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
        const bool whole = error == std::errc() && end == text.data() + text.size();
        if (whole && value >= low && value <= high) return std::string();
        return fmt::format("'{}' is not allowed: {} to {} are", text, low, high);
      },
      "");
}

void Choose(CLI::Option* option, const std::vector<std::string>& words) {
  std::string list;
  for (const std::string& word : words) list += (list.empty() ? "" : ", ") + word;
  option->description(fmt::format("{}: {}", option->get_description(), list));
  option->check(
      [=](const std::string& text) {
        if (std::find(words.begin(), words.end(), text) != words.end()) return std::string();
        return fmt::format("'{}' is not allowed: {} are", text, list);
      },
      "");
}

void AddModelOption(CLI::App* app, std::string* path, bool required) {
  app->add_option("-m,--model", *path, "GGUF file of the model; of a split model, its first file")
      ->type_name("FILE")
      ->required(required);
}

void AddConfigOption(CLI::App* app, EngineFlags* flags) {
  app->add_option("--config", flags->config,
                  "TOML file with these options (threads = 2), as `tinyserve tune` writes; the "
                  "command line wins")
      ->type_name("FILE");
}

void AddEngineOptions(CLI::App* app, EngineFlags* flags) {
  const auto add = [&](const char* name, auto* value, const char* type, const std::string& help) {
    return app->add_option(name, *value, help)->type_name(type)->group("Engine");
  };
  add("--ctx", &flags->context_tokens, "TOKENS",
      "Longest sequence; 0: what the model was trained for, as far as memory allows")
      ->capture_default_str();
  Limit(add("-t,--threads", &flags->threads, "N",
            fmt::format("Compute threads; 0: the cores that this process may use, here {}",
                        UsableCores()))
            ->capture_default_str(),
        0, 1024);
  CLI::AsSizeValue size(false);
  size.description("");
  add("--kv-memory", &flags->kv_memory_bytes, "BYTES",
      "Size of the KV cache, as in 512M or 2G; 0: eight full contexts, within half of the memory "
      "that this process may use")
      ->capture_default_str()
      ->transform(size);
  Choose(add("--kv", &flags->kv, "TYPE",
             "How keys and values are stored: as floats; in 8 bits (int8), keys in 8 and values "
             "in 4 (k8v4), both in 4 (int4); planes: in 8 bits as `default` reads them. Default: "
             "planes where the selector reads them, else f16"),
         {"f16", "f32", "bf16", "planes", "int8", "k8v4", "int4"});
  Choose(add("--compute", &flags->compute, "HOW",
             "Integer dot products over int8 activations, or the accuracy reference")
             ->capture_default_str(),
         {"fast", "f32"});
  add("--target", &flags->target, "NAME",
      "SIMD target (`tinyserve --version` lists them); default: TINYSERVE_TARGET if set, else the "
      "best of this machine");
  add("--device", &flags->device, "NAME",
      "What computes: cpu; cuda or cuda:N, which says what is missing where it cannot; auto: the "
      "first GPU that can compute what is asked, else the CPU")
      ->capture_default_str();
  Choose(add("--page-tokens", &flags->page_tokens, "N", "Tokens of a KV page; coded ones have 16")
             ->capture_default_str(),
         {"4", "8", "16", "32", "64"});
  add("--trace", &flags->trace, "FILE",
      "Write what every step and request did, and when, as a trace for https://ui.perfetto.dev");
}

void AddPluginOption(CLI::App* app, std::vector<std::string>* plugins) {
  app->add_option(
         "--plugin", *plugins,
         "Shared object that brings selectors or step plugins (tinyserve/plugin.h); may be "
         "repeated")
      ->type_name("FILE")
      ->group("Engine");
}

void AddShadowOption(CLI::App* app, double* share) {
  Limit(app->add_option("--shadow-check", *share,
                        "Hold this share of the tokens that select against dense attention, each "
                        "at one layer and KV head: missed mass and error")
            ->type_name("SHARE")
            ->capture_default_str()
            ->group("Engine"),
        0, 1);
}

void AddSelectorOptions(CLI::App* app, EngineFlags* flags) {
  AddPluginOption(app, &flags->plugins);
  AddShadowOption(app, &flags->shadow_check);
  app->add_option(
         "--selector", flags->selector,
         "Which KV pages generated tokens read, NAME[:key=value,...]; docs/selection.md has "
         "the list")
      ->type_name("SPEC")
      ->capture_default_str()
      ->group("Engine");
  app->add_option("--step-plugin", flags->step_plugins,
                  "What is decided about a generated token beside that, as in "
                  "early_exit:layer=20,entropy=0.5 (may be repeated); docs/selection.md has the "
                  "list")
      ->type_name("SPEC")
      ->allow_extra_args(false)
      ->group("Engine");
}

Status SamplingFlags::Apply(Request* request) const {
  request->max_tokens = max_tokens;
  request->sampling = sampling;
  request->stop = stop;
  request->ignore_eos = ignore_eos;
  for (const std::string& text : logit_bias) {
    TS_ASSIGN_OR_RETURN(const auto bias, ParseBias(text));
    request->sampling.logit_bias.push_back(bias);
  }
  return Status();
}

void AddSamplingOptions(CLI::App* app, SamplingFlags* flags) {
  SamplingOptions& s = flags->sampling;
  const auto add = [&](const char* name, auto* value, const char* type, const char* help) {
    return app->add_option(name, *value, help)
        ->type_name(type)
        ->capture_default_str()
        ->group("Sampling");
  };
  Limit(add("-n,--max-tokens", &flags->max_tokens, "N", "Longest answer in tokens"), 1, 1e9);
  Limit(add("--temperature", &s.temperature, "T",
            "0: always the likeliest token; higher: more varied"),
        0, 100);
  add("--top-k", &s.top_k, "K", "Draw among the K likeliest tokens; 0: off");
  Limit(add("--top-p", &s.top_p, "P",
            "Draw among the likeliest tokens that together have this probability"),
        1e-6, 1);
  Limit(
      add("--min-p", &s.min_p, "P", "Drop tokens below this share of the likeliest's probability"),
      0, 0.999);
  Limit(add("--repetition-penalty", &s.repetition_penalty, "X",
            "Makes tokens that were already seen less likely; 1: off"),
        0.001, 100);
  Limit(add("--presence-penalty", &s.presence_penalty, "X",
            "Subtracted once from the logit of a token that was generated before"),
        -2, 2);
  Limit(add("--frequency-penalty", &s.frequency_penalty, "X",
            "Subtracted for each time that a token was generated before"),
        -2, 2);
  add("--logit-bias", &flags->logit_bias, "ID:VALUE",
      "Added to a token's logit, -100 to 100 (may be repeated)");
  add("--seed", &s.seed, "N", "The same seed gives the same text");
  add("--stop", &flags->stop, "TEXT", "End the answer before this text (may be repeated)");
  app->add_flag("--ignore-eos", flags->ignore_eos, "Go on to --max-tokens, whatever the model says")
      ->group("Sampling");
}

void AddLayersOption(CLI::App* app, bool* layers) {
  app->add_flag("--layers", *layers,
                "Also show what selection did by layer and KV head: pages, hits, bytes, times");
}

void AddJsonOption(CLI::App* app, std::string* path) {
  // A default value is what an option without its value gets.
  app->add_option("--json", *path, "Write JSON to FILE, or to standard output for -")
      ->type_name("[FILE|-]")
      ->expected(0, 1)
      ->default_str("-");
}

std::string NameFlags(std::string message, const CLI::App& app) {
  for (const FlagOfField& name : kFlags) {
    if (app.get_option_no_throw(name.flag) == nullptr) continue;
    const size_t length = std::string_view(name.field).size();
    for (size_t at = 0; (at = message.find(name.field, at)) != std::string::npos;) {
      const size_t end = at + length;
      const bool whole = (at == 0 || !IsNamePart(message[at - 1])) &&
                         (end == message.size() || !IsNamePart(message[end]));
      if (whole && (at == 0 || !name.plain_word)) {
        message.replace(at, length, name.flag);
        at += std::string_view(name.flag).size();
      } else {
        at = end;
      }
    }
  }
  return message;
}

void AddExample(CLI::App* app, const std::string& example) {
  app->footer("Example:\n  " + example);
}

}  // namespace tinyserve
