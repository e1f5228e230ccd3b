// The counts of selection as the embedding API gives them.
#ifndef TINYSERVE_ENGINE_SELECTION_STATS_H_
#define TINYSERVE_ENGINE_SELECTION_STATS_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "attend/selection_counts.h"
#include "attend/shadow_check.h"
#include "tinyserve/engine.h"

namespace tinyserve {

SelectionStats StatsOf(const SelectionCounts& counts);
// `selector`: with every option.
ShadowStats StatsOf(const std::string& selector, const ShadowFigures& figures);
// `strips`: [layer][kv_heads], whole layers.
std::vector<LayerSelection> LayersOf(std::span<const SelectionCounts> strips, uint32_t kv_heads);

}  // namespace tinyserve

#endif  // TINYSERVE_ENGINE_SELECTION_STATS_H_
