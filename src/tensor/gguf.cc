#include "tensor/gguf.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <numeric>

#include "base/checked.h"
#include "tensor/gguf_parser.h"

namespace tinyserve {
namespace {

constexpr uint64_t kShardsMax = 65535;  // the format stores split.no and split.count in 16 bits

const char* ClassName(const MetaValue& value) {
  static constexpr const char* kNames[] = {"an unsigned integer",
                                           "a signed integer",
                                           "a float",
                                           "a bool",
                                           "a string",
                                           "an integer array",
                                           "an array of floats",
                                           "an array of bools",
                                           "an array of strings"};
  static_assert(std::size(kNames) == std::variant_size_v<MetaValue>);
  return kNames[value.index()];
}

Status WrongClass(std::string_view key, const MetaValue& value, const char* wanted) {
  return Status(Code::kCorrupt, fmt::format("metadata key {}: is {}, must be {}", QuotedName(key),
                                            ClassName(value), wanted));
}

Status AbsentKey(std::string_view key) {
  return Status(Code::kNotFound, fmt::format("metadata key {}: not in the file", QuotedName(key)));
}

Result<uint64_t> AsUint(std::string_view key, const MetaValue& value) {
  if (const auto* number = std::get_if<uint64_t>(&value)) return *number;
  if (const auto* number = std::get_if<int64_t>(&value)) {
    if (*number >= 0) return static_cast<uint64_t>(*number);
    return Status(Code::kCorrupt, fmt::format("metadata key {}: is {}, must not be negative",
                                              QuotedName(key), *number));
  }
  return WrongClass(key, value, "an integer");
}

// What a shard says about its place in a split model; `count` is 1 for a file that is whole.
struct SplitFields {
  uint64_t no = 0, count = 1;
  bool has_tensor_count = false;
  uint64_t tensor_count = 0;  // of all shards
};

Status ReadSplitField(const GgufShard& shard, const std::string& path, std::string_view key,
                      uint64_t limit, bool* present, uint64_t* out) {
  const MetaEntry* entry = FindEntry(shard.metadata, shard.metadata_by_key, key);
  *present = entry != nullptr;
  if (entry == nullptr) return Status();
  Result<uint64_t> value = AsUint(key, entry->value);
  if (!value.ok()) return Status(value.status().code(), path + ": " + value.status().message());
  if (*value > limit) {
    return Status(Code::kCorrupt, fmt::format("{}: metadata key {}: is {}, must be at most {}",
                                              path, QuotedName(key), *value, limit));
  }
  *out = *value;
  return Status();
}

Result<SplitFields> ReadSplitFields(const GgufShard& shard, const std::string& path) {
  SplitFields split;
  bool has_no = false, has_count = false;
  TS_RETURN_IF_ERROR(
      ReadSplitField(shard, path, "split.count", kShardsMax, &has_count, &split.count));
  TS_RETURN_IF_ERROR(ReadSplitField(shard, path, "split.no", kShardsMax, &has_no, &split.no));
  TS_RETURN_IF_ERROR(ReadSplitField(shard, path, "split.tensors.count",
                                    std::numeric_limits<uint32_t>::max(), &split.has_tensor_count,
                                    &split.tensor_count));
  if (split.count <= 1) return SplitFields();
  if (!has_no || split.no >= split.count) {
    return Status(
        Code::kCorrupt,
        fmt::format("{}: metadata key \"split.no\": {}, must be below split.count {}", path,
                    has_no ? fmt::format("is {}", split.no) : "not in the file", split.count));
  }
  return split;
}

std::string ShardSuffix(uint64_t no, uint64_t count) {
  return fmt::format("-{:05}-of-{:05}.gguf", no + 1, count);
}

}  // namespace

Result<std::unique_ptr<GgufFile>> GgufFile::Open(const std::string& path) {
  TS_ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::Open(path));
  TS_ASSIGN_OR_RETURN(GgufShard shard, ParseGgufShard(mapped.bytes(), path, 0));
  TS_ASSIGN_OR_RETURN(const SplitFields split, ReadSplitFields(shard, path));
  std::unique_ptr<GgufFile> file(new GgufFile());
  if (split.count == 1) {
    file->AddShard(std::move(shard), mapped.bytes().size());
    file->shards_.push_back(std::move(mapped));
    TS_RETURN_IF_ERROR(file->IndexTensors(path));
    return file;
  }
  const std::string suffix = ShardSuffix(split.no, split.count);
  if (!path.ends_with(suffix)) {
    return Status(
        Code::kInvalidArgument,
        fmt::format("{}: its metadata says that it is part {} of {}, so its name must end in "
                    "\"{}\" for the other parts to be found",
                    path, split.no + 1, split.count, suffix));
  }
  const std::string prefix = path.substr(0, path.size() - suffix.size());
  for (uint64_t no = 0; no < split.count; ++no) {
    const std::string part_path = prefix + ShardSuffix(no, split.count);
    TS_ASSIGN_OR_RETURN(MappedFile part, MappedFile::Open(part_path));
    TS_ASSIGN_OR_RETURN(GgufShard parsed,
                        ParseGgufShard(part.bytes(), part_path, static_cast<uint32_t>(no)));
    TS_ASSIGN_OR_RETURN(const SplitFields fields, ReadSplitFields(parsed, part_path));
    if (fields.count != split.count || fields.no != no) {
      return Status(
          Code::kCorrupt,
          fmt::format("{}: its metadata says part {} of {} (split.no, split.count), its name "
                      "says part {} of {}",
                      part_path, fields.no + 1, fields.count, no + 1, split.count));
    }
    file->AddShard(std::move(parsed), part.bytes().size());
    file->shards_.push_back(std::move(part));
  }
  TS_RETURN_IF_ERROR(file->IndexTensors(path));
  if (split.has_tensor_count && split.tensor_count != file->tensors_.size()) {
    return Status(Code::kCorrupt,
                  fmt::format("{}: metadata key \"split.tensors.count\": is {}, but the "
                              "{} parts hold {} tensors",
                              path, split.tensor_count, split.count, file->tensors_.size()));
  }
  return file;
}

