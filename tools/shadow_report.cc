#include "tools/shadow_report.h"

#include <fmt/format.h>

#include "tools/format.h"

namespace tinyserve {

std::string ShadowText(const ShadowStats& stats) {
  const auto text = [](const Spread& spread) {
    return fmt::format("{:.2g} % (p99 {:.2g} %, max {:.2g} %)", 100 * spread.mean, 100 * spread.p99,
                       100 * spread.max);
  };
  return fmt::format("shadow: {} checks; mass missed {}; output error {}", stats.checks,
                     text(stats.missed_mass), text(stats.output_error));
}

boost::json::object ShadowJson(const ShadowStats& stats) {
  const auto json = [](const Spread& spread) {
    return boost::json::object{{"mean", Significant(spread.mean, 5)},
                               {"p99", Significant(spread.p99, 5)},
                               {"max", Significant(spread.max, 5)}};
  };
  return {{"checks", stats.checks},
          {"missed_mass", json(stats.missed_mass)},
          {"output_error", json(stats.output_error)}};
}

}  // namespace tinyserve
