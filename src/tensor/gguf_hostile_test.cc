// Files that lie. Each test changes fields of a small valid file; the reader must refuse with a
// message that names the file, the field and the file offset, or read only what is there.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/convert.h"
#include "tensor/gguf.h"
#include "tests/support/gguf_builder.h"

namespace tinyserve {
namespace {

constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();

// One of each kind of value, an odd alignment, and tensors of three types.
GgufBuilder Sample() {
  GgufBuilder builder;
  builder.Uint32("u32", 7).String("text", "hello").Bool("flag", true).Float64("f64", 0.5);
  builder.Strings("strings", {"a", "bc", ""}).Int32s("ints", {1, 2}).Bools("bools", {true, false});
  builder.Uint64s("longs", {1, 2}).Alignment(64);
  builder.Tensor("f", DType::kF32, {4, 2}, std::vector<uint8_t>(32, 1));
  builder.Tensor("q", DType::kQ4_1, {64, 2, 1}, std::vector<uint8_t>(80, 2));
  builder.Tensor("k", DType::kQ6_K, {256}, std::vector<uint8_t>(210, 3));
  return builder;
}

// Parses, and touches all that the result claims to hold, so that a sanitizer sees a wrong extent.
Status ParseAndTouch(const std::vector<uint8_t>& bytes) {
  auto file = GgufFile::Parse(bytes, "hostile.gguf");
  if (!file.ok()) return file.status();
  uint64_t tensor_bytes = 0;
  for (const StoredTensor& tensor : (*file)->tensors()) {
    EXPECT_GE(tensor.data, bytes.data());
    EXPECT_LE(tensor.data + tensor.bytes, bytes.data() + bytes.size());
    std::vector<float> row(tensor.cols);
    for (uint64_t r = 0; r < tensor.rows; ++r) {
      DequantizeRow(tensor.type, tensor.data + r * RowBytes(tensor.type, tensor.cols), tensor.cols,
                    row.data());
    }
    EXPECT_EQ((*file)->FindTensor(tensor.name), &tensor);
    tensor_bytes += tensor.bytes;
  }
  EXPECT_LE(tensor_bytes, bytes.size());  // no amplification
  for (const MetaEntry& entry : (*file)->metadata()) {
    EXPECT_EQ((*file)->Find(entry.key), &entry.value);
    // Typed lookups of whatever class: an answer or a Status, never a null value.
    const bool answers[] = {(*file)->GetUint(entry.key).ok(), (*file)->GetFloat(entry.key).ok(),
                            (*file)->GetBool(entry.key).ok(), (*file)->GetString(entry.key).ok()};
    EXPECT_LE(answers[0] + answers[1] + answers[2] + answers[3], 2);
  }
  return Status();
}

// Every refusal reads "hostile.gguf: ITEM: FIELD at offset N: PROBLEM", the item absent in the
// header, N inside the file or at its end.
void ExpectGoodMessage(const Status& status, size_t file_bytes) {
  static const std::string kFile = "hostile.gguf: ", kAt = " at offset ";
  const std::string& text = status.message();
  ASSERT_TRUE(text.starts_with(kFile)) << text;
  const size_t at = text.find(kAt);
  ASSERT_NE(at, std::string::npos) << text;
  ASSERT_GT(at, kFile.size()) << "no field in: " << text;
  char* end = nullptr;
  EXPECT_LE(std::strtoull(text.c_str() + at + kAt.size(), &end, 10), file_bytes) << text;
  EXPECT_TRUE(std::string_view(end).starts_with(": ")) << text;
  EXPECT_GT(std::string_view(end).size(), 4u) << "no problem in: " << text;
}

void ExpectRefused(const std::vector<uint8_t>& bytes, Code code,
                   std::initializer_list<std::string> parts) {
  const Status status = ParseAndTouch(bytes);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.code(), code) << status.message();
  ExpectGoodMessage(status, bytes.size());
  for (const std::string& part : parts) {
    EXPECT_NE(status.message().find(part), std::string::npos)
        << "no \"" << part << "\" in: " << status.message();
  }
}

// A copy of Sample() with one field overwritten.
std::vector<uint8_t> With64(const std::string& label, uint64_t value, uint64_t* offset = nullptr) {
  GgufBuilder builder = Sample();
  std::vector<uint8_t> bytes = builder.Build();
  Poke64(&bytes, builder.OffsetOf(label), value);
  if (offset != nullptr) *offset = builder.OffsetOf(label);
  return bytes;
}
std::vector<uint8_t> With32(const std::string& label, uint32_t value, uint64_t* offset = nullptr) {
  GgufBuilder builder = Sample();
  std::vector<uint8_t> bytes = builder.Build();
  Poke32(&bytes, builder.OffsetOf(label), value);
  if (offset != nullptr) *offset = builder.OffsetOf(label);
  return bytes;
}
std::string At(uint64_t offset) { return "at offset " + std::to_string(offset) + ":"; }

TEST(GgufHostileTest, TheSampleItselfIsSound) {
  const Status status = ParseAndTouch(Sample().Build());
  EXPECT_TRUE(status.ok()) << status.message();
}

// ---- Properties over the whole file ----

TEST(GgufHostileTest, EveryFieldSurvivesEveryExtremeValue) {
  GgufBuilder builder = Sample();
  const std::vector<uint8_t> bytes = builder.Build();
  const uint64_t size = bytes.size();
  for (const GgufBuilder::Field& field : builder.fields()) {
    for (const uint64_t value :
         {uint64_t{0}, uint64_t{1}, uint64_t{5}, size - 1, size, size + 1, uint64_t{0x7fffffff},
          uint64_t{0x80000000}, uint64_t{0xffffffff}, uint64_t{1} << 32, uint64_t{1} << 61,
          uint64_t{1} << 62, (uint64_t{1} << 63) - 1, uint64_t{1} << 63, kMax - 63, kMax - 7,
          kMax}) {
      SCOPED_TRACE(field.label + " = " + std::to_string(value));
      std::vector<uint8_t> changed = bytes;
      std::memcpy(changed.data() + field.offset, &value, field.bytes);
      const Status status = ParseAndTouch(changed);
      if (!status.ok()) ExpectGoodMessage(status, size);
    }
  }
}

TEST(GgufHostileTest, EveryByteSurvivesMutation) {
  const std::vector<uint8_t> bytes = Sample().Build();
  int refused = 0;
  for (size_t at = 0; at < bytes.size(); ++at) {
    for (int mutation = 0; mutation < 11; ++mutation) {
      std::vector<uint8_t> changed = bytes;
      static constexpr uint8_t kBytes[3] = {0x00, 0x7f, 0xff};
      changed[at] =
          mutation < 8 ? static_cast<uint8_t>(changed[at] ^ 1 << mutation) : kBytes[mutation - 8];
      const Status status = ParseAndTouch(changed);
      if (!status.ok()) {
        ++refused;
        ExpectGoodMessage(status, bytes.size());
      }
    }
  }
  EXPECT_GT(refused, 1000);
}

TEST(GgufHostileTest, EveryTruncationIsRefusedWithItsPlace) {
  const std::vector<uint8_t> bytes = Sample().Build();
  for (size_t kept = 0; kept < bytes.size(); ++kept) {
    SCOPED_TRACE(kept);
    const std::vector<uint8_t> cut(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(kept));
    const Status status = ParseAndTouch(cut);
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.code(), Code::kCorrupt);
    ExpectGoodMessage(status, kept);
  }
}

