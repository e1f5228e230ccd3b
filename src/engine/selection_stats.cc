#include "engine/selection_stats.h"

namespace tinyserve {

SelectionStats StatsOf(const SelectionCounts& c) {
  const auto seconds = [](uint64_t ns) { return static_cast<double>(ns) / 1e9; };
  return {.queries = c.queries,
          .pages_held = c.pages_held,
          .pages_scored = c.pages_scored,
          .pages_read = c.pages_read,
          .pages_followed = c.pages_followed,
          .pages_reused = c.pages_reused,
          .tokens_read = c.tokens_read,
          .bytes_read = c.bytes_read,
          .bytes_held = c.bytes_held,
          .failures = c.failures,
          .score_seconds = seconds(c.score_ns),
          .select_seconds = seconds(c.select_ns),
          .attend_seconds = seconds(c.attend_ns)};
}

ShadowStats StatsOf(const std::string& selector, const ShadowFigures& figures) {
  const auto spread = [](const LogHistogram& h) {
    return Spread{.mean = h.mean(), .p99 = h.Quantile(0.99), .max = h.max()};
  };
  return {.selector = selector,
          .checks = figures.missed_mass.count(),
          .missed_mass = spread(figures.missed_mass),
          .output_error = spread(figures.output_error)};
}

std::vector<LayerSelection> LayersOf(std::span<const SelectionCounts> strips, uint32_t kv_heads) {
  std::vector<LayerSelection> layers;
  layers.reserve(strips.size());
  for (size_t i = 0; i < strips.size(); ++i) {
    layers.push_back({.layer = static_cast<uint32_t>(i / kv_heads),
                      .kv_head = static_cast<uint32_t>(i % kv_heads),
                      .stats = StatsOf(strips[i])});
  }
  return layers;
}

}  // namespace tinyserve
