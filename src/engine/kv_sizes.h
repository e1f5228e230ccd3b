// How much of the memory the KV pool gets, and how long a sequence may be.
#ifndef TINYSERVE_ENGINE_KV_SIZES_H_
#define TINYSERVE_ENGINE_KV_SIZES_H_

#include <cstdint>

#include "engine/backend.h"
#include "model/config.h"
#include "tinyserve/engine.h"
#include "tinyserve/status.h"

namespace tinyserve {

// Sizes of context and pool. Where the caller leaves them open, the pool holds up to
// kContextsWanted full contexts, within what the backend gives (Backend::KvMemory): untouched
// pages cost nothing, and the rest of the system keeps room.
struct KvSizes {
  uint32_t context_tokens;
  uint64_t memory_bytes;
};

// `fixed_bytes`: of the cache beside its pool, whatever its size. Errors: kInvalidArgument (a
// context longer than the model's), kOutOfMemory (what it would need).
Result<KvSizes> ChooseKvSizes(const EngineOptions& o, const ModelConfig& config,
                              uint64_t bytes_per_token, uint64_t fixed_bytes,
                              const Backend& backend);

}  // namespace tinyserve

#endif  // TINYSERVE_ENGINE_KV_SIZES_H_
