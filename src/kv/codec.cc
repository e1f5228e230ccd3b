#include "kv/codec.h"

#include <fmt/format.h>

namespace tinyserve {
namespace {

constexpr Codec kCodecs[] = {
    {.name = "f32",
     .open_type = KvType::kF32,
     .group_tokens = 1,
     .hot_tokens = 0,
     .identity = true},
    {.name = "f16",
     .open_type = KvType::kF16,
     .group_tokens = 1,
     .hot_tokens = 0,
     .identity = true},
    {.name = "bf16",
     .open_type = KvType::kBF16,
     .group_tokens = 1,
     .hot_tokens = 0,
     .identity = true},
};

}  // namespace

Result<const Codec*> FindCodec(const std::string& name) {
  std::string known;
  for (const Codec& codec : kCodecs) {
    if (name == codec.name) return &codec;
    known += (known.empty() ? "" : ", ") + std::string(codec.name);
  }
  return Status(Code::kInvalidArgument,
                fmt::format("unknown KV codec '{}': choose one of {}", name, known));
}

}  // namespace tinyserve