TEST(GgufHostileTest, BytesAfterTheLastTensorDoNoHarm) {
  std::vector<uint8_t> bytes = Sample().Build();
  bytes.resize(bytes.size() + 1000, 0xab);
  EXPECT_TRUE(ParseAndTouch(bytes).ok());
}

// ---- Header ----

TEST(GgufHostileTest, AnEmptyFile) {
  ExpectRefused({}, Code::kCorrupt, {"magic", At(0), "the file is empty"});
}

TEST(GgufHostileTest, AnotherFormat) {
  std::vector<uint8_t> bytes(100, 'x');
  ExpectRefused(bytes, Code::kCorrupt, {"magic", "not a GGUF file", "78 78 78 78"});
}

TEST(GgufHostileTest, UnknownVersions) {
  for (const uint32_t version : {0u, 1u, 4u, 0xffffffffu}) {
    ExpectRefused(With32("version", version), Code::kUnsupported,
                  {"version", At(4), std::to_string(version), "must be 2 or 3"});
  }
}

TEST(GgufHostileTest, BigEndianFilesAreRecognised) {
  for (const uint32_t version : {2u, 3u}) {
    ExpectRefused(With32("version", __builtin_bswap32(version)), Code::kUnsupported,
                  {"big-endian", "version " + std::to_string(version)});
  }
}

