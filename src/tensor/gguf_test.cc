// Reading well-formed files: values, tensors, lookups, versions, split models. gguf_hostile_test.cc
// has the malformed ones.
#include "tensor/gguf.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "tensor/convert.h"
#include "tests/support/gguf_builder.h"

namespace tinyserve {
namespace {

std::vector<uint8_t> FloatBytes(const std::vector<float>& values) {
  std::vector<uint8_t> bytes(values.size() * sizeof(float));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

std::vector<float> Decoded(const StoredTensor& tensor) {
  std::vector<float> values(tensor.rows * tensor.cols);
  for (uint64_t row = 0; row < tensor.rows; ++row) {
    DequantizeRow(tensor.type, tensor.data + row * RowBytes(tensor.type, tensor.cols), tensor.cols,
                  values.data() + row * tensor.cols);
  }
  return values;
}

template <class T>
void ExpectValue(const GgufFile& file, const char* key, const T& want) {
  const MetaValue* value = file.Find(key);
  ASSERT_NE(value, nullptr) << key;
  const T* typed = std::get_if<T>(value);
  ASSERT_NE(typed, nullptr) << key << " is of class " << value->index();
  EXPECT_EQ(*typed, want) << key;
}

GgufBuilder SmallModel(uint32_t version) {
  GgufBuilder builder(version);
  builder.String("general.architecture", "llama")
      .Uint32("llama.block_count", 2)
      .Strings("tokenizer.ggml.tokens", {"a", "", "a token longer than any small buffer"})
      .Tensor("first", DType::kF32, {3, 2}, FloatBytes({1, 2, 3, 4, 5, 6}))
      .Tensor("second", DType::kF32, {2, 1, 2}, FloatBytes({7, 8, 9, 10}));
  return builder;
}

TEST(GgufTest, ReadsVersionsTwoAndThreeAlike) {
  for (const uint32_t version : {2u, 3u}) {
    const std::vector<uint8_t> bytes = SmallModel(version).Build();
    auto file = GgufFile::Parse(bytes, "small");
    ASSERT_TRUE(file.ok()) << file.status().message();
    EXPECT_EQ((*file)->version(), version);
    EXPECT_EQ((*file)->metadata().size(), 3u);
    EXPECT_EQ((*file)->metadata()[1].key, "llama.block_count");
    EXPECT_EQ((*file)->file_bytes(), bytes.size());
    EXPECT_EQ((*file)->tensor_bytes(), 40u);
    const StoredTensor* first = (*file)->FindTensor("first");
    ASSERT_NE(first, nullptr);
    EXPECT_EQ(first->cols, 3u);
    EXPECT_EQ(first->rows, 2u);
    EXPECT_EQ(first->n_dims, 2u);
    EXPECT_EQ(first->data, bytes.data() + first->offset);
    EXPECT_EQ(Decoded(*first), std::vector<float>({1, 2, 3, 4, 5, 6}));
    const StoredTensor* second = (*file)->FindTensor("second");
    ASSERT_NE(second, nullptr);
    EXPECT_EQ(second->rows, 2u);
    EXPECT_EQ(second->dims[2], 2u);
    EXPECT_EQ(second->dims[3], 1u);
    EXPECT_EQ(Decoded(*second), std::vector<float>({7, 8, 9, 10}));
    EXPECT_EQ((*file)->FindTensor("firs"), nullptr);
    EXPECT_EQ((*file)->FindTensor("seconds"), nullptr);
    EXPECT_EQ(*(*file)->RequireTensor("first", 2, 3), first);
    EXPECT_EQ((*file)->RequireTensor("firs", 2, 3).status().code(), Code::kNotFound);
    const Status turned = (*file)->RequireTensor("first", 3, 2).status();
    EXPECT_EQ(turned.code(), Code::kCorrupt);
    EXPECT_NE(turned.message().find("'first' is 2 x 3"), std::string::npos) << turned.message();
  }
}

TEST(GgufTest, KeepsEveryMetadataType) {
  GgufBuilder builder;
  builder.Uint8("u8", 255).Int8("i8", -128).Uint16("u16", 65535).Int16("i16", -32768);
  builder.Uint32("u32", 4294967295u).Int32("i32", -2147483647).Uint64("u64", ~uint64_t{0});
  builder.Int64("i64", std::numeric_limits<int64_t>::min())
      .Float32("f32", 0.5f)
      .Float64("f64", 0.1);
  builder.Bool("yes", true)
      .Bool("no", false)
      .String("text", std::string("a\0b", 3))
      .String("none", "");
  builder.Strings("strings", {"x", "", "yy"}).Strings("no strings", {}).Int32s("ints", {-1, 0, 7});
  builder.Uint64s("longs", {0, (uint64_t{1} << 63) - 1}).Float32s("floats", {1.5f, -2.0f});
  builder.Bools("bools", {true, false, true});
  const std::vector<uint8_t> bytes = builder.Build();
  auto parsed = GgufFile::Parse(bytes, "types");
  ASSERT_TRUE(parsed.ok()) << parsed.status().message();
  const GgufFile& file = **parsed;
  ExpectValue<uint64_t>(file, "u8", 255);
  ExpectValue<int64_t>(file, "i8", -128);
  ExpectValue<uint64_t>(file, "u16", 65535);
  ExpectValue<int64_t>(file, "i16", -32768);
  ExpectValue<uint64_t>(file, "u32", 4294967295u);
  ExpectValue<int64_t>(file, "i32", -2147483647);
  ExpectValue<uint64_t>(file, "u64", ~uint64_t{0});
  ExpectValue<int64_t>(file, "i64", std::numeric_limits<int64_t>::min());
  ExpectValue<double>(file, "f32", 0.5);
  ExpectValue<double>(file, "f64", 0.1);
  ExpectValue<bool>(file, "yes", true);
  ExpectValue<bool>(file, "no", false);
  ExpectValue<std::string>(file, "text", std::string("a\0b", 3));
  ExpectValue<std::string>(file, "none", "");
  ExpectValue<std::vector<std::string>>(file, "strings", {"x", "", "yy"});
  ExpectValue<std::vector<std::string>>(file, "no strings", {});
  ExpectValue<std::vector<int64_t>>(file, "ints", {-1, 0, 7});
  ExpectValue<std::vector<int64_t>>(file, "longs", {0, std::numeric_limits<int64_t>::max()});
  ExpectValue<std::vector<double>>(file, "floats", {1.5, -2.0});
  ExpectValue<std::vector<bool>>(file, "bools", {true, false, true});
  EXPECT_TRUE(file.tensors().empty());
}

template <class T>
void ExpectError(const Result<T>& result, Code code, const char* part) {
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.status().code(), code) << result.status().message();
  EXPECT_NE(result.status().message().find(part), std::string::npos) << result.status().message();
}

TEST(GgufTest, TypedLookupsNameTheKeyAndTheTypeFound) {
  const std::vector<uint8_t> bytes = GgufBuilder()
                                         .Uint32("n", 7)
                                         .Int32("minus", -7)
                                         .Int8("plus", 7)
                                         .Float32("x", 0.5f)
                                         .Bool("flag", true)
                                         .String("text", "seven")
                                         .Int32s("list", {7})
                                         .Build();
  auto parsed = GgufFile::Parse(bytes, "lookups");
  ASSERT_TRUE(parsed.ok()) << parsed.status().message();
  const GgufFile& file = **parsed;
  EXPECT_EQ(*file.GetUint("n"), 7u);
  EXPECT_EQ(*file.GetUint("plus"), 7u);
  EXPECT_EQ(*file.GetFloat("n"), 7.0);
  EXPECT_EQ(*file.GetFloat("minus"), -7.0);
  EXPECT_EQ(*file.GetFloat("x"), 0.5);
  EXPECT_EQ(*file.GetBool("flag"), true);
  EXPECT_EQ(*file.GetString("text"), "seven");
  ExpectError(file.GetUint("minus"), Code::kCorrupt, "\"minus\": is -7, must not be negative");
  ExpectError(file.GetUint("x"), Code::kCorrupt, "\"x\": is a float, must be an integer");
  ExpectError(file.GetUint("list"), Code::kCorrupt, "\"list\": is an integer array");
  ExpectError(file.GetFloat("text"), Code::kCorrupt, "\"text\": is a string, must be a number");
  ExpectError(file.GetBool("n"), Code::kCorrupt, "\"n\": is an unsigned integer, must be a bool");
  ExpectError(file.GetString("flag"), Code::kCorrupt, "\"flag\": is a bool, must be a string");
  ExpectError(file.GetUint("absent"), Code::kNotFound, "\"absent\"");
  ExpectError(file.GetFloat(""), Code::kNotFound, "not in the file");
  ExpectError(file.GetBool("fla"), Code::kNotFound, "\"fla\"");
  ExpectError(file.GetString("flags"), Code::kNotFound, "\"flags\"");
  EXPECT_EQ(file.Find("absent"), nullptr);
}

TEST(GgufTest, TensorsLieOnTheDeclaredAlignment) {
  for (const uint32_t alignment : {8u, 32u, 64u, 4096u}) {
    GgufBuilder builder;
    builder.Alignment(alignment)
        .Tensor("a", DType::kF32, {1}, FloatBytes({1}))
        .Tensor("b", DType::kF32, {1}, FloatBytes({2}));
    const std::vector<uint8_t> bytes = builder.Build();
    auto file = GgufFile::Parse(bytes, "aligned");
    ASSERT_TRUE(file.ok()) << file.status().message();
    for (const StoredTensor& tensor : (*file)->tensors()) EXPECT_EQ(tensor.offset % alignment, 0u);
    EXPECT_EQ(Decoded(*(*file)->FindTensor("b")), std::vector<float>({2}));
  }
}

// The files of tests/golden/make_gguf.py, made by another implementation's writer.
const std::string kGolden = TS_SOURCE_DIR "/tests/golden/";

void ExpectGoldenContent(const GgufFile& file) {
  ExpectValue<uint64_t>(file, "a.u8", 250);
  ExpectValue<int64_t>(file, "a.i8", -7);
  ExpectValue<uint64_t>(file, "a.u16", 65000);
  ExpectValue<int64_t>(file, "a.i16", -30000);
  ExpectValue<uint64_t>(file, "a.u32", 4000000000u);
  ExpectValue<int64_t>(file, "a.i32", -2000000000);
  ExpectValue<uint64_t>(file, "a.u64", uint64_t{1} << 63);
  ExpectValue<int64_t>(file, "a.i64", -(int64_t{1} << 62));
  ExpectValue<double>(file, "a.f32", 0.5);
  ExpectValue<double>(file, "a.f64", 0.1);
  ExpectValue<bool>(file, "a.bool", true);
  ExpectValue<std::string>(file, "a.string", "käse 🧀");
  ExpectValue<std::vector<int64_t>>(file, "a.ints", {1, -2, 3});
  ExpectValue<std::vector<double>>(file, "a.floats", {0.25, -1.5});
  ExpectValue<std::vector<bool>>(file, "a.bools", {true, false, true});
  ExpectValue<std::vector<std::string>>(file, "a.strings",
                                        {"", "one", "a string longer than any small buffer"});
  const uint64_t want_cols[] = {4, 8, 5, 4}, want_rows[] = {3, 2, 1, 4};
  ASSERT_EQ(file.tensors().size(), 5u);
  for (uint64_t t = 0; t < 4; ++t) {
    const StoredTensor* tensor = file.FindTensor("t" + std::to_string(t));
    ASSERT_NE(tensor, nullptr);
    EXPECT_EQ(tensor->type, t == 1 ? DType::kF16 : DType::kF32);
    EXPECT_EQ(tensor->cols, want_cols[t]);
    EXPECT_EQ(tensor->rows, want_rows[t]);
    const std::vector<float> values = Decoded(*tensor);
    for (size_t i = 0; i < values.size(); ++i) {
      EXPECT_EQ(values[i], static_cast<float>(100 * t + i));
    }
  }
  const StoredTensor* q8 = file.FindTensor("q8");
  ASSERT_NE(q8, nullptr);
  const std::vector<float> values = Decoded(*q8);
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_NEAR(values[i], -1.0 + 2.0 * static_cast<double>(i) / 127.0, 0.005);
  }
}

TEST(GgufTest, ReadsWhatAnotherWriterWrote) {
  auto file = GgufFile::Open(kGolden + "gguf_py.gguf");
  ASSERT_TRUE(file.ok()) << file.status().message();
  ExpectGoldenContent(**file);
  (*file)->ReleasePages((*file)->tensors()[0]);
  ExpectGoldenContent(**file);
}

TEST(GgufTest, ReadsASplitModelFromAnyOfItsParts) {
  uint64_t bytes = 0;
  for (int part = 1; part <= 3; ++part) {
    bytes += std::filesystem::file_size(kGolden + "gguf_py-0000" + std::to_string(part) +
                                        "-of-00003.gguf");
  }
  for (int part = 1; part <= 3; ++part) {
    auto file = GgufFile::Open(kGolden + "gguf_py-0000" + std::to_string(part) + "-of-00003.gguf");
    ASSERT_TRUE(file.ok()) << file.status().message();
    ExpectGoldenContent(**file);
    EXPECT_EQ((*file)->file_bytes(), bytes);
    EXPECT_EQ((*file)->tensors()[0].shard, 0u);
    EXPECT_EQ((*file)->tensors()[4].shard, 2u);
    for (const StoredTensor& tensor : (*file)->tensors()) (*file)->ReleasePages(tensor);
    ExpectGoldenContent(**file);
  }
}

class SplitTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = std::filesystem::temp_directory_path() / "tinyserve_gguf_XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  std::string Write(const std::string& name, GgufBuilder builder) {
    const std::vector<uint8_t> bytes = builder.Build();
    std::ofstream(dir_ + "/" + name, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
    return dir_ + "/" + name;
  }

