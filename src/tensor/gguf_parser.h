// One GGUF file's header, metadata and tensor list, checked against the bytes that are really
// there. GgufFile (gguf.h) puts the shards of a split model together.
#ifndef TINYSERVE_TENSOR_GGUF_PARSER_H_
#define TINYSERVE_TENSOR_GGUF_PARSER_H_

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/gguf.h"
#include "tinyserve/status.h"

namespace tinyserve {

// What a file may make this process hold for its metadata and tensor list. Arrays are widened, so
// that a file could otherwise ask for eight times its own size.
inline constexpr uint64_t kGgufHeaderMemoryBytesMax = uint64_t{1} << 30;

struct GgufShard {
  uint32_t version = 0;
  std::vector<MetaEntry> metadata;        // in file order
  std::vector<uint32_t> metadata_by_key;  // indices sorted by key; keys are distinct
  std::vector<StoredTensor>
      tensors;  // in file order; names distinct, extents inside the file, disjoint
};

// `name` stands for the file in messages; `shard` is copied into each tensor. Tensors point into
// `bytes`.
Result<GgufShard> ParseGgufShard(std::span<const uint8_t> bytes, const std::string& name,
                                 uint32_t shard);

// A name from a file as messages show it: in quotes, unprintable bytes as \xNN, cut after 80 bytes.
std::string QuotedName(std::string_view name);

// The entry of `key`, or nullptr. `by_key` holds the indices of `metadata` sorted by key.
const MetaEntry* FindEntry(const std::vector<MetaEntry>& metadata,
                           const std::vector<uint32_t>& by_key, std::string_view key);

}  // namespace tinyserve

#endif  // TINYSERVE_TENSOR_GGUF_PARSER_H_