TEST(GgufHostileTest, DuplicateKeys) {
  GgufBuilder builder;
  builder.Uint32("a", 1).Uint32("b", 1).String("a", "again");
  const std::vector<uint8_t> bytes = builder.Build();
  ExpectRefused(bytes, Code::kCorrupt, {"metadata entry 2 \"a\"", "same key as entry 0"});
}

TEST(GgufHostileTest, DuplicateTensorNames) {
  GgufBuilder builder;
  builder.Tensor("w", DType::kF32, {1}, std::vector<uint8_t>(4));
  builder.Tensor("v", DType::kF32, {1}, std::vector<uint8_t>(4));
  builder.Tensor("w", DType::kF32, {1}, std::vector<uint8_t>(4));
  ExpectRefused(builder.Build(), Code::kCorrupt, {"tensor 2 \"w\"", "same name as tensor 0"});
}

TEST(GgufHostileTest, EmptyKeysAndNames) {
  GgufBuilder key;
  key.Uint32("", 1);
  ExpectRefused(key.Build(), Code::kCorrupt, {"metadata entry 0: key", "length 0"});
  GgufBuilder name;
  name.Tensor("", DType::kF32, {1}, std::vector<uint8_t>(4));
  ExpectRefused(name.Build(), Code::kCorrupt, {"tensor 0: name", "length 0"});
}

TEST(GgufHostileTest, NamesAreShownSafely) {
  GgufBuilder builder;
  builder.RawTensor("\x1b[31m\"\n" + std::string(1000, 'x'), 10, {256}, std::vector<uint8_t>(84));
  const Status status = ParseAndTouch(builder.Build());
  ASSERT_FALSE(status.ok());
  EXPECT_NE(status.message().find(R"(\x1b[31m\x22\x0a)"), std::string::npos) << status.message();
  EXPECT_LT(status.message().size(), 400u);
}

TEST(GgufHostileTest, UnknownValueTypes) {
  uint64_t offset = 0;
  const std::vector<uint8_t> scalar = With32("u32/type", 13, &offset);
  ExpectRefused(scalar, Code::kCorrupt, {"\"u32\"", "value type", At(offset), "13 is not known"});
  const std::vector<uint8_t> element = With32("ints/element type", 99, &offset);
  ExpectRefused(element, Code::kCorrupt, {"\"ints\"", "element type", At(offset), "99"});
}

TEST(GgufHostileTest, ArraysOfArraysAreRefusedByName) {
  // Nested a hundred thousand deep: a reader that recursed would run out of stack.
  std::vector<uint8_t> nested;
  for (int depth = 0; depth < 100000; ++depth) {
    const uint32_t type = 9;
    const uint64_t count = 1;
    nested.insert(nested.end(), reinterpret_cast<const uint8_t*>(&type),
                  reinterpret_cast<const uint8_t*>(&type) + 4);
    nested.insert(nested.end(), reinterpret_cast<const uint8_t*>(&count),
                  reinterpret_cast<const uint8_t*>(&count) + 8);
  }
  GgufBuilder builder;
  builder.RawValue("deep", 9, nested);
  ExpectRefused(builder.Build(), Code::kUnsupported, {"\"deep\"", "array of arrays (depth 2)"});
}

TEST(GgufHostileTest, BoolsThatAreNeither) {
  GgufBuilder scalar;
  scalar.RawValue("flag", 7, {2});
  ExpectRefused(scalar.Build(), Code::kCorrupt, {"\"flag\"", "bool 2, must be 0 or 1"});
  GgufBuilder array;
  array.RawValue("flags", 9, {7, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 255});
  ExpectRefused(array.Build(), Code::kCorrupt, {"\"flags\"", "element 1 is bool 255"});
}

TEST(GgufHostileTest, DimensionCounts) {
  uint64_t offset = 0;
  for (const uint32_t n_dims : {0u, 5u, 0xffffffffu}) {
    const std::vector<uint8_t> bytes = With32("q/n_dims", n_dims, &offset);
    ExpectRefused(bytes, Code::kCorrupt,
                  {"tensor 1 \"q\": n_dims", At(offset), std::to_string(n_dims), "1 to 4"});
  }
}

