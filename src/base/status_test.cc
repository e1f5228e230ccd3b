#include "tinyserve/status.h"

#include <gtest/gtest.h>

#include <memory>
#include <set>
#include <string>

namespace tinyserve {
namespace {

TEST(StatusTest, DefaultIsOk) {
  Status status;
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(status.code(), Code::kOk);
  EXPECT_EQ(status.message(), "");
}

TEST(StatusTest, KeepsCodeAndMessage) {
  Status status(Code::kIo, "disk: gone");
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(status.code(), Code::kIo);
  EXPECT_EQ(status.message(), "disk: gone");
}

TEST(StatusTest, EveryCodeHasItsOwnName) {
  std::set<std::string> names;
  for (int code = 0; code <= static_cast<int>(Code::kInternal); ++code) {
    names.insert(CodeName(static_cast<Code>(code)));
  }
  EXPECT_EQ(names.size(), static_cast<size_t>(Code::kInternal) + 1);
  EXPECT_EQ(names.count("unknown"), 0u);
}

TEST(ResultTest, HoldsAValueThatCanOnlyBeMoved) {
  Result<std::unique_ptr<int>> result(std::make_unique<int>(7));
  ASSERT_TRUE(result.ok());
  EXPECT_TRUE(result.status().ok());
  std::unique_ptr<int> taken = *std::move(result);
  EXPECT_EQ(*taken, 7);
}

TEST(ResultTest, HoldsAStatus) {
  Result<std::string> result(Status(Code::kNotFound, "no such key"));
  EXPECT_FALSE(result.ok());
  EXPECT_EQ(result.status().code(), Code::kNotFound);
}

Result<int> Half(int value) {
  if (value % 2 != 0) return Status(Code::kInvalidArgument, std::to_string(value) + " is odd");
  return value / 2;
}

Status Quarter(int value, int* out) {
  TS_ASSIGN_OR_RETURN(const int half, Half(value));
  TS_ASSIGN_OR_RETURN(*out, Half(half));
  return Status();
}

Status CheckBoth(int first, int second) {
  int quarter = 0;
  TS_RETURN_IF_ERROR(Quarter(first, &quarter));
  TS_RETURN_IF_ERROR(Quarter(second, &quarter));
  return Status();
}

TEST(StatusMacrosTest, AssignOrReturnStopsAtTheFirstError) {
  int out = -1;
  EXPECT_TRUE(Quarter(12, &out).ok());
  EXPECT_EQ(out, 3);
  out = -1;
  EXPECT_EQ(Quarter(6, &out).message(), "3 is odd");
  EXPECT_EQ(out, -1);
}

TEST(StatusMacrosTest, ReturnIfErrorPassesTheMessageOn) {
  EXPECT_TRUE(CheckBoth(4, 8).ok());
  EXPECT_EQ(CheckBoth(5, 8).message(), "5 is odd");
  EXPECT_EQ(CheckBoth(4, 9).message(), "9 is odd");
}

}  // namespace
}  // namespace tinyserve
