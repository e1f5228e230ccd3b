#include "tensor/gguf_parser.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <numeric>
#include <type_traits>

#include "base/checked.h"

namespace tinyserve {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is read in place, little endian");

constexpr uint64_t kDefaultAlignmentBytes = 32;
constexpr uint64_t kAlignmentBytesMin = 8;
constexpr uint64_t kNameBytesMax = 65535;  // the format's own bound for keys
// The fewest bytes that an entry (key of one byte, type, one-byte value) and a tensor (name of one
// byte, one dimension) can take in a file.
constexpr uint64_t kEntryBytesMin = 8 + 1 + 4 + 1;
constexpr uint64_t kTensorInfoBytesMin = 8 + 1 + 4 + 8 + 4 + 8;

enum ValueType : uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};

// Heap bytes of a string of `length` bytes beyond the object itself.
uint64_t StringHeapBytes(uint64_t length) { return length > 15 ? length + 1 : 0; }

class ShardParser {
 public:
  ShardParser(std::span<const uint8_t> bytes, const std::string& name, uint32_t shard)
      : bytes_(bytes), name_(name), shard_(shard) {}

  Result<GgufShard> Run() {
    TS_RETURN_IF_ERROR(ReadHeader());
    TS_RETURN_IF_ERROR(ReadMetadata());
    TS_RETURN_IF_ERROR(ReadTensorInfos());
    TS_RETURN_IF_ERROR(PlaceTensors());
    return std::move(out_);
  }

 private:
  uint64_t remaining() const { return bytes_.size() - at_; }

  // "model.gguf: tensor 3 "blk.0.attn_q.weight": dims[1] at offset 1234: must not be 0"
  Status Fail(Code code, uint64_t offset, std::string_view field, std::string_view problem) const {
    std::string item;
    if (item_kind_ != nullptr) {
      item = fmt::format("{} {}{}{}: ", item_kind_, item_index_, item_name_.empty() ? "" : " ",
                         item_name_.empty() ? "" : QuotedName(item_name_));
    }
    return Status(code,
                  fmt::format("{}: {}{} at offset {}: {}", name_, item, field, offset, problem));
  }
  Status Corrupt(uint64_t offset, std::string_view field, std::string_view problem) const {
    return Fail(Code::kCorrupt, offset, field, problem);
  }

  template <class T>
  Status Read(std::string_view field, T* value) {
    if (remaining() < sizeof(T)) {
      return Corrupt(
          at_, field,
          fmt::format("the file ends here: needs {} bytes, has {}", sizeof(T), remaining()));
    }
    std::memcpy(value, bytes_.data() + at_, sizeof(T));
    at_ += sizeof(T);
    return Status();
  }

  // A view into the file.
  Status ReadString(std::string_view field, std::string_view* text) {
    const uint64_t start = at_;
    uint64_t length = 0;
    TS_RETURN_IF_ERROR(Read(field, &length));
    if (length > remaining()) {
      return Corrupt(
          start, field,
          fmt::format("string length {}, but only {} bytes are left", length, remaining()));
    }
    *text = std::string_view(reinterpret_cast<const char*>(bytes_.data() + at_), length);
    at_ += length;
    return Status();
  }

  Status ReadName(std::string_view field, std::string_view* text) {
    const uint64_t start = at_;
    TS_RETURN_IF_ERROR(ReadString(field, text));
    if (text->empty() || text->size() > kNameBytesMax) {
      return Corrupt(start, field,
                     fmt::format("length {}, must be 1 to {}", text->size(), kNameBytesMax));
    }
    return Status();
  }

  // REQUIRES: callers bound `count` by the remaining bytes first.
  Status Charge(uint64_t offset, std::string_view field, uint64_t count, uint64_t bytes_each) {
    const Checked total = Checked(header_memory_bytes_) + Checked(count) * Checked(bytes_each);
    if (!total.AtMost(kGgufHeaderMemoryBytesMax)) {
      return Fail(Code::kOutOfMemory, offset, field,
                  fmt::format("{} items would take the header past {} bytes of memory", count,
                              kGgufHeaderMemoryBytesMax));
    }
    header_memory_bytes_ = total.value();
    return Status();
  }

