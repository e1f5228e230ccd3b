#include "tools/engine_flags.h"

#include <algorithm>

namespace tinyserve {

EngineOptions EngineFlags::ToOptions() const {
  EngineOptions options;
  options.model_path = model;
  options.context_tokens = context_tokens;
  options.threads = threads;
  options.kv_memory_bytes = kv_memory_bytes;
  options.kv = kv;
  options.selector = selector;
  options.plugins = plugins;
  options.step_plugins = step_plugins;
  options.compute = compute;
  options.target = target;
  options.device = device;
  options.page_tokens = page_tokens;
  options.block_tokens = BlockTokensFor(page_tokens);
  options.trace_path = trace;
  options.shadow_check = shadow_check;
  options.sequences_max = 1;  // the tools ask one thing after another
  return options;
}

Status RequireModel(const EngineFlags& flags) {
  if (!flags.model.empty()) return Status();
  return Status(Code::kInvalidArgument, "--model is required: --model FILE names a GGUF file");
}

uint32_t BlockTokensFor(uint32_t page_tokens) { return std::max(32u, page_tokens); }

}  // namespace tinyserve
