#ifndef TINYSERVE_STEP_BUILTIN_STEPS_H_
#define TINYSERVE_STEP_BUILTIN_STEPS_H_

#include <span>

#include "tinyserve/plugin.h"

namespace tinyserve {

// docs/selection.md, "Step plugins", has what they do and what they cost.
std::span<const tinyserve_step_v2* const> BuiltinSteps();

}  // namespace tinyserve

#endif  // TINYSERVE_STEP_BUILTIN_STEPS_H_
