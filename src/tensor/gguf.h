// GGUF v2/v3 reader: memory-mapped, split files too. Reads what a file declares and trusts none of
// it: every count, length, offset and type is checked against the file's size before it is used,
// and errors name the field and the file offset.
#ifndef TINYSERVE_TENSOR_GGUF_H_
#define TINYSERVE_TENSOR_GGUF_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/file.h"
#include "tensor/dtype.h"
#include "tinyserve/status.h"

namespace tinyserve {

// One metadata value. Integers are widened, arrays keep one of four element classes.
using MetaValue = std::variant<uint64_t, int64_t, double, bool, std::string, std::vector<int64_t>,
                               std::vector<double>, std::vector<bool>, std::vector<std::string>>;

struct MetaEntry {
  std::string key;
  MetaValue value;
};

// A tensor as stored: `rows` rows of `cols` elements, row-major. GGUF's ne[0] is `cols`, the
// product of the other dimensions is `rows`. `data` points into the mapping and is valid while the
// GgufFile lives.
struct StoredTensor {
  std::string name;
  DType type;
  uint32_t n_dims;   // 1..4
  uint64_t dims[4];  // in GGUF order: dims[0] is contiguous
  uint64_t rows, cols;
  const uint8_t* data;
  uint64_t bytes;   // rows * RowBytes(type, cols)
  uint32_t shard;   // which file of a split model
  uint64_t offset;  // of `data` in that file
};

struct GgufShard;  // one parsed file (gguf_parser.h)

class GgufFile {
 public:
  // Opens `path`; when its metadata says split.count > 1, opens the sibling files
  // (NAME-00001-of-0000N.gguf) too. Errors: kNotFound, kIo, kCorrupt, kUnsupported (version, big
  // endian, tensor type: refused by name).
  static Result<std::unique_ptr<GgufFile>> Open(const std::string& path);
  // The same over bytes in memory (fuzzing, tests); `bytes` must outlive the result. Single file
  // only.
  static Result<std::unique_ptr<GgufFile>> Parse(std::span<const uint8_t> bytes,
                                                 const std::string& name);

  uint32_t version() const { return version_; }
  const std::vector<MetaEntry>& metadata() const { return metadata_; }
  const std::vector<StoredTensor>& tensors() const { return tensors_; }
  uint64_t tensor_bytes() const;                       // sum over tensors
  uint64_t file_bytes() const { return file_bytes_; }  // sum over shards

  // nullptr where the key or name is absent.
  const MetaValue* Find(std::string_view key) const;
  const StoredTensor* FindTensor(std::string_view name) const;
  // The tensor that a model's configuration asks for, of that shape. Errors: kNotFound, kCorrupt
  // (another shape; both are named).
  Result<const StoredTensor*> RequireTensor(std::string_view name, uint64_t rows,
                                            uint64_t cols) const;

  // Typed lookups. Errors name the key and the type found: kNotFound, kCorrupt (wrong type or out
  // of range).
  Result<uint64_t> GetUint(std::string_view key) const;  // any integer type, not negative
  Result<double> GetFloat(std::string_view key) const;   // any number
  Result<bool> GetBool(std::string_view key) const;
  Result<std::string> GetString(std::string_view key) const;

  // The tensor's bytes in the mapping will not be read again soon (they were repacked).
  void ReleasePages(const StoredTensor& tensor) const;

 private:
  GgufFile() = default;
  // Takes over a shard of a file of `bytes`. REQUIRES: shards come in order.
  void AddShard(GgufShard shard, uint64_t bytes);
  // Once all shards are there: the index by name. Errors: kCorrupt where two shards hold the same
  // name.
  Status IndexTensors(const std::string& name);

  uint64_t file_bytes_ = 0;
  uint32_t version_ = 0;
  std::vector<MappedFile> shards_;
  std::vector<MetaEntry> metadata_;        // of the first shard, in file order
  std::vector<StoredTensor> tensors_;      // of all shards, in file order
  std::vector<uint32_t> metadata_by_key_;  // indices sorted by key
  std::vector<uint32_t> tensors_by_name_;  // indices sorted by name
};

// The DType of a GGUF type number; kUnsupported with the type's public name where this build has
// none.
Result<DType> DTypeFromGguf(uint32_t type_number);

}  // namespace tinyserve

#endif  // TINYSERVE_TENSOR_GGUF_H_
