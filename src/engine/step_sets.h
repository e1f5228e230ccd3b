// The sets of step plugins that requests have asked for, each opened once.
#ifndef TINYSERVE_ENGINE_STEP_SETS_H_
#define TINYSERVE_ENGINE_STEP_SETS_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "model/config.h"
#include "step/step_plugin.h"
#include "tinyserve/engine.h"
#include "tinyserve/status.h"

namespace tinyserve {

class StepSets {
 public:
  // The index of a set for a model, opened if it is new; 0: it is empty. Errors: kInvalidArgument
  // (what a plugin's open says), kResourceExhausted (too many different ones).
  Result<uint32_t> Find(std::span<const StepSpec> specs, const ModelConfig& model);
  // The set of an index; null for 0.
  const StepPlugins* at(uint32_t index) const {
    return index == 0 ? nullptr : sets_[index - 1].get();
  }
  // Counts by plugin, over all sets that it is in.
  std::vector<StepPluginStats> stats() const;

 private:
  std::vector<std::unique_ptr<StepPlugins>> sets_;
};

}  // namespace tinyserve

#endif  // TINYSERVE_ENGINE_STEP_SETS_H_
