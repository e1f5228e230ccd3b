#include "engine/vocab.h"

#include <gtest/gtest.h>

#include "tests/support/gguf_builder.h"

namespace tinyserve {
namespace {

Result<VocabSpec> Read(GgufBuilder builder) {
  const std::vector<uint8_t> bytes = builder.Build();
  TS_ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file, GgufFile::Parse(bytes, "test"));
  return ReadVocab(*file);
}

GgufBuilder Vocab(const char* model, const char* pre) {
  GgufBuilder builder;
  builder.String("tokenizer.ggml.model", model).Strings("tokenizer.ggml.tokens", {"<s>", "a", "b"});
  if (*pre != '\0') builder.String("tokenizer.ggml.pre", pre);
  return builder;
}

TEST(ReadVocab, BeginsWithBosAsTheFamilyDoesWhereTheFileIsSilent) {
  EXPECT_TRUE(Read(Vocab("llama", ""))->add_bos);
  for (const char* pre : {"llama-bpe", "llama3", "tekken"}) {
    EXPECT_TRUE(Read(Vocab("gpt2", pre))->add_bos) << pre;
  }
  for (const char* pre : {"", "gpt-2", "smollm", "qwen2"}) {
    EXPECT_FALSE(Read(Vocab("gpt2", pre))->add_bos) << pre;
  }
}

TEST(ReadVocab, TheFileDecidesWhereItSpeaks) {
  EXPECT_FALSE(
      Read(Vocab("gpt2", "llama-bpe").Bool("tokenizer.ggml.add_bos_token", false))->add_bos);
  EXPECT_TRUE(Read(Vocab("gpt2", "qwen2").Bool("tokenizer.ggml.add_bos_token", true))->add_bos);
}

TEST(ReadVocab, NamesTheKeyThatIsWrong) {
  const auto message = [](GgufBuilder builder) { return Read(builder).status().message(); };
  EXPECT_NE(message(GgufBuilder().String("tokenizer.ggml.model", "gpt2"))
                .find("the model file has no 'tokenizer.ggml.tokens'"),
            std::string::npos);
  EXPECT_NE(message(Vocab("gpt2", "").Uint32("tokenizer.ggml.eos_token_id", 3))
                .find("'tokenizer.ggml.eos_token_id' is 3: the vocabulary has 3 tokens"),
            std::string::npos);
  EXPECT_NE(message(Vocab("gpt2", "").Uint32("tokenizer.ggml.merges", 3))
                .find("'tokenizer.ggml.merges' is not an array"),
            std::string::npos);
}

}  // namespace
}  // namespace tinyserve
