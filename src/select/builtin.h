// The built-in selectors.
#ifndef TINYSERVE_SELECT_BUILTIN_H_
#define TINYSERVE_SELECT_BUILTIN_H_

#include <span>

#include "tinyserve/plugin.h"

namespace tinyserve {

std::span<const tinyserve_selector_v2* const> BuiltinSelectors();

// Whether a table's boxes may be the ranges that pages of codes keep anyway: the engine's own
// scores read either.
bool ScoresByRanges(const tinyserve_selector_v2* table);

}  // namespace tinyserve

#endif  // TINYSERVE_SELECT_BUILTIN_H_
