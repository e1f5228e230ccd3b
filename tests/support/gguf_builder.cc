#include "tests/support/gguf_builder.h"

#include <cstring>

#include "base/check.h"

namespace tinyserve {
namespace {

template <class T>
void Append(std::vector<uint8_t>* out, T value) {
  const size_t at = out->size();
  out->resize(at + sizeof value);
  std::memcpy(out->data() + at, &value, sizeof value);
}

void AppendString(std::vector<uint8_t>* out, std::string_view text) {
  Append<uint64_t>(out, text.size());
  out->insert(out->end(), text.begin(), text.end());
}

template <class T>
std::vector<uint8_t> Bytes(T value) {
  std::vector<uint8_t> out;
  Append(&out, value);
  return out;
}

template <class T, class Values>
std::vector<uint8_t> ArrayBytes(uint32_t element_type, const Values& values) {
  std::vector<uint8_t> out;
  Append<uint32_t>(&out, element_type);
  Append<uint64_t>(&out, values.size());
  for (const auto& value : values) Append<T>(&out, static_cast<T>(value));
  return out;
}

}  // namespace

GgufBuilder& GgufBuilder::RawValue(std::string_view key, uint32_t type,
                                   std::vector<uint8_t> bytes) {
  entries_.push_back({std::string(key), type, std::move(bytes)});
  return *this;
}

GgufBuilder& GgufBuilder::Uint8(std::string_view key, uint8_t value) {
  return RawValue(key, 0, Bytes(value));
}
GgufBuilder& GgufBuilder::Int8(std::string_view key, int8_t value) {
  return RawValue(key, 1, Bytes(value));
}
GgufBuilder& GgufBuilder::Uint16(std::string_view key, uint16_t value) {
  return RawValue(key, 2, Bytes(value));
}
GgufBuilder& GgufBuilder::Int16(std::string_view key, int16_t value) {
  return RawValue(key, 3, Bytes(value));
}
GgufBuilder& GgufBuilder::Uint32(std::string_view key, uint32_t value) {
  return RawValue(key, 4, Bytes(value));
}
GgufBuilder& GgufBuilder::Int32(std::string_view key, int32_t value) {
  return RawValue(key, 5, Bytes(value));
}
GgufBuilder& GgufBuilder::Float32(std::string_view key, float value) {
  return RawValue(key, 6, Bytes(value));
}
GgufBuilder& GgufBuilder::Bool(std::string_view key, bool value) {
  return RawValue(key, 7, Bytes(static_cast<uint8_t>(value)));
}
GgufBuilder& GgufBuilder::String(std::string_view key, std::string_view value) {
  std::vector<uint8_t> bytes;
  AppendString(&bytes, value);
  return RawValue(key, 8, std::move(bytes));
}
GgufBuilder& GgufBuilder::Uint64(std::string_view key, uint64_t value) {
  return RawValue(key, 10, Bytes(value));
}
GgufBuilder& GgufBuilder::Int64(std::string_view key, int64_t value) {
  return RawValue(key, 11, Bytes(value));
}
GgufBuilder& GgufBuilder::Float64(std::string_view key, double value) {
  return RawValue(key, 12, Bytes(value));
}
GgufBuilder& GgufBuilder::Strings(std::string_view key, const std::vector<std::string>& values) {
  std::vector<uint8_t> bytes = ArrayBytes<uint8_t>(8, std::vector<uint8_t>());
  Poke64(&bytes, 4, values.size());
  for (const std::string& value : values) AppendString(&bytes, value);
  return RawValue(key, 9, std::move(bytes));
}
GgufBuilder& GgufBuilder::Int32s(std::string_view key, const std::vector<int32_t>& values) {
  return RawValue(key, 9, ArrayBytes<int32_t>(5, values));
}
GgufBuilder& GgufBuilder::Uint64s(std::string_view key, const std::vector<uint64_t>& values) {
  return RawValue(key, 9, ArrayBytes<uint64_t>(10, values));
}
GgufBuilder& GgufBuilder::Float32s(std::string_view key, const std::vector<float>& values) {
  return RawValue(key, 9, ArrayBytes<float>(6, values));
}
GgufBuilder& GgufBuilder::Bools(std::string_view key, const std::vector<bool>& values) {
  return RawValue(key, 9, ArrayBytes<uint8_t>(7, values));
}

GgufBuilder& GgufBuilder::Alignment(uint32_t alignment_bytes) {
  TS_CHECK(alignment_bytes > 0);
  alignment_bytes_ = alignment_bytes;
  return Uint32("general.alignment", alignment_bytes);
}

GgufBuilder& GgufBuilder::Tensor(std::string_view name, DType type,
                                 const std::vector<uint64_t>& dims, std::vector<uint8_t> data) {
  return RawTensor(name, static_cast<uint32_t>(type), dims, std::move(data));
}

GgufBuilder& GgufBuilder::RawTensor(std::string_view name, uint32_t type_number,
                                    const std::vector<uint64_t>& dims, std::vector<uint8_t> data) {
  tensors_.push_back({std::string(name), type_number, dims, std::move(data)});
  return *this;
}

std::vector<uint8_t> GgufBuilder::Build() {
  std::vector<uint8_t> out = {'G', 'G', 'U', 'F'};
  fields_.clear();
  const auto mark = [&](std::string label, uint32_t bytes) {
    fields_.push_back({std::move(label), out.size(), bytes});
  };
  mark("version", 4);
  Append<uint32_t>(&out, version_);
  mark("tensor_count", 8);
  Append<uint64_t>(&out, tensors_.size());
  mark("metadata_kv_count", 8);
  Append<uint64_t>(&out, entries_.size());
  for (const Entry& entry : entries_) {
    mark(entry.key + "/key", 8);
    AppendString(&out, entry.key);
    mark(entry.key + "/type", 4);
    Append<uint32_t>(&out, entry.type);
    if (entry.type == 9 && entry.bytes.size() >= 12) {
      fields_.push_back({entry.key + "/element type", out.size(), 4});
      fields_.push_back({entry.key + "/array length", out.size() + 4, 8});
    } else if (entry.bytes.size() >= 8) {
      mark(entry.key + "/value", 8);
    } else {
      mark(entry.key + "/value", static_cast<uint32_t>(entry.bytes.size()));
    }
    out.insert(out.end(), entry.bytes.begin(), entry.bytes.end());
  }
  uint64_t data_offset = 0;
  for (const TensorInfo& tensor : tensors_) {
    mark(tensor.name + "/name", 8);
    AppendString(&out, tensor.name);
    mark(tensor.name + "/n_dims", 4);
    Append<uint32_t>(&out, static_cast<uint32_t>(tensor.dims.size()));
    for (size_t d = 0; d < tensor.dims.size(); ++d) {
      mark(tensor.name + "/dims[" + std::to_string(d) + "]", 8);
      Append<uint64_t>(&out, tensor.dims[d]);
    }
    mark(tensor.name + "/type", 4);
    Append<uint32_t>(&out, tensor.type_number);
    mark(tensor.name + "/offset", 8);
    Append<uint64_t>(&out, data_offset);
    data_offset +=
        (tensor.data.size() + alignment_bytes_ - 1) / alignment_bytes_ * alignment_bytes_;
  }
  const auto pad = [&] {
    while (out.size() % alignment_bytes_ != 0) out.push_back(0);
  };
  for (const TensorInfo& tensor : tensors_) {
    pad();
    out.insert(out.end(), tensor.data.begin(), tensor.data.end());
  }
  return out;
}

uint64_t GgufBuilder::OffsetOf(std::string_view label) const {
  for (const Field& field : fields_) {
    if (field.label == label) return field.offset;
  }
  TS_CHECK(false && "no such field in the last Build()");
  return 0;
}

void Poke32(std::vector<uint8_t>* bytes, uint64_t offset, uint32_t value) {
  TS_CHECK(offset + sizeof value <= bytes->size());
  std::memcpy(bytes->data() + offset, &value, sizeof value);
}

void Poke64(std::vector<uint8_t>* bytes, uint64_t offset, uint64_t value) {
  TS_CHECK(offset + sizeof value <= bytes->size());
  std::memcpy(bytes->data() + offset, &value, sizeof value);
}

}  // namespace tinyserve
