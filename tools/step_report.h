// What step plugins did, as `run` and `eval` report it.
#ifndef TINYSERVE_TOOLS_STEP_REPORT_H_
#define TINYSERVE_TOOLS_STEP_REPORT_H_

#include <boost/json/array.hpp>
#include <span>
#include <string>

#include "tinyserve/engine.h"

namespace tinyserve {

boost::json::array StepPluginsJson(std::span<const StepPluginStats> stats);
// A line each; nothing without any.
std::string StepPluginsText(std::span<const StepPluginStats> stats);

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_STEP_REPORT_H_
