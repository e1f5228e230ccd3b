#include "engine/kv_sizes.h"

#include <fmt/format.h>

#include <algorithm>

namespace tinyserve {

Result<KvSizes> ChooseKvSizes(const EngineOptions& o, const ModelConfig& config,
                              uint64_t bytes_per_token, uint64_t fixed_bytes,
                              const Backend& backend) {
  constexpr uint64_t kContextsWanted = 8;
  if (o.context_tokens > config.context) {
    return Status(Code::kInvalidArgument,
                  fmt::format("context_tokens is {}: the model was trained for {}",
                              o.context_tokens, config.context));
  }
  const uint64_t wanted = o.context_tokens != 0 ? o.context_tokens : config.context;
  const uint64_t block = o.block_tokens;
  const uint64_t full = (wanted + block - 1) / block * block * bytes_per_token;
  const uint64_t memory = o.kv_memory_bytes != 0
                              ? o.kv_memory_bytes
                              : backend.KvMemory(full * kContextsWanted + fixed_bytes);
  const uint64_t pool = memory - std::min(memory, fixed_bytes);
  if (pool >= full) return KvSizes{static_cast<uint32_t>(wanted), memory};
  const uint64_t fits = pool / bytes_per_token / block * block;
  if (o.context_tokens != 0 || fits == 0) {
    return Status(
        Code::kOutOfMemory,
        fmt::format("a context of {} tokens needs {} bytes of KV cache, {} are available{}: lower "
                    "the context or raise "
                    "the KV memory",
                    wanted, full + fixed_bytes, memory,
                    o.kv_memory_bytes != 0 ? " (kv_memory_bytes)" : ""));
  }
  return KvSizes{static_cast<uint32_t>(fits), memory};
}

}  // namespace tinyserve