  Status ReadHeader();
  Status ReadMetadata();
  Status ReadEntry(MetaEntry* entry);
  Status ReadScalar(uint32_t type, MetaValue* value);
  Status ReadArray(MetaValue* value);
  template <class T, class Wide>
  Status ReadNumbers(uint64_t count, MetaValue* value);
  Status ReadBools(uint64_t count, MetaValue* value);
  Status ReadStrings(uint64_t count, MetaValue* value);
  template <class T, class Wide>
  Status ReadNumber(MetaValue* value) {
    T number = 0;
    TS_RETURN_IF_ERROR(Read("value", &number));
    *value = static_cast<Wide>(number);
    return Status();
  }
  Status FindAlignment();
  Status ReadTensorInfos();
  Status ReadTensorInfo(StoredTensor* tensor, uint64_t* relative_offset, uint64_t* field_offset);
  Status ReadDims(StoredTensor* tensor);
  Status CheckTensorNames();
  Status PlaceTensors();

  const std::span<const uint8_t> bytes_;
  const std::string& name_;
  const uint32_t shard_;
  uint64_t at_ = 0;  // the next byte to read; at most bytes_.size()
  uint64_t n_tensors_ = 0, n_entries_ = 0;
  uint64_t alignment_bytes_ = kDefaultAlignmentBytes;
  uint64_t header_memory_bytes_ = 0;
  // What the parser is inside of, for messages.
  const char* item_kind_ = nullptr;
  uint64_t item_index_ = 0;
  std::string_view item_name_;

  std::vector<uint64_t> entry_at_;          // file offset of each metadata entry
  std::vector<uint64_t> tensor_at_;         // file offset of each tensor's info
  std::vector<uint64_t> tensor_offset_at_;  // file offset of each tensor's `offset` field
  GgufShard out_;
};

Status ShardParser::ReadHeader() {
  uint8_t magic[4];
  if (bytes_.empty()) return Corrupt(0, "magic", "the file is empty");
  TS_RETURN_IF_ERROR(Read("magic", &magic));
  if (std::memcmp(magic, "GGUF", 4) != 0) {
    return Corrupt(
        0, "magic",
        fmt::format("not a GGUF file: it starts with {:02x} {:02x} {:02x} {:02x}, not \"GGUF\"",
                    magic[0], magic[1], magic[2], magic[3]));
  }
  TS_RETURN_IF_ERROR(Read("version", &out_.version));
  const uint32_t swapped = __builtin_bswap32(out_.version);
  if (swapped >= 1 && swapped <= 3) {
    return Fail(
        Code::kUnsupported, 4, "version",
        fmt::format("a big-endian file of version {}; only little-endian files are read", swapped));
  }
  if (out_.version != 2 && out_.version != 3) {
    return Fail(Code::kUnsupported, 4, "version",
                fmt::format("version {} is not known, must be 2 or 3", out_.version));
  }
  TS_RETURN_IF_ERROR(Read("tensor_count", &n_tensors_));
  TS_RETURN_IF_ERROR(Read("metadata_kv_count", &n_entries_));
  if (n_entries_ > remaining() / kEntryBytesMin) {
    return Corrupt(
        16, "metadata_kv_count",
        fmt::format("{} entries cannot fit in the {} bytes left", n_entries_, remaining()));
  }
  if (n_tensors_ > remaining() / kTensorInfoBytesMin) {
    return Corrupt(
        8, "tensor_count",
        fmt::format("{} tensors cannot fit in the {} bytes left", n_tensors_, remaining()));
  }
  TS_RETURN_IF_ERROR(Charge(16, "metadata_kv_count", n_entries_,
                            sizeof(MetaEntry) + sizeof(uint64_t) + sizeof(uint32_t)));
  return Charge(8, "tensor_count", n_tensors_,
                sizeof(StoredTensor) + 3 * sizeof(uint64_t) + 2 * sizeof(uint32_t));
}

