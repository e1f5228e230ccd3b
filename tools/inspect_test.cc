#include "tools/inspect.h"

#include <gtest/gtest.h>

#include "tests/support/gguf_builder.h"
#include "text/json_text.h"

namespace tinyserve {
namespace {

std::unique_ptr<GgufFile> Parsed(const std::vector<uint8_t>& bytes) {
  Result<std::unique_ptr<GgufFile>> file = GgufFile::Parse(bytes, "test.gguf");
  EXPECT_TRUE(file.ok()) << file.status().message();
  return *std::move(file);
}

std::vector<uint8_t> LlamaLike(std::string_view architecture) {
  const std::string prefix = std::string(architecture) + ".";
  return GgufBuilder()
      .String("general.architecture", architecture)
      .String("general.name", "Evil \x1b[2J name")
      .Uint32(prefix + "block_count", 30)
      .Uint32(prefix + "embedding_length", 576)
      .Uint32(prefix + "attention.head_count", 9)
      .Uint32(prefix + "attention.head_count_kv", 3)
      .Uint32(prefix + "feed_forward_length", 1536)
      .Uint32(prefix + "context_length", 8192)
      .Float32(prefix + "attention.layer_norm_rms_epsilon", 1e-5f)
      .String("tokenizer.ggml.model", "gpt2")
      .Strings("tokenizer.ggml.tokens", {"<s>", "a", "b"})
      .Uint32("tokenizer.ggml.bos_token_id", 0)
      .Uint32("tokenizer.ggml.eos_token_id", 77)
      .Tensor("w", DType::kF16, {4, 2}, std::vector<uint8_t>(16))
      .Tensor("v", DType::kF32, {4}, std::vector<uint8_t>(16))
      .Build();
}

TEST(Inspect, ReportsShapesTypesAndMemory) {
  const std::vector<uint8_t> bytes = LlamaLike("llama");
  const std::unique_ptr<GgufFile> file = Parsed(bytes);
  const FileReport report = InspectFile(*file);
  EXPECT_EQ(report.unsupported, "");
  EXPECT_EQ(report.parameters, 12u);
  EXPECT_EQ(report.tensor_bytes, 32u);
  EXPECT_EQ(report.types.size(), 2u);
  EXPECT_EQ(report.vocab, 3u);
  EXPECT_EQ(report.kv_elements_per_token, 30u * 3 * 64 * 2);
  ASSERT_EQ(report.special.size(), 2u);
  EXPECT_EQ(report.special[0].text, "<s>");
  EXPECT_EQ(report.special[1].id, 77);  // outside of the vocabulary: shown, not looked up
  const std::string text = FormatReport(report);
  EXPECT_NE(text.find("KV cache 22.5 MiB for each 1024 tokens in f16"), std::string::npos) << text;
  EXPECT_EQ(text.find('\x1b'), std::string::npos);
  EXPECT_NE(FormatTensors(*file).find("4 x 2"), std::string::npos);
}

TEST(Inspect, SaysThatAnArchitectureCannotBeRun) {
  const std::vector<uint8_t> bytes = LlamaLike("mamba");
  const std::unique_ptr<GgufFile> file = Parsed(bytes);
  const FileReport report = InspectFile(*file);
  EXPECT_NE(report.unsupported.find("mamba"), std::string::npos);
  EXPECT_EQ(report.hyperparameters.size(), 7u);
  EXPECT_NE(FormatReport(report).find("cannot be run: architecture 'mamba'"), std::string::npos);
  EXPECT_NE(ToJson(ReportJson(report, *file, true, true)).find("\"supported\": false"),
            std::string::npos);
}

TEST(Inspect, AFileWithoutMetadataIsReportedAllTheSame) {
  const std::vector<uint8_t> bytes = GgufBuilder().Build();
  const FileReport report = InspectFile(*Parsed(bytes));
  EXPECT_EQ(report.kv_elements_per_token, 0u);
  EXPECT_NE(report.unsupported, "");
  EXPECT_NE(FormatReport(report).find("tokenizer      none"), std::string::npos);
}

TEST(Inspect, AbsurdSizesDoNotOverflow) {
  const std::vector<uint8_t> bytes = GgufBuilder()
                                         .String("general.architecture", "x")
                                         .Uint64("x.block_count", UINT64_MAX)
                                         .Uint64("x.embedding_length", UINT64_MAX)
                                         .Uint64("x.attention.head_count", 1)
                                         .Uint64("x.context_length", UINT64_MAX)
                                         .Build();
  EXPECT_EQ(InspectFile(*Parsed(bytes)).kv_elements_per_token, 0u);
}

}  // namespace
}  // namespace tinyserve