Result<std::unique_ptr<GgufFile>> GgufFile::Parse(std::span<const uint8_t> bytes,
                                                  const std::string& name) {
  TS_ASSIGN_OR_RETURN(GgufShard shard, ParseGgufShard(bytes, name, 0));
  TS_ASSIGN_OR_RETURN(const SplitFields split, ReadSplitFields(shard, name));
  if (split.count > 1) {
    return Status(
        Code::kUnsupported,
        fmt::format("{}: metadata key \"split.count\": is {}; bytes in memory must be one "
                    "whole file",
                    name, split.count));
  }
  std::unique_ptr<GgufFile> file(new GgufFile());
  file->AddShard(std::move(shard), bytes.size());
  TS_RETURN_IF_ERROR(file->IndexTensors(name));
  return file;
}

void GgufFile::AddShard(GgufShard shard, uint64_t bytes) {
  file_bytes_ += bytes;
  if (version_ == 0) {
    version_ = shard.version;
    metadata_ = std::move(shard.metadata);
    metadata_by_key_ = std::move(shard.metadata_by_key);
  }
  std::move(shard.tensors.begin(), shard.tensors.end(), std::back_inserter(tensors_));
}

Status GgufFile::IndexTensors(const std::string& name) {
  tensors_by_name_.resize(tensors_.size());
  std::iota(tensors_by_name_.begin(), tensors_by_name_.end(), 0u);
  std::sort(tensors_by_name_.begin(), tensors_by_name_.end(), [this](uint32_t a, uint32_t b) {
    const int order = tensors_[a].name.compare(tensors_[b].name);
    return order != 0 ? order < 0 : a < b;
  });
  for (size_t i = 1; i < tensors_by_name_.size(); ++i) {
    const StoredTensor& first = tensors_[tensors_by_name_[i - 1]];
    const StoredTensor& second = tensors_[tensors_by_name_[i]];
    if (first.name != second.name) continue;
    return Status(Code::kCorrupt,
                  fmt::format("{}: tensor {}: in part {} and again in part {}", name,
                              QuotedName(first.name), first.shard + 1, second.shard + 1));
  }
  return Status();
}

uint64_t GgufFile::tensor_bytes() const {
  uint64_t bytes = 0;
  for (const StoredTensor& tensor : tensors_) bytes += tensor.bytes;
  return bytes;
}

const MetaValue* GgufFile::Find(std::string_view key) const {
  const MetaEntry* entry = FindEntry(metadata_, metadata_by_key_, key);
  return entry == nullptr ? nullptr : &entry->value;
}

const StoredTensor* GgufFile::FindTensor(std::string_view name) const {
  const auto at = std::lower_bound(
      tensors_by_name_.begin(), tensors_by_name_.end(), name,
      [this](uint32_t index, std::string_view wanted) { return tensors_[index].name < wanted; });
  if (at == tensors_by_name_.end() || tensors_[*at].name != name) return nullptr;
  return &tensors_[*at];
}