TEST(GgufHostileTest, DimensionsOfZero) {
  uint64_t offset = 0;
  for (const char* dim : {"dims[0]", "dims[1]", "dims[2]"}) {
    const std::vector<uint8_t> bytes = With64(std::string("q/") + dim, 0, &offset);
    ExpectRefused(bytes, Code::kCorrupt, {"\"q\"", dim, At(offset), "must not be 0"});
  }
}

TEST(GgufHostileTest, UnsupportedTensorTypesAreRefusedByName) {
  const struct {
    uint32_t number;
    const char* name;
  } kTypes[] = {{10, "Q2_K"},    {11, "Q3_K"},
                {16, "IQ2_XXS"}, {17, "IQ2_XS"},
                {20, "IQ4_NL"},  {26, "I32"},
                {28, "F64"},     {31, "Q4_0_4_4"},
                {34, "TQ1_0"},   {39, "MXFP4"},
                {4, "Q4_2"},     {9, "Q8_1"},
                {42, "42"},      {0xffffffff, "4294967295"}};
  for (const auto& type : kTypes) {
    uint64_t offset = 0;
    const std::vector<uint8_t> bytes = With32("k/type", type.number, &offset);
    ExpectRefused(bytes, Code::kUnsupported,
                  {"tensor 2 \"k\": type", At(offset), type.name, "Q6_K"});
  }
}

TEST(GgufHostileTest, OverlappingTensors) {
  uint64_t offset = 0;
  const std::vector<uint8_t> bytes = With64("k/offset", 64, &offset);
  ExpectRefused(bytes, Code::kCorrupt, {"\"k\"", At(offset), "overlaps that of tensor 1 \"q\""});
}

TEST(GgufHostileTest, MisalignedTensors) {
  uint64_t offset = 0;
  const std::vector<uint8_t> bytes = With64("q/offset", 96, &offset);
  ExpectRefused(bytes, Code::kCorrupt, {"\"q\"", At(offset), "not a multiple of the alignment 64"});
}

// ---- Regressions: what readers of this format have really got wrong ----

// Counts and lengths of the header trusted before the file's size was asked.
TEST(GgufRegressionTest, StringAndArrayLengthsBeyondTheFile) {
  for (const uint64_t length : {uint64_t{2000}, uint64_t{1} << 32, kMax - 8, kMax}) {
    uint64_t offset = 0;
    for (const char* label : {"u32/key", "text/value", "f/name"}) {
      const std::vector<uint8_t> bytes = With64(label, length, &offset);
      ExpectRefused(bytes, Code::kCorrupt, {"string length " + std::to_string(length), At(offset)});
    }
    for (const char* label : {"strings/array length", "ints/array length", "bools/array length"}) {
      const std::vector<uint8_t> bytes = With64(label, length, &offset);
      ExpectRefused(bytes, Code::kCorrupt, {"array length", At(offset), std::to_string(length)});
    }
    const std::vector<uint8_t> entries = With64("metadata_kv_count", length);
    ExpectRefused(entries, Code::kCorrupt, {"metadata_kv_count", At(16), std::to_string(length)});
    const std::vector<uint8_t> tensors = With64("tensor_count", length);
    ExpectRefused(tensors, Code::kCorrupt, {"tensor_count", At(8), std::to_string(length)});
  }
}