  static GgufBuilder Part(uint16_t no, uint16_t count, const std::string& tensor) {
    GgufBuilder builder;
    builder.Uint16("split.no", no).Uint16("split.count", count).Int32("split.tensors.count", 2);
    builder.Tensor(tensor, DType::kF32, {2}, FloatBytes({1.0f + no, 2}));
    return builder;
  }

  void ExpectOpenFails(const std::string& path, Code code, const std::string& part) {
    auto file = GgufFile::Open(path);
    ASSERT_FALSE(file.ok());
    EXPECT_EQ(file.status().code(), code) << file.status().message();
    EXPECT_NE(file.status().message().find(part), std::string::npos) << file.status().message();
  }

  std::string dir_;
};

TEST_F(SplitTest, OpensAllParts) {
  const std::string path = Write("m-00001-of-00002.gguf", Part(0, 2, "a"));
  Write("m-00002-of-00002.gguf", Part(1, 2, "b"));
  auto file = GgufFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_EQ(Decoded(*(*file)->FindTensor("b")), std::vector<float>({2, 2}));
}

TEST_F(SplitTest, AMissingPartIsNamed) {
  const std::string path = Write("m-00001-of-00002.gguf", Part(0, 2, "a"));
  ExpectOpenFails(path, Code::kNotFound, "m-00002-of-00002.gguf");
}

