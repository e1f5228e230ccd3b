#include "engine/step_sets.h"

#include <fmt/format.h>

#include <algorithm>

namespace tinyserve {
namespace {

constexpr uint32_t kSetsMax = 64;  // that requests may ask for

}  // namespace

Result<uint32_t> StepSets::Find(std::span<const StepSpec> specs, const ModelConfig& model) {
  if (specs.empty()) return 0u;
  const std::string resolved = ResolvedSteps(specs);
  for (size_t i = 0; i < sets_.size(); ++i) {
    if (sets_[i]->resolved() == resolved) return static_cast<uint32_t>(i + 1);
  }
  if (sets_.size() >= kSetsMax) {
    return Status(Code::kResourceExhausted,
                  fmt::format("step_plugins '{}': {} different sets are open already, the most "
                              "that are allowed",
                              resolved, kSetsMax));
  }
  const tinyserve_step_shape shape{
      .struct_size = sizeof shape, .layers = model.layers, .vocab = model.vocab};
  TS_ASSIGN_OR_RETURN(std::unique_ptr<StepPlugins> opened, StepPlugins::Open(specs, shape));
  sets_.push_back(std::move(opened));
  return static_cast<uint32_t>(sets_.size());
}

std::vector<StepPluginStats> StepSets::stats() const {
  std::vector<StepPluginStats> stats;
  for (const auto& set : sets_) {
    for (const std::unique_ptr<StepPlugin>& plugin : set->plugins()) {
      const char* name = plugin->spec().table->name;
      auto at = std::find_if(stats.begin(), stats.end(),
                             [name](const StepPluginStats& s) { return s.name == name; });
      if (at == stats.end()) at = stats.insert(stats.end(), StepPluginStats{.name = name});
      at->calls += plugin->counts().calls;
      at->effects += plugin->counts().effects;
      at->errors += plugin->counts().errors;
    }
  }
  return stats;
}

}  // namespace tinyserve