// Products and sums that wrap to something small and pass the later check.
TEST(GgufRegressionTest, SizeArithmeticThatWraps) {
  uint64_t offset = 0;
  // rows: 2^33 * 2^33 wraps to 4 in 64 bits... of elements 64 wide
  GgufBuilder rows;
  rows.Tensor("w", DType::kF32, {4, uint64_t{1} << 33, uint64_t{1} << 33},
              std::vector<uint8_t>(32));
  ExpectRefused(rows.Build(), Code::kCorrupt, {"\"w\"", "dims[2]", "overflow 64 bits"});
  // bytes: 2^62 + 2 floats are 8 bytes modulo 2^64
  std::vector<uint8_t> bytes = With64("f/dims[0]", (uint64_t{1} << 62) + 2, &offset);
  ExpectRefused(bytes, Code::kCorrupt, {"\"f\"", "dims", At(offset), "more than the file's"});
  // cols alone near the end of 64 bits, in whole blocks
  bytes = With64("q/dims[0]", kMax - 31, &offset);
  ExpectRefused(bytes, Code::kCorrupt, {"\"q\"", At(offset), "more than the file's"});
  // offset + bytes wraps to inside the file
  bytes = With64("f/offset", kMax - 63, &offset);
  ExpectRefused(bytes, Code::kCorrupt, {"\"f\"", "offset", At(offset), "end past the file's"});
  // rounding the header's end up to the alignment wraps to 0
  GgufBuilder padding;
  padding.Uint64("general.alignment", uint64_t{1} << 63);
  padding.Tensor("w", DType::kF32, {1}, std::vector<uint8_t>(4));
  ExpectRefused(padding.Build(), Code::kCorrupt, {"tensor data", "ends before its data section"});
}

// A key of an unexpected type read as another: a Status that names it, never a null or stray value.
TEST(GgufRegressionTest, KeysOfAnUnexpectedType) {
  GgufBuilder builder;
  builder.String("general.alignment", "32");
  ExpectRefused(builder.Build(), Code::kCorrupt,
                {"\"general.alignment\"", "must be an unsigned integer"});
  GgufBuilder keys;
  keys.Strings("llama.block_count", {"2"}).Uint32("tokenizer.ggml.model", 5);
  const std::vector<uint8_t> bytes = keys.Build();
  auto file = GgufFile::Parse(bytes, "keys");
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_EQ((*file)->GetUint("llama.block_count").status().code(), Code::kCorrupt);
  EXPECT_EQ((*file)->GetString("tokenizer.ggml.model").status().code(), Code::kCorrupt);
  EXPECT_EQ((*file)->GetString("tokenizer.chat_template").status().code(), Code::kNotFound);
}

// Vocabulary sizes that a 32-bit int cuts: 2^32 tokens became 0, 2^31 became negative.
TEST(GgufRegressionTest, VocabularySizesBeyondThirtyTwoBits) {
  uint64_t offset = 0;
  for (const uint64_t count : {uint64_t{1} << 31, uint64_t{1} << 32, (uint64_t{1} << 32) + 3}) {
    std::vector<uint8_t> bytes = With64("strings/array length", count, &offset);
    ExpectRefused(bytes, Code::kCorrupt, {"\"strings\"", At(offset), std::to_string(count)});
    bytes = With64("text/value", count + 5, &offset);
    ExpectRefused(bytes, Code::kCorrupt, {"\"text\"", At(offset), std::to_string(count + 5)});
  }
  GgufBuilder signs;
  signs.Uint64s("ids", {0, uint64_t{1} << 63});
  ExpectRefused(signs.Build(), Code::kCorrupt, {"\"ids\"", "element 1", "must be below 2^63"});
}

// Tensor data declared past the end of the file: the reader handed out whatever memory followed.
TEST(GgufRegressionTest, TensorsBeyondTheFile) {
  uint64_t offset = 0;
  for (const uint64_t at : {uint64_t{64} * 100, uint64_t{1} << 40, (kMax >> 1) / 64 * 64}) {
    const std::vector<uint8_t> bytes = With64("k/offset", at, &offset);
    ExpectRefused(bytes, Code::kCorrupt, {"\"k\"", "offset", At(offset), "end past the file's"});
  }
  std::vector<uint8_t> rows =
      With64("q/dims[1]", 4, &offset);  // 160 bytes fit, but lie over the next
  ExpectRefused(rows, Code::kCorrupt, {"overlaps"});
  std::vector<uint8_t> one_short = Sample().Build();
  one_short.pop_back();
  ExpectRefused(one_short, Code::kCorrupt, {"\"k\"", "is it truncated?"});
}

// An alignment of 0 (a division by zero), of a non-power, of one that moves the data out of the
// file.
TEST(GgufRegressionTest, Alignments) {
  uint64_t offset = 0;
  for (const uint32_t alignment : {0u, 1u, 2u, 4u, 12u, 33u, 0xffffffffu}) {
    const std::vector<uint8_t> bytes = With32("general.alignment/value", alignment, &offset);
    ExpectRefused(bytes, Code::kCorrupt,
                  {"\"general.alignment\"", At(offset), "alignment " + std::to_string(alignment),
                   "power of two"});
  }
  for (const uint32_t alignment : {0x80000000u, 1u << 20}) {
    ExpectRefused(With32("general.alignment/value", alignment), Code::kCorrupt,
                  {"ends before its data section", std::to_string(alignment)});
  }
}

