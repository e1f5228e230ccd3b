// Token ids equal the reference tokenizers' on awkward text (tests/golden/text/make_tokenizers.py).
#include <gtest/gtest.h>

#include "tests/golden/text/golden_text.h"
#include "text/tokenizer.h"

namespace tinyserve {
namespace {

class GoldenTokenizer : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    file_ = golden::ReadFile(GetParam() + std::string(".golden"));
    auto made = Tokenizer::Create(file_.vocab);
    ASSERT_TRUE(made.ok()) << made.status().message();
    tokenizer_ = *std::move(made);
  }

  golden::File file_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_P(GoldenTokenizer, CorpusHasTheReferencesIds) {
  const std::vector<golden::Text> corpus = golden::ReadCorpus();
  ASSERT_EQ(file_.cases.size(), 2 * corpus.size());
  for (const golden::Ids& expected : file_.cases) {
    const golden::Text& text = corpus[expected.index];
    const auto ids = tokenizer_->Encode(text.bytes, false, expected.parse_special);
    ASSERT_TRUE(ids.ok()) << ids.status().message();
    EXPECT_EQ(*ids, expected.ids) << text.name << ", parse_special " << expected.parse_special;
  }
}

TEST_P(GoldenTokenizer, EveryCharacterHasTheReferencesIds) {
  ASSERT_FALSE(file_.sweeps.empty());
  for (const golden::Sweep& expected : file_.sweeps) {
    const auto ids = tokenizer_->Encode(golden::SweepText(expected.first), false, false);
    ASSERT_TRUE(ids.ok()) << ids.status().message();
    EXPECT_EQ(ids->size(), expected.count) << "block U+" << std::hex << uint32_t{expected.first};
    EXPECT_EQ(golden::Fingerprint(*ids), expected.fingerprint)
        << "block U+" << std::hex << uint32_t{expected.first};
  }
}

INSTANTIATE_TEST_SUITE_P(Vocabularies, GoldenTokenizer,
                         testing::Values("gpt-2", "smollm", "llama-bpe", "qwen2", "tekken",
                                         "deepseek-coder", "llama", "llama-unknown"),
                         [](const auto& parameter) {
                           std::string name = parameter.param;
                           for (char& c : name) c = c == '-' ? '_' : c;
                           return name;
                         });

}  // namespace
}  // namespace tinyserve
