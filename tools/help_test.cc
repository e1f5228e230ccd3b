#include "tools/help.h"

#include <gtest/gtest.h>

namespace tinyserve {
namespace {

TEST(Wrap, BreaksAtSpaces) {
  EXPECT_EQ(Wrap("one two three", 7, 2), "one two\n  three");
  EXPECT_EQ(Wrap("one two three", 80, 2), "one two three");
  EXPECT_EQ(Wrap("", 5, 2), "");
}

TEST(Wrap, AWordLongerThanTheLineStaysWhole) {
  EXPECT_EQ(Wrap("a incomprehensible b", 5, 1), "a\n incomprehensible\n b");
}

}  // namespace
}  // namespace tinyserve
