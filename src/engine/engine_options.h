// Whether an engine's options are allowed, and what they name.
#ifndef TINYSERVE_ENGINE_ENGINE_OPTIONS_H_
#define TINYSERVE_ENGINE_ENGINE_OPTIONS_H_

#include <span>
#include <string>

#include "kernels/kernels.h"
#include "tinyserve/engine.h"
#include "tinyserve/status.h"

namespace tinyserve {

// Errors: kInvalidArgument, naming the option and what is allowed.
Status CheckEngineOptions(const EngineOptions& options);
Result<Compute> ParseCompute(const std::string& name);
// Whether step plugins may be on. Errors: kInvalidArgument (a specification; one that drops tokens
// from the cache beside the prefix cache).
Status CheckStepPlugins(std::span<const std::string> texts, bool prefix_cache);

}  // namespace tinyserve

#endif  // TINYSERVE_ENGINE_ENGINE_OPTIONS_H_