Result<const StoredTensor*> GgufFile::RequireTensor(std::string_view name, uint64_t rows,
                                                    uint64_t cols) const {
  const StoredTensor* tensor = FindTensor(name);
  if (tensor == nullptr)
    return Status(Code::kNotFound, fmt::format("the model file has no tensor '{}'", name));
  if (tensor->rows != rows || tensor->cols != cols) {
    return Status(Code::kCorrupt,
                  fmt::format("tensor '{}' is {} x {}: the model's configuration asks for {} x {}",
                              name, tensor->rows, tensor->cols, rows, cols));
  }
  return tensor;
}

Result<uint64_t> GgufFile::GetUint(std::string_view key) const {
  const MetaValue* value = Find(key);
  if (value == nullptr) return AbsentKey(key);
  return AsUint(key, *value);
}

Result<double> GgufFile::GetFloat(std::string_view key) const {
  const MetaValue* value = Find(key);
  if (value == nullptr) return AbsentKey(key);
  if (const auto* number = std::get_if<double>(value)) return *number;
  if (const auto* number = std::get_if<uint64_t>(value)) return static_cast<double>(*number);
  if (const auto* number = std::get_if<int64_t>(value)) return static_cast<double>(*number);
  return WrongClass(key, *value, "a number");
}

Result<bool> GgufFile::GetBool(std::string_view key) const {
  const MetaValue* value = Find(key);
  if (value == nullptr) return AbsentKey(key);
  if (const auto* flag = std::get_if<bool>(value)) return *flag;
  return WrongClass(key, *value, "a bool");
}

Result<std::string> GgufFile::GetString(std::string_view key) const {
  const MetaValue* value = Find(key);
  if (value == nullptr) return AbsentKey(key);
  if (const auto* text = std::get_if<std::string>(value)) return *text;
  return WrongClass(key, *value, "a string");
}

void GgufFile::ReleasePages(const StoredTensor& tensor) const {
  if (tensor.shard < shards_.size()) shards_[tensor.shard].Release(tensor.offset, tensor.bytes);
}

Result<DType> DTypeFromGguf(uint32_t type_number) {
  struct Row {
    uint32_t number;
    const char* name;
  };
  // Every number that GGUF files have carried, the withdrawn ones included.
  static constexpr Row kOthers[] = {
      {4, "Q4_2"},        {5, "Q4_3"},        {9, "Q8_1"},        {10, "Q2_K"},    {11, "Q3_K"},
      {15, "Q8_K"},       {16, "IQ2_XXS"},    {17, "IQ2_XS"},     {18, "IQ3_XXS"}, {19, "IQ1_S"},
      {20, "IQ4_NL"},     {21, "IQ3_S"},      {22, "IQ2_S"},      {23, "IQ4_XS"},  {24, "I8"},
      {25, "I16"},        {26, "I32"},        {27, "I64"},        {28, "F64"},     {29, "IQ1_M"},
      {31, "Q4_0_4_4"},   {32, "Q4_0_4_8"},   {33, "Q4_0_8_8"},   {34, "TQ1_0"},   {35, "TQ2_0"},
      {36, "IQ4_NL_4_4"}, {37, "IQ4_NL_4_8"}, {38, "IQ4_NL_8_8"}, {39, "MXFP4"},   {40, "NVFP4"},
      {41, "Q1_0"}};
  static constexpr const char* kReadable = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q4_K Q5_K Q6_K";
  switch (type_number) {
    case 0:
      return DType::kF32;
    case 1:
      return DType::kF16;
    case 2:
      return DType::kQ4_0;
    case 3:
      return DType::kQ4_1;
    case 6:
      return DType::kQ5_0;
    case 7:
      return DType::kQ5_1;
    case 8:
      return DType::kQ8_0;
    case 12:
      return DType::kQ4_K;
    case 13:
      return DType::kQ5_K;
    case 14:
      return DType::kQ6_K;
    case 30:
      return DType::kBF16;
    default:
      break;
  }
  for (const Row& row : kOthers) {
    if (row.number != type_number) continue;
    return Status(Code::kUnsupported,
                  fmt::format("type {} is not supported; supported: {}", row.name, kReadable));
  }
  return Status(Code::kUnsupported,
                fmt::format("type number {} is not known; supported: {}", type_number, kReadable));
}

}  // namespace tinyserve