TEST_F(SplitTest, ARenamedPartIsRefused) {
  ExpectOpenFails(Write("model.gguf", Part(0, 2, "a")), Code::kInvalidArgument,
                  "must end in \"-00001-of-00002.gguf\"");
}

TEST_F(SplitTest, PartsThatDisagreeAreRefused) {
  const std::string path = Write("m-00001-of-00002.gguf", Part(0, 2, "a"));
  Write("m-00002-of-00002.gguf", Part(0, 2, "b"));
  ExpectOpenFails(path, Code::kCorrupt, "m-00002-of-00002.gguf: its metadata says part 1 of 2");
  Write("m-00002-of-00002.gguf", Part(1, 3, "b"));
  ExpectOpenFails(path, Code::kCorrupt, "its metadata says part 2 of 3");
}

TEST_F(SplitTest, ANameInTwoPartsIsRefused) {
  const std::string path = Write("m-00001-of-00002.gguf", Part(0, 2, "a"));
  Write("m-00002-of-00002.gguf", Part(1, 2, "a"));
  ExpectOpenFails(path, Code::kCorrupt, "tensor \"a\": in part 1 and again in part 2");
}

TEST_F(SplitTest, TheTotalOfTensorsMustHold) {
  const std::string path = Write("m-00001-of-00002.gguf", Part(0, 2, "a"));
  Write("m-00002-of-00002.gguf", Part(1, 2, "b").Tensor("c", DType::kF32, {1}, FloatBytes({0})));
  ExpectOpenFails(path, Code::kCorrupt, "split.tensors.count");
}