Status ShardParser::ReadMetadata() {
  out_.metadata.resize(n_entries_);
  entry_at_.resize(n_entries_);
  item_kind_ = "metadata entry";
  for (uint64_t i = 0; i < n_entries_; ++i) {
    item_index_ = i;
    item_name_ = {};
    entry_at_[i] = at_;
    TS_RETURN_IF_ERROR(ReadEntry(&out_.metadata[i]));
  }
  out_.metadata_by_key.resize(n_entries_);
  std::iota(out_.metadata_by_key.begin(), out_.metadata_by_key.end(), 0u);
  std::sort(out_.metadata_by_key.begin(), out_.metadata_by_key.end(),
            [this](uint32_t a, uint32_t b) {
              const int order = out_.metadata[a].key.compare(out_.metadata[b].key);
              return order != 0 ? order < 0 : a < b;
            });
  for (uint64_t i = 1; i < n_entries_; ++i) {
    const uint32_t first = out_.metadata_by_key[i - 1], second = out_.metadata_by_key[i];
    if (out_.metadata[first].key != out_.metadata[second].key) continue;
    item_index_ = second;
    item_name_ = out_.metadata[second].key;
    return Corrupt(entry_at_[second], "key", fmt::format("the same key as entry {}", first));
  }
  item_kind_ = nullptr;
  return FindAlignment();
}

Status ShardParser::ReadEntry(MetaEntry* entry) {
  const uint64_t key_at = at_;
  std::string_view key;
  TS_RETURN_IF_ERROR(ReadName("key", &key));
  item_name_ = key;
  TS_RETURN_IF_ERROR(Charge(key_at, "key", 1, StringHeapBytes(key.size())));
  entry->key = key;
  const uint64_t type_at = at_;
  uint32_t type = 0;
  TS_RETURN_IF_ERROR(Read("value type", &type));
  if (type > kF64) {
    return Corrupt(type_at, "value type",
                   fmt::format("{} is not known, must be 0 to {}", type, +kF64));
  }
  if (type == kArray) return ReadArray(&entry->value);
  return ReadScalar(type, &entry->value);
}

Status ShardParser::ReadScalar(uint32_t type, MetaValue* value) {
  switch (type) {
    case kU8:
      return ReadNumber<uint8_t, uint64_t>(value);
    case kI8:
      return ReadNumber<int8_t, int64_t>(value);
    case kU16:
      return ReadNumber<uint16_t, uint64_t>(value);
    case kI16:
      return ReadNumber<int16_t, int64_t>(value);
    case kU32:
      return ReadNumber<uint32_t, uint64_t>(value);
    case kI32:
      return ReadNumber<int32_t, int64_t>(value);
    case kU64:
      return ReadNumber<uint64_t, uint64_t>(value);
    case kI64:
      return ReadNumber<int64_t, int64_t>(value);
    case kF32:
      return ReadNumber<float, double>(value);
    case kF64:
      return ReadNumber<double, double>(value);
    case kBool: {
      const uint64_t start = at_;
      uint8_t byte = 0;
      TS_RETURN_IF_ERROR(Read("value", &byte));
      if (byte > 1) return Corrupt(start, "value", fmt::format("bool {}, must be 0 or 1", byte));
      *value = byte == 1;
      return Status();
    }
    default: {
      TS_CHECK(type == kString);
      const uint64_t start = at_;
      std::string_view text;
      TS_RETURN_IF_ERROR(ReadString("value", &text));
      TS_RETURN_IF_ERROR(Charge(start, "value", 1, StringHeapBytes(text.size())));
      *value = std::string(text);
      return Status();
    }
  }
}

