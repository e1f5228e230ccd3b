// The default model's own vocabulary, read from its file, gives the reference's ids. The file is
// not committed: where it is absent the test is skipped and says so.
#include <gtest/gtest.h>

#include <filesystem>

#include "engine/vocab.h"
#include "tests/golden/text/golden_text.h"

namespace tinyserve {
namespace {

constexpr char kModel[] = TS_SOURCE_DIR "/models/SmolLM2-135M-Instruct.Q4_1.gguf";

TEST(SmolLm2Tokenizer, HasTheReferencesIds) {
  if (!std::filesystem::exists(kModel)) {
    GTEST_SKIP() << kModel << " is absent; `make run` fetches it";
  }
  const auto file = GgufFile::Open(kModel);
  ASSERT_TRUE(file.ok()) << file.status().message();
  const auto vocab = ReadVocab(**file);
  ASSERT_TRUE(vocab.ok()) << vocab.status().message();
  const auto tokenizer = Tokenizer::Create(*vocab);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();

  const std::vector<golden::Text> corpus = golden::ReadCorpus();
  const golden::File expected = golden::ReadFile("smollm2.golden");
  ASSERT_EQ(expected.cases.size(), 2 * corpus.size());
  for (const golden::Ids& golden : expected.cases) {
    const auto ids = (*tokenizer)->Encode(corpus[golden.index].bytes, false, golden.parse_special);
    ASSERT_TRUE(ids.ok()) << ids.status().message();
    EXPECT_EQ(*ids, golden.ids) << corpus[golden.index].name;
  }
  for (const golden::Sweep& golden : expected.sweeps) {
    const auto ids = (*tokenizer)->Encode(golden::SweepText(golden.first), false, false);
    ASSERT_TRUE(ids.ok()) << ids.status().message();
    EXPECT_EQ(golden::Fingerprint(*ids), golden.fingerprint)
        << "block U+" << std::hex << uint32_t{golden.first};
  }
}

}  // namespace
}  // namespace tinyserve