TEST_F(SplitTest, APlaceOutsideTheSplitIsRefused) {
  ExpectOpenFails(Write("m-00003-of-00002.gguf", Part(2, 2, "a")), Code::kCorrupt,
                  "\"split.no\": is 2, must be below split.count 2");
  GgufBuilder no_place;
  no_place.Uint16("split.count", 2);
  ExpectOpenFails(Write("m-00001-of-00002.gguf", no_place), Code::kCorrupt,
                  "\"split.no\": not in the file");
  GgufBuilder huge;
  huge.Uint64("split.count", ~uint64_t{0}).Uint16("split.no", 0);
  ExpectOpenFails(Write("m-00001-of-00002.gguf", huge), Code::kCorrupt, "must be at most 65535");
  GgufBuilder text;
  text.String("split.count", "two");
  ExpectOpenFails(Write("m-00001-of-00002.gguf", text), Code::kCorrupt, "must be an integer");
}

TEST_F(SplitTest, BytesInMemoryMustBeWhole) {
  GgufBuilder part = Part(0, 2, "a");
  const std::vector<uint8_t> bytes = part.Build();
  auto file = GgufFile::Parse(bytes, "memory");
  ASSERT_FALSE(file.ok());
  EXPECT_EQ(file.status().code(), Code::kUnsupported);
}

