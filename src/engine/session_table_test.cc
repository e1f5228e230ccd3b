#include "engine/session_table.h"

#include <gtest/gtest.h>

namespace tinyserve {
namespace {

Usage Of(uint32_t prompt, uint32_t completion) {
  return {.prompt_tokens = prompt, .completion_tokens = completion};
}

TEST(SessionTable, CountsWhatIsAskedInASession) {
  SessionTable table({.sessions_max = 4, .ttl_seconds = 10});
  table.Begin("c", "a", 1);
  table.Begin("c", "a", 2);
  const auto number = table.End("c", "a", Of(5, 2), 3);
  ASSERT_TRUE(number);
  const std::vector<SessionInfo> list = table.List("c", 5);
  ASSERT_EQ(list.size(), 1u);
  EXPECT_EQ(list[0].session, "a");
  EXPECT_EQ(list[0].age_seconds, 4);
  EXPECT_EQ(list[0].idle_seconds, 2);
  EXPECT_EQ(list[0].requests, 2u);
  EXPECT_EQ(list[0].running, 1u);
  EXPECT_EQ(list[0].prompt_tokens, 5u);
  EXPECT_EQ(list[0].generated_tokens, 2u);
  EXPECT_EQ(table.End("c", "a", Of(7, 1), 6), number);
  EXPECT_TRUE(table.List("other", 6).empty());
  EXPECT_FALSE(table.Erase("other", "a", 6));
  EXPECT_TRUE(table.Erase("c", "a", 6));
  EXPECT_EQ(table.TakeEnded(), std::vector<uint64_t>{*number});
  EXPECT_TRUE(table.TakeEnded().empty());
}

TEST(SessionTable, EndsWhatIsIdleForTooLong) {
  SessionTable table({.sessions_max = 4, .ttl_seconds = 10});
  table.Begin("", "idle", 0);
  table.End("", "idle", Of(1, 1), 1);
  table.Begin("", "runs", 1);
  EXPECT_EQ(table.List("", 11).size(), 2u);
  EXPECT_EQ(table.List("", 12).size(), 1u);
  table.Expire(11);
  EXPECT_EQ(table.size(), 2u);
  table.Expire(12);
  EXPECT_EQ(table.size(), 1u);
  EXPECT_EQ(table.TakeEnded().size(), 1u);
  table.End("", "runs", Of(1, 1), 100);
  table.Expire(109);
  EXPECT_EQ(table.size(), 1u);
}

TEST(SessionTable, IsBounded) {
  SessionTable table({.sessions_max = 2, .ttl_seconds = 100});
  table.Begin("", "a", 0);
  table.Begin("", "b", 1);
  table.Begin("", "c", 2);  // both run: it is not counted
  EXPECT_EQ(table.size(), 2u);
  EXPECT_FALSE(table.End("", "c", Of(1, 1), 3));
  const auto a = table.End("", "a", Of(1, 1), 4);
  const auto b = table.End("", "b", Of(1, 1), 5);
  table.Begin("", "a", 6);
  table.End("", "a", Of(1, 1), 7);
  table.Begin("", "d", 8);
  EXPECT_EQ(table.TakeEnded(), std::vector<uint64_t>{*b});
  EXPECT_EQ(table.List("", 8).size(), 2u);
  const auto all = [](uint64_t) { return true; };
  EXPECT_EQ(table.LongestIdle(0, all), a);
  EXPECT_NE(table.LongestIdle(*a, all), a);
  EXPECT_FALSE(table.LongestIdle(0, [](uint64_t) { return false; }));
}

// A session that was deleted while a request of it ran, and came back, does not end twice.
TEST(SessionTable, ARequestOfADeletedSessionEndsNothing) {
  SessionTable table({.sessions_max = 2, .ttl_seconds = 100});
  table.Begin("", "a", 0);
  table.Erase("", "a", 1);
  EXPECT_FALSE(table.End("", "a", Of(1, 1), 2));
}

}  // namespace
}  // namespace tinyserve
