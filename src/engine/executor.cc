#include "engine/executor.h"

#include <fmt/format.h>

namespace tinyserve {

Status CheckSizes(const ExecutorOptions& options) {
  if (options.step_tokens_max >= options.sequences_max && options.sequences_max > 0)
    return Status();
  return Status(Code::kInvalidArgument,
                fmt::format("step_tokens_max is {}: it must be at least sequences_max, {}, which "
                            "must be at least 1",
                            options.step_tokens_max, options.sequences_max));
}

KvCacheOptions CacheOptionsOf(const ExecutorOptions& options, const Codec* codec,
                              const ModelConfig& config, uint64_t products) {
  const double attention = 2.0 * config.layers * config.heads * config.head_dim;  // a position
  return {
      .codec = codec,
      .page_tokens = options.page_tokens,
      .block_tokens = options.block_tokens,
      .memory_bytes = options.kv_memory_bytes,
      .sequences_max = options.sequences_max,
      .sequence_tokens_max = options.sequence_tokens_max,
      .kept = {},
      .uncommitted_tokens_max = options.uncommitted_max(),
      .policy = EvictionPolicy(options.cache_policy, static_cast<double>(products) / attention)};
}

}  // namespace tinyserve