TEST_F(SplitTest, ACountOfOneIsAWholeFile) {
  GgufBuilder whole;
  whole.Uint16("split.count", 1).Uint16("split.no", 0).Int32("split.tensors.count", 0);
  EXPECT_TRUE(GgufFile::Open(Write("any name.gguf", whole)).ok());
}

TEST(GgufTest, AVocabularyOfAHundredThousandOpensInMilliseconds) {
  std::vector<std::string> tokens, merges;
  for (int i = 0; i < 150000; ++i) {
    tokens.push_back("token" + std::to_string(i));
    merges.push_back("merge of " + std::to_string(i) + " and another");
  }
  const std::vector<uint8_t> bytes = GgufBuilder()
                                         .Strings("tokenizer.ggml.tokens", tokens)
                                         .Strings("tokenizer.ggml.merges", merges)
                                         .Build();
  double best_ms = 1e9;
  for (int repeat = 0; repeat < 5; ++repeat) {
    const std::clock_t start = std::clock();
    auto file = GgufFile::Parse(bytes, "vocabulary");
    best_ms = std::min(best_ms, 1e3 * static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC);
    ASSERT_TRUE(file.ok()) << file.status().message();
    ExpectValue(**file, "tokenizer.ggml.tokens", tokens);
  }
  // 15 ms of processor time where this was written; the margin is for sanitizers, and still far
  // below anything that is quadratic.
  EXPECT_LT(best_ms, 1500.0);
}

}  // namespace
}  // namespace tinyserve
