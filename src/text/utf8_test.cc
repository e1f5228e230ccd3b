#include "text/utf8.h"

#include <gtest/gtest.h>

#include "text/tokenizer.h"

namespace tinyserve {
namespace {

const std::string kBad(kReplacementCharacter);

std::string StreamAll(const std::string& bytes, size_t chunk) {
  Utf8Stream stream;
  std::string text;
  for (size_t i = 0; i < bytes.size(); i += chunk) text += stream.Push(bytes.substr(i, chunk));
  return text + stream.Finish();
}

TEST(Utf8, EveryCodePointComesBack) {
  for (char32_t code = 0; code <= 0x10FFFF; ++code) {
    if (code == 0xD800) code = 0xE000;
    std::string bytes;
    AppendUtf8(code, &bytes);
    const Utf8Step step = FirstUtf8Step(bytes);
    ASSERT_EQ(step.kind, Utf8Kind::kCharacter);
    ASSERT_EQ(step.bytes, bytes.size());
    ASSERT_EQ(CodePoint(bytes), code);
    // No proper start of it is a character.
    for (size_t cut = 1; cut < bytes.size(); ++cut) {
      ASSERT_EQ(FirstUtf8Step(bytes.substr(0, cut)).kind, Utf8Kind::kIncomplete);
    }
  }
}

TEST(Utf8, EveryPairOfBytesIsRightlyJudged) {
  int characters = 0, incomplete = 0;
  for (int a = 0x80; a < 256; ++a) {
    for (int b = 0; b < 256; ++b) {
      const char pair[] = {static_cast<char>(a), static_cast<char>(b)};
      const Utf8Step step = FirstUtf8Step({pair, 2});
      characters += step.kind == Utf8Kind::kCharacter;
      incomplete += step.kind == Utf8Kind::kIncomplete;
    }
  }
  EXPECT_EQ(characters, 0x800 - 0x80);
  // Starts of three bytes: E0 has 32 seconds, ED 32, the other 14 have 64. Of four: F0 48, F4 16,
  // three have 64.
  EXPECT_EQ(incomplete, 32 + 32 + 14 * 64 + 48 + 16 + 3 * 64);
}

TEST(Utf8, InvalidBytesAreReplacedOneByOne) {
  EXPECT_EQ(ReplaceInvalidUtf8("a\x80z"), "a" + kBad + "z");
  EXPECT_EQ(ReplaceInvalidUtf8("\xE2\x82"), kBad + kBad);
  EXPECT_EQ(ReplaceInvalidUtf8("\xED\xA0\x80"), kBad + kBad + kBad);
  EXPECT_EQ(ReplaceInvalidUtf8("€"), "€");
}

TEST(Utf8Stream, NeverSplitsACharacter) {
  const std::string text = "aé€😀\u0301 👩🏽‍🚀 中文\r\n";
  for (size_t chunk = 1; chunk <= 5; ++chunk) {
    Utf8Stream stream;
    std::string all;
    for (size_t i = 0; i < text.size(); i += chunk) {
      const std::string part = stream.Push(text.substr(i, chunk));
      EXPECT_EQ(ReplaceInvalidUtf8(part), part);
      all += part;
    }
    EXPECT_EQ(all, text);
    EXPECT_EQ(stream.Finish(), "");
  }
}

TEST(Utf8Stream, ReplacesWhatIsNoCharacterAlikeInAnyChunks) {
  const std::pair<std::string, std::string> cases[] = {
      {"\x80", kBad},
      {"\xE2\x82", kBad},
      {"\xE2\x82x", kBad + "x"},
      {"\xF0\x9F\x98", kBad},
      {"\xE2\x28\xA1", kBad + "(" + kBad},
      {"\xF0\x80\x80\x80", kBad + kBad + kBad + kBad},
      {"\xED\xA0\x80", kBad + kBad + kBad},
      {"\xFF\xFE", kBad + kBad},
      {"ok\xC3", "ok" + kBad},
      {"\xC3\xC3\xA9", kBad + "é"},
  };
  for (const auto& [bytes, text] : cases) {
    for (size_t chunk = 1; chunk <= 4; ++chunk) EXPECT_EQ(StreamAll(bytes, chunk), text);
  }
}

TEST(Utf8Stream, MayBeUsedAgainAfterFinish) {
  Utf8Stream stream;
  EXPECT_EQ(stream.Push("\xE2"), "");
  EXPECT_EQ(stream.Finish(), kBad);
  EXPECT_EQ(stream.Push("\x82\xAC"), kBad + kBad);
  EXPECT_EQ(stream.Finish(), "");
}

}  // namespace
}  // namespace tinyserve
