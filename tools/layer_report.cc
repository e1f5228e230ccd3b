#include "tools/layer_report.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "tools/format.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

double Ratio(double part, double whole) {
  return whole > 0 ? part / whole : std::numeric_limits<double>::quiet_NaN();
}
double Ratio(uint64_t part, uint64_t whole) {
  return Ratio(static_cast<double>(part), static_cast<double>(whole));
}

bool IsTimed(const SelectionStats& s) {
  return s.score_seconds + s.select_seconds + s.attend_seconds > 0;
}

// Bytes that dense attention reads beyond these; scoring may cost more than it saves.
int64_t BytesAvoided(const SelectionStats& s) {
  return static_cast<int64_t>(s.bytes_held) - static_cast<int64_t>(s.bytes_read);
}

std::string Row(const std::string& layer, const std::string& head, const SelectionStats& s) {
  const auto a_query = [&](uint64_t n) { return Ratio(n, s.queries); };
  std::string row =
      fmt::format("{:>5} {:>4} {:>9} {:>8.1f} {:>8.1f} {:>8.1f} {:>6} {:>7} {:>10} {:>10}", layer,
                  head, s.queries, a_query(s.pages_held), a_query(s.pages_scored),
                  a_query(s.pages_read), FormatShare(HitRate(s)),
                  FormatShare(Ratio(s.bytes_read, s.bytes_held)), FormatBytes(s.bytes_read),
                  FormatBytes(static_cast<uint64_t>(std::max<int64_t>(0, BytesAvoided(s)))));
  if (IsTimed(s)) {
    const double queries = static_cast<double>(s.queries) / 1e6;
    row += fmt::format(" {:>8.1f} {:>8.1f} {:>8.1f}", s.score_seconds / queries,
                       s.select_seconds / queries, s.attend_seconds / queries);
  }
  return row + '\n';
}

}  // namespace

double HitRate(const SelectionStats& stats) {
  return Ratio(stats.pages_reused, stats.pages_followed);
}

SelectionStats SumOf(const std::vector<LayerSelection>& layers) {
  SelectionStats sum;
  for (const LayerSelection& layer : layers) {
    const SelectionStats& s = layer.stats;
    sum.queries += s.queries;
    sum.pages_held += s.pages_held;
    sum.pages_scored += s.pages_scored;
    sum.pages_read += s.pages_read;
    sum.pages_followed += s.pages_followed;
    sum.pages_reused += s.pages_reused;
    sum.tokens_read += s.tokens_read;
    sum.bytes_read += s.bytes_read;
    sum.bytes_held += s.bytes_held;
    sum.failures += s.failures;
    sum.score_seconds += s.score_seconds;
    sum.select_seconds += s.select_seconds;
    sum.attend_seconds += s.attend_seconds;
  }
  return sum;
}

json::object SelectionJson(const SelectionStats& s) {
  json::object out = {{"queries", s.queries},
                      {"pages_held", s.pages_held},
                      {"pages_scored", s.pages_scored},
                      {"pages_selected", s.pages_read},
                      {"pages_followed", s.pages_followed},
                      {"pages_reused", s.pages_reused},
                      {"hit_rate", HitRate(s)},
                      {"tokens_read", s.tokens_read},
                      {"bytes_read", s.bytes_read},
                      {"bytes_avoided", BytesAvoided(s)},
                      {"failures", s.failures}};
  if (IsTimed(s)) {
    out["score_seconds"] = s.score_seconds;
    out["select_seconds"] = s.select_seconds;
    out["attend_seconds"] = s.attend_seconds;
  }
  return out;
}

json::array LayersJson(const std::vector<LayerSelection>& layers) {
  json::array out;
  for (const LayerSelection& layer : layers) {
    if (layer.stats.queries == 0) continue;
    json::object figures = {{"layer", layer.layer}, {"kv_head", layer.kv_head}};
    for (const auto& [key, value] : SelectionJson(layer.stats)) figures[key] = value;
    out.push_back(std::move(figures));
  }
  return out;
}

std::string LayerTable(const std::vector<LayerSelection>& layers) {
  const SelectionStats all = SumOf(layers);
  if (all.queries == 0) return "";
  std::string out =
      fmt::format("{:>5} {:>4} {:>9} {:>8} {:>8} {:>8} {:>6} {:>7} {:>10} {:>10}{}\n", "layer",
                  "head", "queries", "held", "scored", "selected", "hits", "bytes", "read",
                  "avoided", IsTimed(all) ? " us score   select   attend" : "");
  for (const LayerSelection& layer : layers) {
    if (layer.stats.queries == 0) continue;
    out += Row(fmt::format("{}", layer.layer), fmt::format("{}", layer.kv_head), layer.stats);
  }
  return out + Row("all", "", all);
}

}  // namespace tinyserve
