// Makes small GGUF files in memory, right ones and wrong ones, for tests and fuzz seeds.
//   std::vector<uint8_t> bytes = GgufBuilder().String("general.architecture", "llama")
//                                    .Tensor("w", DType::kF32, {4, 2}, data).Build();
#ifndef TINYSERVE_TESTS_SUPPORT_GGUF_BUILDER_H_
#define TINYSERVE_TESTS_SUPPORT_GGUF_BUILDER_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/dtype.h"

namespace tinyserve {

class GgufBuilder {
 public:
  explicit GgufBuilder(uint32_t version = 3) : version_(version) {}

  GgufBuilder& Uint8(std::string_view key, uint8_t value);
  GgufBuilder& Int8(std::string_view key, int8_t value);
  GgufBuilder& Uint16(std::string_view key, uint16_t value);
  GgufBuilder& Int16(std::string_view key, int16_t value);
  GgufBuilder& Uint32(std::string_view key, uint32_t value);
  GgufBuilder& Int32(std::string_view key, int32_t value);
  GgufBuilder& Uint64(std::string_view key, uint64_t value);
  GgufBuilder& Int64(std::string_view key, int64_t value);
  GgufBuilder& Float32(std::string_view key, float value);
  GgufBuilder& Float64(std::string_view key, double value);
  GgufBuilder& Bool(std::string_view key, bool value);
  GgufBuilder& String(std::string_view key, std::string_view value);
  GgufBuilder& Strings(std::string_view key, const std::vector<std::string>& values);
  GgufBuilder& Int32s(std::string_view key, const std::vector<int32_t>& values);
  GgufBuilder& Uint64s(std::string_view key, const std::vector<uint64_t>& values);
  GgufBuilder& Float32s(std::string_view key, const std::vector<float>& values);
  GgufBuilder& Bools(std::string_view key, const std::vector<bool>& values);
  // A value of GGUF type number `type` with exactly these bytes, sensible or not.
  GgufBuilder& RawValue(std::string_view key, uint32_t type, std::vector<uint8_t> bytes);

  // dims in GGUF order: dims[0] is contiguous. Data are placed one after the other, aligned.
  GgufBuilder& Tensor(std::string_view name, DType type, const std::vector<uint64_t>& dims,
                      std::vector<uint8_t> data);
  // The same with any type number.
  GgufBuilder& RawTensor(std::string_view name, uint32_t type_number,
                         const std::vector<uint64_t>& dims, std::vector<uint8_t> data);
  // Writes general.alignment, and aligns to it. REQUIRES: alignment > 0.
  GgufBuilder& Alignment(uint32_t alignment_bytes);

  std::vector<uint8_t> Build();

  // Where a field lies in the bytes of the last Build().
  struct Field {
    // "version", "tensor_count", "metadata_kv_count"; "KEY/key", "KEY/type", "KEY/value",
    // "KEY/element type", "KEY/array length"; "TENSOR/name", "TENSOR/n_dims", "TENSOR/dims[0]",
    // "TENSOR/type", "TENSOR/offset". A string's field is its length.
    std::string label;
    uint64_t offset;
    uint32_t bytes;
  };
  const std::vector<Field>& fields() const { return fields_; }
  // REQUIRES: the last Build() wrote such a field.
  uint64_t OffsetOf(std::string_view label) const;

 private:
  struct Entry {
    std::string key;
    uint32_t type;
    std::vector<uint8_t> bytes;
  };
  struct TensorInfo {
    std::string name;
    uint32_t type_number;
    std::vector<uint64_t> dims;
    std::vector<uint8_t> data;
  };

  uint32_t version_;
  uint32_t alignment_bytes_ = 32;
  std::vector<Entry> entries_;
  std::vector<TensorInfo> tensors_;
  std::vector<Field> fields_;
};

// Overwrites bytes at `offset` with `value`. REQUIRES: they are inside.
void Poke32(std::vector<uint8_t>* bytes, uint64_t offset, uint32_t value);
void Poke64(std::vector<uint8_t>* bytes, uint64_t offset, uint64_t value);

}  // namespace tinyserve

#endif  // TINYSERVE_TESTS_SUPPORT_GGUF_BUILDER_H_