// Rows that are no whole number of blocks, or whose size was cut to 32 bits before it was compared.
TEST(GgufRegressionTest, QuantisedRowsThatAreCutShort) {
  uint64_t offset = 0;
  for (const uint64_t cols : {uint64_t{1}, uint64_t{31}, uint64_t{63}, uint64_t{65}, kMax}) {
    const std::vector<uint8_t> bytes = With64("q/dims[0]", cols, &offset);
    ExpectRefused(bytes, Code::kCorrupt,
                  {"\"q\"", "dims[0]", At(offset), "not a multiple of the 32 elements of a Q4_1"});
  }
  const std::vector<uint8_t> k_block = With64("k/dims[0]", 255, &offset);
  ExpectRefused(k_block, Code::kCorrupt, {"\"k\"", At(offset), "256 elements of a Q6_K"});
  // 2^32 + 64 columns: 64 of them in 32 bits.
  const std::vector<uint8_t> cut = With64("q/dims[0]", (uint64_t{1} << 32) + 64, &offset);
  ExpectRefused(cut, Code::kCorrupt, {"\"q\"", At(offset), "more than the file's"});
}

// ---- Memory ----

// A file of `bytes`, mostly a hole that takes no disk, starting with `head`.
class SparseFile {
 public:
  SparseFile(const std::vector<uint8_t>& head, uint64_t bytes) {
    path_ = std::filesystem::temp_directory_path() / "tinyserve_sparse_XXXXXX";
    const int fd = mkstemp(path_.data());
    EXPECT_GE(fd, 0);
    EXPECT_EQ(write(fd, head.data(), head.size()), static_cast<ssize_t>(head.size()));
    EXPECT_EQ(ftruncate(fd, static_cast<off_t>(bytes)), 0);
    close(fd);
  }
  ~SparseFile() { std::filesystem::remove(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

uint64_t PeakResidentBytes() {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<uint64_t>(usage.ru_maxrss) * 1024;
}

// Bytes widened to 64 bits, empty strings, empty entries: each is smaller in the file than in
// memory.
TEST(GgufHostileTest, MetadataMayNotGrowWithoutBound) {
  const uint64_t before = PeakResidentBytes();
  const struct {
    uint32_t element_type;
    uint64_t count, file_bytes;
  } kArrays[] = {{0, 200'000'000, 300'000'000},      // u8: 1.6 GB
                 {8, 100'000'000, 900'000'000},      // empty strings: 3.2 GB
                 {10, 500'000'000, 4'100'000'000}};  // u64: 4 GB
  for (const auto& array : kArrays) {
    GgufBuilder builder;
    std::vector<uint8_t> value(12);
    Poke32(&value, 0, array.element_type);
    Poke64(&value, 4, array.count);
    builder.RawValue("big", 9, value);
    SparseFile file(builder.Build(), array.file_bytes);
    auto opened = GgufFile::Open(file.path());
    ASSERT_FALSE(opened.ok());
    EXPECT_EQ(opened.status().code(), Code::kOutOfMemory) << opened.status().message();
    EXPECT_NE(opened.status().message().find("\"big\": array length at offset"), std::string::npos)
        << opened.status().message();
  }
  for (const char* count : {"tensor_count", "metadata_kv_count"}) {
    GgufBuilder builder;
    std::vector<uint8_t> head = builder.Build();
    Poke64(&head, builder.OffsetOf(count), 60'000'000);
    SparseFile file(head, 4'000'000'000);
    auto opened = GgufFile::Open(file.path());
    ASSERT_FALSE(opened.ok());
    EXPECT_EQ(opened.status().code(), Code::kOutOfMemory) << opened.status().message();
    EXPECT_NE(opened.status().message().find(count), std::string::npos)
        << opened.status().message();
  }
  EXPECT_LT(PeakResidentBytes(), before + (uint64_t{64} << 20));
}

}  // namespace
}  // namespace tinyserve
