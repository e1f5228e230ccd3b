#include "engine/answer_text.h"

#include <gtest/gtest.h>

#include <random>

namespace tinyserve {
namespace {

TEST(AnswerText, HoldsBackWhatMayBecomeAStopString) {
  AnswerText text({"</end>", "STOP"});
  EXPECT_EQ(text.Push("hello <"), "hello ");
  EXPECT_EQ(text.Push("/en"), "");
  EXPECT_EQ(text.Push("x ST"), "</enx ");
  EXPECT_FALSE(text.stopped());
  EXPECT_EQ(text.Push("OP and more"), "");
  EXPECT_TRUE(text.stopped());
  EXPECT_EQ(text.Push("never"), "");
  EXPECT_EQ(text.Finish(), "");
}

TEST(AnswerText, TheEarliestStopStringWins) {
  AnswerText text({"bc", "abcd"});
  EXPECT_EQ(text.Push("xxabcd"), "xx");
  EXPECT_TRUE(text.stopped());
}

TEST(AnswerText, FinishReleasesWhatWasHeld) {
  AnswerText text({"STOP"});
  EXPECT_EQ(text.Push("a ST"), "a ");
  EXPECT_EQ(text.Finish(), "ST");
}

TEST(AnswerText, NeverHalfACharacter) {
  AnswerText text({});
  EXPECT_EQ(text.Push("\xF0\x9F"), "");
  EXPECT_EQ(text.Push("\x98\x80!"), "\xF0\x9F\x98\x80!");
}

// However a text is cut into tokens, what comes out is the text up to its first stop string.
TEST(AnswerText, CutAnywhereGivesTheSameText) {
  std::mt19937 random(1);
  for (int round = 0; round < 2000; ++round) {
    std::string whole;
    for (int i = 0; i < 30; ++i) whole += "ab"[random() % 2];
    std::vector<std::string> stops;
    for (uint32_t i = 0; i < random() % 3; ++i) {
      std::string stop;
      for (uint32_t n = 0; n < 3 + random() % 4; ++n) stop += "ab"[random() % 2];
      stops.push_back(stop);
    }
    size_t cut = whole.size();
    for (const std::string& stop : stops) cut = std::min(cut, whole.find(stop));
    AnswerText text(stops);
    std::string shown;
    for (size_t i = 0; i < whole.size() && !text.stopped();) {
      const size_t n = 1 + random() % 5;
      shown += text.Push(whole.substr(i, n));
      i += n;
    }
    shown += text.Finish();
    EXPECT_EQ(whole.substr(0, shown.size()), shown);
    EXPECT_GE(shown.size(), cut == std::string::npos ? whole.size() : cut);
    for (const std::string& stop : stops) {
      EXPECT_TRUE(!text.stopped() || shown.find(stop) == std::string::npos)
          << stop << " in " << shown;
    }
    EXPECT_EQ(text.stopped(), cut < whole.size());
  }
}

}  // namespace
}  // namespace tinyserve
