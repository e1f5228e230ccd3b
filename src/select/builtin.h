// The built-in selectors.
#ifndef TINYSERVE_SELECT_BUILTIN_H_
#define TINYSERVE_SELECT_BUILTIN_H_

#include <span>

#include "tinyserve/plugin.h"

namespace tinyserve {

std::span<const tinyserve_selector_v2* const> BuiltinSelectors();

}  // namespace tinyserve

#endif  // TINYSERVE_SELECT_BUILTIN_H_
