// The options that subcommands share, each declared once: name, default, range and help.
#ifndef TINYSERVE_TOOLS_OPTIONS_H_
#define TINYSERVE_TOOLS_OPTIONS_H_

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "tinyserve/engine.h"
#include "tinyserve/status.h"
#include "tools/engine_flags.h"

namespace tinyserve {

void AddModelOption(CLI::App* app, std::string* path, bool required);
// --config: a TOML file of further options, for ApplyConfigFile.
void AddConfigOption(CLI::App* app, EngineFlags* flags);
void AddEngineOptions(CLI::App* app, EngineFlags* flags);
// --plugin: shared objects that bring selectors and step plugins.
void AddPluginOption(CLI::App* app, std::vector<std::string>* plugins);
// --shadow-check: a share of tokens that are held against dense attention.
void AddShadowOption(CLI::App* app, double* share);
// --selector, what generated tokens read, --step-plugin, --plugin and --shadow-check.
void AddSelectorOptions(CLI::App* app, EngineFlags* flags);

struct SamplingFlags {
  uint32_t max_tokens = 512;
  SamplingOptions sampling = {.temperature = 0.2f, .top_p = 0.9f};
  std::vector<std::string> logit_bias;  // "ID:VALUE"
  std::vector<std::string> stop;
  bool ignore_eos = false;

  // Fills what the flags say into a request. Errors: kInvalidArgument (a --logit-bias).
  Status Apply(Request* request) const;
};

void AddSamplingOptions(CLI::App* app, SamplingFlags* flags);

// Allows [low, high] and says so in the option's help.
void Limit(CLI::Option* option, double low, double high);
// Allows these words (or numbers) and says so.
void Choose(CLI::Option* option, const std::vector<std::string>& words);

// --layers: figures of selection by layer and KV head.
void AddLayersOption(CLI::App* app, bool* layers);

// --json [FILE]; without a FILE: "-".
void AddJsonOption(CLI::App* app, std::string* path);

// `message` with the embedding API's names of options (context_tokens) replaced by the flags of
// `app` that set them (--ctx).
std::string NameFlags(std::string message, const CLI::App& app);

// Text that --help ends in.
void AddExample(CLI::App* app, const std::string& example);

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_OPTIONS_H_
