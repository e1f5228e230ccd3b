#include "kv/codec.h"

#include <fmt/format.h>

#include "page/planes.h"

namespace tinyserve {
namespace {

constexpr Codec Raw(const char* name, KvType type) {
  return {.name = name,
          .open_type = type,
          .sealed_type = type,
          .group_tokens = 1,
          .hot_tokens = 0,
          .metadata = 0};
}

constexpr Codec kCodecs[] = {
    Raw("f32", KvType::kF32),
    Raw("f16", KvType::kF16),
    Raw("bf16", KvType::kBF16),
    {.name = "planes",
     .open_type = KvType::kF16,
     .sealed_type = KvType::kPlanes,
     .group_tokens = 64,
     .hot_tokens = 0,
     .metadata = kMetaSpread},
};

}  // namespace

Result<const Codec*> FindCodec(const std::string& name) {
  std::string known;
  for (const Codec& codec : kCodecs) {
    if (name == codec.name) return &codec;
    known += (known.empty() ? "" : ", ") + std::string(codec.name);
  }
  return Status(Code::kInvalidArgument, fmt::format("kv is '{}': allowed are {}", name, known));
}

Status CheckCodec(const Codec& codec, uint32_t page_tokens, uint32_t head_dim) {
  if (codec.sealed_type != KvType::kPlanes) return Status();
  if (page_tokens != kPlanesTokens) {
    return Status(Code::kInvalidArgument,
                  fmt::format("page_tokens is {}: the KV type {} has pages of {} tokens",
                              page_tokens, codec.name, kPlanesTokens));
  }
  if (head_dim > kPlanesHeadDimMax) {
    return Status(Code::kInvalidArgument,
                  fmt::format("kv is '{}': it stores heads of at most {} channels, these have {}",
                              codec.name, kPlanesHeadDimMax, head_dim));
  }
  return Status();
}

}  // namespace tinyserve