Status ShardParser::ReadArray(MetaValue* value) {
  const uint64_t type_at = at_;
  uint32_t type = 0;
  TS_RETURN_IF_ERROR(Read("element type", &type));
  if (type == kArray) {
    return Fail(Code::kUnsupported, type_at, "element type",
                "an array of arrays (depth 2); only flat arrays are read");
  }
  if (type > kF64) {
    return Corrupt(type_at, "element type",
                   fmt::format("{} is not known, must be 0 to {}", type, +kF64));
  }
  const uint64_t count_at = at_;
  uint64_t count = 0;
  TS_RETURN_IF_ERROR(Read("array length", &count));
  // Bytes that an element takes in the file (for a string: at least), and in memory.
  static constexpr uint8_t kFileBytes[kF64 + 1] = {1, 1, 2, 2, 4, 4, 4, 1, 8, 0, 8, 8, 8};
  if (count > remaining() / kFileBytes[type]) {
    return Corrupt(count_at, "array length",
                   fmt::format("{} elements of at least {} bytes, but only {} bytes are left",
                               count, kFileBytes[type], remaining()));
  }
  const uint64_t memory_bytes = type == kString ? sizeof(std::string) : type == kBool ? 1 : 8;
  TS_RETURN_IF_ERROR(Charge(count_at, "array length", count, memory_bytes));
  switch (type) {
    case kU8:
      return ReadNumbers<uint8_t, int64_t>(count, value);
    case kI8:
      return ReadNumbers<int8_t, int64_t>(count, value);
    case kU16:
      return ReadNumbers<uint16_t, int64_t>(count, value);
    case kI16:
      return ReadNumbers<int16_t, int64_t>(count, value);
    case kU32:
      return ReadNumbers<uint32_t, int64_t>(count, value);
    case kI32:
      return ReadNumbers<int32_t, int64_t>(count, value);
    case kU64:
      return ReadNumbers<uint64_t, int64_t>(count, value);
    case kI64:
      return ReadNumbers<int64_t, int64_t>(count, value);
    case kF32:
      return ReadNumbers<float, double>(count, value);
    case kF64:
      return ReadNumbers<double, double>(count, value);
    case kBool:
      return ReadBools(count, value);
    default:
      return ReadStrings(count, value);
  }
}

// REQUIRES: the array's bytes are in the file.
template <class T, class Wide>
Status ShardParser::ReadNumbers(uint64_t count, MetaValue* value) {
  std::vector<Wide> numbers(count);
  for (uint64_t i = 0; i < count; ++i) {
    T number = 0;
    std::memcpy(&number, bytes_.data() + at_ + i * sizeof(T), sizeof(T));
    if constexpr (std::is_same_v<T, uint64_t>) {
      if (number > uint64_t{std::numeric_limits<int64_t>::max()}) {
        return Corrupt(at_ + i * sizeof(T), "array element",
                       fmt::format("element {} is {}, must be below 2^63", i, number));
      }
    }
    numbers[i] = static_cast<Wide>(number);
  }
  at_ += count * sizeof(T);
  *value = std::move(numbers);
  return Status();
}

// REQUIRES: the array's bytes are in the file.
Status ShardParser::ReadBools(uint64_t count, MetaValue* value) {
  std::vector<bool> bools(count);
  for (uint64_t i = 0; i < count; ++i) {
    const uint8_t byte = bytes_[at_ + i];
    if (byte > 1) {
      return Corrupt(at_ + i, "array element",
                     fmt::format("element {} is bool {}, must be 0 or 1", i, byte));
    }
    bools[i] = byte == 1;
  }
  at_ += count;
  *value = std::move(bools);
  return Status();
}

Status ShardParser::ReadStrings(uint64_t count, MetaValue* value) {
  std::vector<std::string> strings;
  strings.reserve(count);
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t start = at_;
    std::string_view text;
    TS_RETURN_IF_ERROR(ReadString("array element", &text));
    TS_RETURN_IF_ERROR(Charge(start, "array element", 1, StringHeapBytes(text.size())));
    strings.emplace_back(text);
  }
  *value = std::move(strings);
  return Status();
}

Status ShardParser::FindAlignment() {
  const MetaEntry* entry = FindEntry(out_.metadata, out_.metadata_by_key, "general.alignment");
  if (entry == nullptr) return Status();
  item_kind_ = "metadata entry";
  item_index_ = static_cast<uint64_t>(entry - out_.metadata.data());
  item_name_ = entry->key;
  const uint64_t* alignment = std::get_if<uint64_t>(&entry->value);
  const uint64_t value_at = entry_at_[item_index_] + 8 + entry->key.size() + 4;
  if (alignment == nullptr) return Corrupt(value_at, "value", "must be an unsigned integer");
  if (*alignment < kAlignmentBytesMin || !std::has_single_bit(*alignment)) {
    return Corrupt(value_at, "value",
                   fmt::format("alignment {}, must be a power of two of at least {}", *alignment,
                               kAlignmentBytesMin));
  }
  alignment_bytes_ = *alignment;
  item_kind_ = nullptr;
  return Status();
}

