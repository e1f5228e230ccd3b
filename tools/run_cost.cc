#include "tools/run_cost.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/machine.h"
#include "base/thread_pool.h"
#include "kernels/targets.h"
#include "tools/format.h"
#include "tools/machine_peaks.h"

namespace tinyserve {
namespace {

constexpr uint64_t kQuickBytes = 128 << 20;  // well beyond any cache of the machines aimed at
constexpr uint32_t kQuickRepeats = 4;

}  // namespace

double RunCost::bandwidth_share() const {
  if (bandwidth_bytes_per_s <= 0 || decode_tokens_per_s <= 0)
    return std::numeric_limits<double>::quiet_NaN();
  return bytes_per_token * decode_tokens_per_s / bandwidth_bytes_per_s;
}

RunCost CostOf(const Usage& usage, const ModelInfo& info, const EngineStats& before,
               const EngineStats& after, double load_seconds) {
  RunCost cost;
  cost.peak_resident_bytes = PeakResidentBytes();
  cost.prompt_tokens = usage.prompt_tokens;
  cost.completion_tokens = usage.completion_tokens;
  cost.load_seconds = load_seconds;
  cost.first_token_seconds = usage.first_token_seconds;
  if (usage.prefill_seconds > 0 && usage.prompt_tokens > 0)
    cost.prompt_tokens_per_s = usage.prompt_tokens / usage.prefill_seconds;
  if (usage.decode_seconds > 0 && usage.completion_tokens > 1)
    cost.decode_tokens_per_s = (usage.completion_tokens - 1) / usage.decode_seconds;
  const uint64_t tokens = uint64_t{usage.prompt_tokens} + usage.completion_tokens;
  cost.kv_tokens = tokens - std::min(tokens, after.dropped_tokens - before.dropped_tokens);
  cost.kv_bytes = cost.kv_tokens * info.kv_bytes_per_token + info.kv_window_bytes;
  cost.kv_pool_bytes = info.kv_pool_bytes;
  cost.bytes_per_token = static_cast<double>(info.step_weight_bytes);
  const auto ratio = [](uint64_t part, uint64_t whole, double fallback) {
    return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : fallback;
  };
  cost.bytes_per_token += ratio(after.decode_kv_bytes - before.decode_kv_bytes,
                                after.decode_tokens - before.decode_tokens, 0);
  cost.pages_read_share = ratio(after.selection.pages_read - before.selection.pages_read,
                                after.selection.pages_held - before.selection.pages_held, 1);
  return cost;
}

double QuickBandwidth(uint32_t threads) {
  if (MemoryLimitBytes() < ResidentBytes() + 2 * kQuickBytes) return 0;
  ThreadPool pool(threads);
  const Result<double> measured =
      MeasureReadBandwidth(*AvailableTargets().front(), &pool, kQuickBytes, kQuickRepeats);
  return measured.ok() ? *measured : 0;
}

std::string FormatCost(const RunCost& cost) {
  const auto rate = [](double tokens_per_s) {
    return tokens_per_s > 0 ? fmt::format(", {:.1f} tokens/s", tokens_per_s) : std::string();
  };
  std::string out =
      fmt::format("prompt  {} tokens{}", cost.prompt_tokens, rate(cost.prompt_tokens_per_s));
  if (cost.first_token_seconds > 0) {
    out += fmt::format("; first token after {}", FormatSeconds(cost.first_token_seconds));
  }
  out += fmt::format(" (loaded in {})\n", FormatSeconds(cost.load_seconds));
  out +=
      fmt::format("answer  {} tokens{}\n", cost.completion_tokens, rate(cost.decode_tokens_per_s));
  out += fmt::format("memory  peak {}; KV cache {} for {} tokens\n",
                     FormatBytes(cost.peak_resident_bytes), FormatBytes(cost.kv_bytes),
                     cost.kv_tokens);
  if (cost.decode_tokens_per_s <= 0) return out;
  out += fmt::format("reads   {} a token, {}",
                     FormatBytes(static_cast<uint64_t>(cost.bytes_per_token)),
                     FormatBandwidth(cost.bytes_per_token * cost.decode_tokens_per_s));
  if (const double share = cost.bandwidth_share(); std::isfinite(share)) {
    out += fmt::format(": {} of the {} that this machine reads", FormatShare(share),
                       FormatBandwidth(cost.bandwidth_bytes_per_s));
  }
  if (cost.pages_read_share < 1)
    out += fmt::format("; {} of the KV pages", FormatShare(cost.pages_read_share));
  return out + "\n";
}

boost::json::object CostJson(const RunCost& cost) {
  return {{"prompt_tokens", cost.prompt_tokens},
          {"completion_tokens", cost.completion_tokens},
          {"prompt_tokens_per_s", cost.prompt_tokens_per_s},
          {"decode_tokens_per_s", cost.decode_tokens_per_s},
          {"load_seconds", cost.load_seconds},
          {"first_token_seconds", cost.first_token_seconds},
          {"peak_resident_bytes", cost.peak_resident_bytes},
          {"kv_tokens", cost.kv_tokens},
          {"kv_bytes", cost.kv_bytes},
          {"kv_pool_bytes", cost.kv_pool_bytes},
          {"bytes_per_token", cost.bytes_per_token},
          {"pages_read_share", cost.pages_read_share},
          {"bandwidth_bytes_per_s", cost.bandwidth_bytes_per_s},
          {"bandwidth_share", cost.bandwidth_share()}};
}

}  // namespace tinyserve
