#include "engine/selector_storage.h"

#include <fmt/format.h>

namespace tinyserve {
namespace {

bool ReadsPlanes(const SelectorSpec& spec) { return (spec.needs(0) & TINYSERVE_NEEDS_PLANES) != 0; }

}  // namespace

std::string KvFor(const SelectorSpec& spec) { return ReadsPlanes(spec) ? "planes" : "f16"; }

Status CheckStored(const SelectorSpec& spec, const Codec& codec) {
  if (!ReadsPlanes(spec) || codec.sealed_type == KvType::kPlanes) return Status();
  return Status(Code::kInvalidArgument,
                fmt::format("selector '{}': the KV cache is stored as {}, and it reads pages in "
                            "planes only: choose planes for the KV cache",
                            spec.typed, codec.name));
}

uint32_t RecordKindsOf(std::span<const SelectorSpec> specs, const Codec& codec) {
  uint32_t kinds = codec.metadata;
  for (const SelectorSpec& spec : specs) kinds |= spec.needs(codec.metadata);
  return kinds;
}

tinyserve_shape SelectorShapeOf(const ModelConfig& config, uint32_t page_tokens,
                                uint32_t tokens_max, uint32_t record_kinds) {
  return {.struct_size = sizeof(tinyserve_shape),
          .layers = config.layers,
          .kv_heads = config.kv_heads,
          .group = config.heads / config.kv_heads,
          .head_dim = config.head_dim,
          .page_tokens = page_tokens,
          .pages_max = tokens_max / page_tokens + 1,
          .record_kinds = record_kinds,
          .record_channels = MetaLayoutOf(record_kinds, config.head_dim).channels};
}

}  // namespace tinyserve