Status ShardParser::ReadTensorInfos() {
  item_kind_ = "tensor";
  if (n_tensors_ > remaining() / kTensorInfoBytesMin) {
    item_kind_ = nullptr;
    return Corrupt(8, "tensor_count",
                   fmt::format("{} tensors cannot fit in the {} bytes left after the metadata",
                               n_tensors_, remaining()));
  }
  out_.tensors.resize(n_tensors_);
  tensor_at_.resize(n_tensors_);
  tensor_offset_at_.resize(n_tensors_);
  for (uint64_t i = 0; i < n_tensors_; ++i) {
    item_index_ = i;
    item_name_ = {};
    tensor_at_[i] = at_;
    TS_RETURN_IF_ERROR(
        ReadTensorInfo(&out_.tensors[i], &out_.tensors[i].offset, &tensor_offset_at_[i]));
  }
  return CheckTensorNames();
}

// Leaves in `relative_offset` the tensor's offset from the start of the data section.
Status ShardParser::ReadTensorInfo(StoredTensor* tensor, uint64_t* relative_offset,
                                   uint64_t* field_offset) {
  const uint64_t name_at = at_;
  std::string_view name;
  TS_RETURN_IF_ERROR(ReadName("name", &name));
  item_name_ = name;
  TS_RETURN_IF_ERROR(Charge(name_at, "name", 1, StringHeapBytes(name.size())));
  tensor->name = name;
  tensor->shard = shard_;
  TS_RETURN_IF_ERROR(ReadDims(tensor));
  const uint64_t dims_at = at_ - tensor->n_dims * sizeof(uint64_t);
  const uint64_t type_at = at_;
  uint32_t type_number = 0;
  TS_RETURN_IF_ERROR(Read("type", &type_number));
  Result<DType> type = DTypeFromGguf(type_number);
  if (!type.ok()) return Fail(type.status().code(), type_at, "type", type.status().message());
  tensor->type = *type;
  const DTypeInfo& info = InfoOf(tensor->type);
  if (tensor->cols % info.block_elems != 0) {
    return Corrupt(dims_at, "dims[0]",
                   fmt::format("{} is not a multiple of the {} elements of a {} block",
                               tensor->cols, info.block_elems, info.name));
  }
  const Checked bytes = Checked(tensor->rows) *
                        (Checked(tensor->cols / info.block_elems) * Checked(info.block_bytes));
  if (!bytes.AtMost(bytes_.size())) {
    return Corrupt(dims_at, "dims",
                   fmt::format("{} rows of {} {} elements are more than the file's {} bytes",
                               tensor->rows, tensor->cols, info.name, bytes_.size()));
  }
  tensor->bytes = bytes.value();
  *field_offset = at_;
  return Read("offset", relative_offset);
}

Status ShardParser::ReadDims(StoredTensor* tensor) {
  const uint64_t n_dims_at = at_;
  TS_RETURN_IF_ERROR(Read("n_dims", &tensor->n_dims));
  if (tensor->n_dims < 1 || tensor->n_dims > 4) {
    return Corrupt(n_dims_at, "n_dims", fmt::format("{}, must be 1 to 4", tensor->n_dims));
  }
  static constexpr const char* kFields[4] = {"dims[0]", "dims[1]", "dims[2]", "dims[3]"};
  Checked rows(1);
  for (uint32_t d = 0; d < 4; ++d) {
    tensor->dims[d] = 1;
    if (d >= tensor->n_dims) continue;
    const uint64_t dim_at = at_;
    TS_RETURN_IF_ERROR(Read(kFields[d], &tensor->dims[d]));
    if (tensor->dims[d] == 0) return Corrupt(dim_at, kFields[d], "must not be 0");
    if (d > 0) rows = rows * Checked(tensor->dims[d]);
    if (!rows.valid()) {
      return Corrupt(dim_at, kFields[d],
                     fmt::format("{} makes the number of rows overflow 64 bits", tensor->dims[d]));
    }
  }
  tensor->cols = tensor->dims[0];
  tensor->rows = rows.value();
  return Status();
}

