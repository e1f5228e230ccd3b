#include "tools/eval_report.h"

#include <fmt/format.h>

#include <boost/json/array.hpp>
#include <cmath>

#include "tools/format.h"
#include "tools/layer_report.h"
#include "tools/shadow_report.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

// "0.0042", "1.2e-05", "0".
std::string FormatKl(double kl) {
  if (kl == 0) return "0";
  return std::abs(kl) < 0.00095 ? fmt::format("{:.1e}", kl) : fmt::format("{:.4f}", kl);
}

}  // namespace

json::object EvalLineJson(const EvalLine& line, const EvalSetup& setup) {
  json::object out = {
      {"method", line.method},
      {"resolved", line.resolved},
      {"context", line.context},
      {"scored_tokens", line.scored_tokens},
      {"kl", Significant(line.kl, 6)},
      {"kl_p99", Significant(line.kl_p99, 6)},
      {"top1", Significant(line.top1, 6)},
      {"dppl", Significant(line.dppl, 6)},
      {"dppl_se", Significant(line.dppl_se, 6)},
      {"kv_bytes", line.kv_bytes},
      {"kv_bytes_read_per_token", std::round(line.kv_bytes_read_per_token)},
      {"decode_tokens_per_s", Significant(line.decode_tokens_per_s, 5)},
      {"kv_fraction_held",
       Significant(static_cast<double>(line.kv_bytes) / static_cast<double>(line.dense_kv_bytes),
                   5)},
      {"kv_fraction_read",
       Significant(line.kv_bytes_read_per_token / line.dense_bytes_read_per_token, 5)},
      {"speedup", Significant(line.speedup, 5)},
      {"dense_tokens_per_s", Significant(line.dense_tokens_per_s, 5)},
      {"dense_perplexity", Significant(line.dense_perplexity, 6)},
      {"windows", line.windows},
      {"scored_per_window", line.window_scored},
      {"selector_failures", line.selector_failures},
      {"hit_rate", Significant(line.hit_rate, 5)},
      {"shadow", ShadowJson(line.shadow)},
      {"engine", "tinyserve"},
      {"kind", line.is_long ? "long_decode" : "method"},
      {"model", setup.model},
      {"text", setup.text},
      {"target", setup.target},
      {"threads", setup.threads},
      {"kv", line.kv},
      {"base_kv", setup.base_kv},
      {"page_tokens", setup.page_tokens},
      {"compute", setup.compute}};
  if (!line.layers.empty()) out["layers"] = LayersJson(line.layers);
  if (line.is_long) {
    json::array parts;
    for (double kl : line.kl_by_position) parts.push_back(Significant(kl, 6));
    out["kl_period_tokens"] = kKlPeriodTokens;
    out["kl_by_position"] = std::move(parts);
  }
  return out;
}

std::string EvalTableHead(const EvalSetup& setup, size_t method_columns) {
  return fmt::format(
      "{}, pages of {} tokens, compute {}, target {}, {} threads\n"
      "KL of a method's prediction from dense attention's over {}; dppl: change of perplexity\n"
      "{:<{}} {:<6} {:>7} {:>6} {:>8} {:>8} {:>7} {:>15} {:>10} {:>17} {:>9} {:>7}\n",
      setup.model.empty() ? "model" : PrintableLine(setup.model, 60), setup.page_tokens,
      setup.compute, setup.target, setup.threads, setup.base_kv, "method", method_columns, "kv",
      "context", "scored", "KL", "KL p99", "top-1", "dppl", "KV held", "KV read a token",
      "tokens/s", "x dense");
}

std::string EvalTableRow(const EvalLine& line, size_t method_columns) {
  const std::string read =
      fmt::format("{} {:>5.1f} %", FormatBytes(static_cast<uint64_t>(line.kv_bytes_read_per_token)),
                  100 * line.kv_bytes_read_per_token / line.dense_bytes_read_per_token);
  std::string row = fmt::format(
      "{:<{}} {:<6} {:>7} {:>6} {:>8} {:>8} {:>7.4f} {:>15} {:>10} {:>17} {:>9.1f} {:>7.2f}\n",
      PrintableLine(line.method, 200), method_columns, line.kv, line.context, line.scored_tokens,
      FormatKl(line.kl), FormatKl(line.kl_p99), line.top1,
      fmt::format("{:+.2f} +-{:.2f} %", 100 * line.dppl, 100 * line.dppl_se),
      FormatBytes(line.kv_bytes), read, line.decode_tokens_per_s, line.speedup);
  if (line.is_long) {
    row += fmt::format("  KL of each {} tokens after {}:", kKlPeriodTokens,
                       line.context - line.window_scored);
    for (double kl : line.kl_by_position) row += " " + FormatKl(kl);
    row += '\n';
  }
  if (line.shadow.checks > 0) row += "  " + ShadowText(line.shadow) + "\n";
  if (line.selector_failures > 0) {
    row += fmt::format("  {} choices failed: everything was read\n", line.selector_failures);
  }
  return row + LayerTable(line.layers);
}

}  // namespace tinyserve
