// Figures of selection by layer and KV head (`--layers`): for programs, and for people.
#ifndef TINYSERVE_TOOLS_LAYER_REPORT_H_
#define TINYSERVE_TOOLS_LAYER_REPORT_H_

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <string>
#include <vector>

#include "tinyserve/engine.h"

namespace tinyserve {

// Of the pages read whose sequence also decoded at the position before, the share that was read
// there too; NaN where there were none.
double HitRate(const SelectionStats& stats);
SelectionStats SumOf(const std::vector<LayerSelection>& layers);

// Figures of one; those of times where any were taken.
boost::json::object SelectionJson(const SelectionStats& stats);
// One object a layer and KV head that was asked to select.
boost::json::array LayersJson(const std::vector<LayerSelection>& layers);
// A row each, and one of all; nothing where nothing selected. Pages are those of a query.
std::string LayerTable(const std::vector<LayerSelection>& layers);

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_LAYER_REPORT_H_