Status ShardParser::CheckTensorNames() {
  std::vector<uint32_t> order(n_tensors_);
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(), [this](uint32_t a, uint32_t b) {
    const int compared = out_.tensors[a].name.compare(out_.tensors[b].name);
    return compared != 0 ? compared < 0 : a < b;
  });
  for (uint64_t i = 1; i < n_tensors_; ++i) {
    if (out_.tensors[order[i - 1]].name != out_.tensors[order[i]].name) continue;
    item_index_ = order[i];
    item_name_ = out_.tensors[order[i]].name;
    return Corrupt(tensor_at_[order[i]], "name",
                   fmt::format("the same name as tensor {}", order[i - 1]));
  }
  return Status();
}

// Turns offsets into the data section into extents of the file. Extents are disjoint, so that what
// a loader copies is never more than the file itself.
Status ShardParser::PlaceTensors() {
  if (n_tensors_ == 0) return Status();
  const Checked data_start = Checked(at_).RoundUp(alignment_bytes_);
  if (!data_start.AtMost(bytes_.size())) {
    item_kind_ = nullptr;
    return Corrupt(
        at_, "tensor data",
        fmt::format("the file ends before its data section (alignment {}, file of {} bytes)",
                    alignment_bytes_, bytes_.size()));
  }
  for (uint64_t i = 0; i < n_tensors_; ++i) {
    StoredTensor& tensor = out_.tensors[i];
    item_index_ = i;
    item_name_ = tensor.name;
    const uint64_t relative = tensor.offset;
    if (relative % alignment_bytes_ != 0) {
      return Corrupt(
          tensor_offset_at_[i], "offset",
          fmt::format("{} is not a multiple of the alignment {}", relative, alignment_bytes_));
    }
    const Checked begin = data_start + Checked(relative);
    if (!(begin + Checked(tensor.bytes)).AtMost(bytes_.size())) {
      return Corrupt(
          tensor_offset_at_[i], "offset",
          fmt::format("{} bytes at {} of the data section (which starts at {}) end past the "
                      "file's {} bytes: is it truncated?",
                      tensor.bytes, relative, data_start.value(), bytes_.size()));
    }
    tensor.offset = begin.value();
    tensor.data = bytes_.data() + tensor.offset;
  }
  std::vector<uint32_t> order(n_tensors_);
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(), [this](uint32_t a, uint32_t b) {
    const uint64_t at_a = out_.tensors[a].offset, at_b = out_.tensors[b].offset;
    return at_a != at_b ? at_a < at_b : a < b;
  });
  for (uint64_t i = 1; i < n_tensors_; ++i) {
    const StoredTensor& before = out_.tensors[order[i - 1]];
    if (before.offset + before.bytes <= out_.tensors[order[i]].offset) continue;
    item_index_ = order[i];
    item_name_ = out_.tensors[order[i]].name;
    return Corrupt(tensor_offset_at_[order[i]], "offset",
                   fmt::format("its data overlaps that of tensor {} {}", order[i - 1],
                               QuotedName(before.name)));
  }
  return Status();
}

}  // namespace

Result<GgufShard> ParseGgufShard(std::span<const uint8_t> bytes, const std::string& name,
                                 uint32_t shard) {
  return ShardParser(bytes, name, shard).Run();
}

std::string QuotedName(std::string_view name) {
  constexpr size_t kShownBytes = 80;
  std::string quoted = "\"";
  for (const char c : name.substr(0, kShownBytes)) {
    if (c >= 0x20 && c < 0x7f && c != '"' && c != '\\') {
      quoted += c;
    } else {
      quoted += fmt::format("\\x{:02x}", static_cast<uint8_t>(c));
    }
  }
  quoted += name.size() > kShownBytes ? "...\"" : "\"";
  return quoted;
}

const MetaEntry* FindEntry(const std::vector<MetaEntry>& metadata,
                           const std::vector<uint32_t>& by_key, std::string_view key) {
  const auto at = std::lower_bound(by_key.begin(), by_key.end(), key,
                                   [&metadata](uint32_t index, std::string_view wanted) {
                                     return metadata[index].key < wanted;
                                   });
  if (at == by_key.end() || metadata[*at].key != key) return nullptr;
  return &metadata[*at];
}

}  // namespace tinyserve
