#include "tools/step_report.h"

#include <fmt/format.h>

#include <boost/json/object.hpp>

namespace tinyserve {

boost::json::array StepPluginsJson(std::span<const StepPluginStats> stats) {
  boost::json::array array;
  for (const StepPluginStats& s : stats) {
    array.push_back(boost::json::object{
        {"plugin", s.name}, {"calls", s.calls}, {"effects", s.effects}, {"errors", s.errors}});
  }
  return array;
}

std::string StepPluginsText(std::span<const StepPluginStats> stats) {
  std::string text;
  for (const StepPluginStats& s : stats) {
    text += fmt::format("{}: asked {} times, said yes {} times", s.name, s.calls, s.effects);
    if (s.errors > 0) text += fmt::format(", failed {} times", s.errors);
    text += "\n";
  }
  return text;
}

}  // namespace tinyserve
