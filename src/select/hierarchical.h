// Pages by the best of the boxes of their sub-pages, chosen anew every few positions (LServe,
// section 3.4 and 3.5).
#ifndef TINYSERVE_SELECT_HIERARCHICAL_H_
#define TINYSERVE_SELECT_HIERARCHICAL_H_

#include "tinyserve/plugin.h"

namespace tinyserve {

extern const tinyserve_selector_v2 kHierarchicalSelector;

}  // namespace tinyserve

#endif  // TINYSERVE_SELECT_HIERARCHICAL_H_
