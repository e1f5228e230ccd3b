#include "engine/engine_options.h"

#include <fmt/format.h>

#include "kernels/cuda/device.h"
#include "kv/eviction_policy.h"
#include "step/step_plugin.h"

namespace tinyserve {

Result<Compute> ParseCompute(const std::string& name) {
  if (name == "fast") return Compute::kFast;
  if (name == "f32") return Compute::kF32;
  return Status(Code::kInvalidArgument,
                fmt::format("compute is '{}': allowed are fast and f32", name));
}

Status CheckStepPlugins(std::span<const std::string> texts, bool prefix_cache) {
  TS_ASSIGN_OR_RETURN(const std::vector<StepSpec> specs, ParseStepPlugins(texts));
  for (const StepSpec& spec : specs) {
    if (spec.table->prune == nullptr || !prefix_cache) continue;
    return Status(
        Code::kInvalidArgument,
        fmt::format("step_plugins '{}' and prefix_cache do not go together: it drops tokens from "
                    "the cache, which then would be handed on with holes; allowed is either, as "
                    "with serve --no-prefix-cache",
                    spec.typed));
  }
  return Status();
}

Status CheckEngineOptions(const EngineOptions& o) {
  const auto range = [](const char* name, uint64_t value, uint64_t low, uint64_t high) {
    if (value >= low && value <= high) return Status();
    return Status(Code::kInvalidArgument,
                  fmt::format("{} is {}: allowed are {} to {}", name, value, low, high));
  };
  TS_RETURN_IF_ERROR(range("threads", o.threads, 0, 1024));
  TS_RETURN_IF_ERROR(range("metadata's number of selectors", o.metadata.size(), 0, 16));
  TS_RETURN_IF_ERROR(cuda::CheckEngineDevice(o.device));
  if (!(o.shadow_check >= 0 && o.shadow_check <= 1)) {
    return Status(Code::kInvalidArgument,
                  fmt::format("shadow_check is {}: allowed are 0 to 1", o.shadow_check));
  }
  if (o.target_itl_ms != 0 && !(o.target_itl_ms >= 0.1 && o.target_itl_ms <= 60000)) {
    return Status(
        Code::kInvalidArgument,
        fmt::format("target_itl_ms is {}: allowed are 0 (off) and 0.1 to 60000", o.target_itl_ms));
  }
  if (!(o.min_ratio >= 0.001 && o.min_ratio <= 1)) {
    return Status(Code::kInvalidArgument,
                  fmt::format("min_ratio is {}: allowed are 0.001 to 1", o.min_ratio));
  }
  if (!(o.session_share >= 0 && o.session_share <= 1)) {
    return Status(Code::kInvalidArgument,
                  fmt::format("session_share is {}: allowed are 0 to 1", o.session_share));
  }
  if (!(o.session_ttl_seconds >= 0)) {
    return Status(
        Code::kInvalidArgument,
        fmt::format("session_ttl_seconds is {}: it must not be negative", o.session_ttl_seconds));
  }
  TS_RETURN_IF_ERROR(range("sessions_max", o.sessions_max, 1, 1 << 20));
  TS_RETURN_IF_ERROR(ParseEvictionKind(o.cache_policy).status());
  TS_RETURN_IF_ERROR(range("sequences_max", o.sequences_max, 1, 4096));
  TS_RETURN_IF_ERROR(range("step_tokens_max", o.step_tokens_max, o.sequences_max, 16384));
  return range("queue_max", o.queue_max, 1, 1 << 20);
}

}  // namespace tinyserve
