#include "tools/conversation.h"

#include <gtest/gtest.h>

namespace tinyserve {
namespace {

// A prompt of one token a character, so that lengths are easy to see.
Result<std::vector<int32_t>> OneTokenACharacter(const std::vector<Message>& messages) {
  std::vector<int32_t> tokens;
  for (const Message& m : messages) tokens.resize(tokens.size() + m.content.size(), 1);
  return tokens;
}

std::string Contents(const BoundedConversation& conversation) {
  std::string all;
  for (const Message& m : conversation.messages()) all += m.content + "|";
  return all;
}

TEST(BoundedConversation, KeepsEverythingWhileItFits) {
  BoundedConversation c("sys", 100, 10, FullPolicy::kDrop);
  const auto first = c.Ask("hello", OneTokenACharacter);
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(first->prompt.size(), 8u);
  EXPECT_EQ(first->answer_tokens_max, 92u);
  EXPECT_EQ(first->dropped_turns, 0u);
  c.Answer("hi");
  ASSERT_TRUE(c.Ask("more", OneTokenACharacter).ok());
  EXPECT_EQ(Contents(c), "sys|hello|hi|more|");
  EXPECT_EQ(c.turns(), 2u);
}

TEST(BoundedConversation, DropsOldestTurnsAndKeepsTheSystemMessage) {
  BoundedConversation c("sys", 40, 10, FullPolicy::kDrop);
  ASSERT_TRUE(c.Ask("question 1", OneTokenACharacter).ok());
  c.Answer("answer 1");
  ASSERT_TRUE(c.Ask("q2", OneTokenACharacter).ok());
  c.Answer("a2");
  // 3 + 10 + 8 + 2 + 2 + 15 = 40 tokens would leave no room for an answer of 10.
  const auto third = c.Ask("a long question", OneTokenACharacter);
  ASSERT_TRUE(third.ok());
  EXPECT_EQ(third->dropped_turns, 1u);
  EXPECT_EQ(Contents(c), "sys|q2|a2|a long question|");
  EXPECT_EQ(third->answer_tokens_max, 40u - 22u);
}

TEST(BoundedConversation, RefusesAndStaysAsItWas) {
  BoundedConversation c("", 20, 5, FullPolicy::kRefuse);
  ASSERT_TRUE(c.Ask("12345", OneTokenACharacter).ok());
  c.Answer("12345");
  const auto refused = c.Ask("123456", OneTokenACharacter);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code(), Code::kResourceExhausted);
  EXPECT_NE(refused.status().message().find("16 tokens"), std::string::npos);
  EXPECT_EQ(Contents(c), "12345|12345|");
  EXPECT_TRUE(c.Ask("12345", OneTokenACharacter).ok());
}

TEST(BoundedConversation, AMessageThatCanNeverFitIsRefusedUnderEitherPolicy) {
  BoundedConversation c("sys", 20, 5, FullPolicy::kDrop);
  ASSERT_TRUE(c.Ask("12345", OneTokenACharacter).ok());
  c.Answer("1");
  EXPECT_FALSE(c.Ask(std::string(13, 'x'), OneTokenACharacter).ok());
  EXPECT_EQ(Contents(c), "sys|12345|1|");
}

TEST(BoundedConversation, RoomForTheAnswerIsAtMostAQuarterOfTheContext) {
  BoundedConversation c("", 100, 4096, FullPolicy::kRefuse);
  EXPECT_TRUE(c.Ask(std::string(75, 'x'), OneTokenACharacter).ok());
  c.TakeBack();
  EXPECT_FALSE(c.Ask(std::string(76, 'x'), OneTokenACharacter).ok());
}

TEST(BoundedConversation, TakeBackAndReset) {
  BoundedConversation c("sys", 100, 10, FullPolicy::kDrop);
  ASSERT_TRUE(c.Ask("one", OneTokenACharacter).ok());
  c.TakeBack();
  EXPECT_EQ(Contents(c), "sys|");
  ASSERT_TRUE(c.Ask("two", OneTokenACharacter).ok());
  c.Answer("2");
  c.Reset();
  EXPECT_EQ(Contents(c), "sys|");
}

TEST(BoundedConversation, RenderErrorsChangeNothing) {
  BoundedConversation c("", 100, 10, FullPolicy::kDrop);
  const auto failing = [](const std::vector<Message>&) -> Result<std::vector<int32_t>> {
    return Status(Code::kInvalidArgument, "the template refused");
  };
  const auto asked = c.Ask("hello", failing);
  ASSERT_FALSE(asked.ok());
  EXPECT_EQ(asked.status().message(), "the template refused");
  EXPECT_TRUE(c.messages().empty());
}

}  // namespace
}  // namespace tinyserve
