// Which model a subcommand runs, and how: what the options of tools/options.h fill. Apart from
// these, for CLI11 is header-only, and dear to whoever includes it.
#ifndef TINYSERVE_TOOLS_ENGINE_FLAGS_H_
#define TINYSERVE_TOOLS_ENGINE_FLAGS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "tinyserve/engine.h"
#include "tinyserve/status.h"

namespace tinyserve {

struct EngineFlags {
  std::string model;
  std::string config;  // file of further options; empty: none
  uint32_t context_tokens = 0;
  uint32_t threads = 0;
  uint64_t kv_memory_bytes = 0;
  std::string kv;  // empty: what the selector reads
  std::string selector = "full";
  std::vector<std::string> plugins;
  std::vector<std::string> step_plugins;
  std::string compute = "fast";
  std::string target;
  std::string device = "auto";
  uint32_t page_tokens = 16;
  std::string trace;  // file; empty: none
  double shadow_check = 0;

  EngineOptions ToOptions() const;
};

// Errors: kInvalidArgument (no model is named).
Status RequireModel(const EngineFlags& flags);

// Tokens of a block that goes with pages of `page_tokens`.
uint32_t BlockTokensFor(uint32_t page_tokens);

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_ENGINE_FLAGS_H_
