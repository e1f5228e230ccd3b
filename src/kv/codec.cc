#include "kv/codec.h"

#include <fmt/format.h>

#include "page/coded.h"

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

constexpr Codec Coded(const char* name, KvType type, uint32_t metadata) {
  return {.name = name,
          .open_type = KvType::kF16,
          .sealed_type = type,
          .group_tokens = 64,
          .hot_tokens = 0,
          .metadata = metadata};
}

constexpr Codec kCodecs[] = {
    Raw("f32", KvType::kF32),
    Raw("f16", KvType::kF16),
    Raw("bf16", KvType::kBF16),
    Coded("planes", KvType::kPlanes, kMetaSpread),
    Coded("int8", KvType::kInt8, kMetaRange),
    Coded("k8v4", KvType::kK8V4, kMetaRange),
    Coded("int4", KvType::kInt4, kMetaRange),
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
  if (codec.identity()) return Status();
  const uint32_t head_dim_max = CodedHeadDimMax(codec.sealed_type);
  if (page_tokens != kCodedTokens) {
    return Status(Code::kInvalidArgument,
                  fmt::format("page_tokens is {}: the KV type {} has pages of {} tokens",
                              page_tokens, codec.name, kCodedTokens));
  }
  if (head_dim > head_dim_max) {
    return Status(Code::kInvalidArgument,
                  fmt::format("kv is '{}': it stores heads of at most {} channels, these have {}",
                              codec.name, head_dim_max, head_dim));
  }
  return Status();
}

}  // namespace tinyserve
