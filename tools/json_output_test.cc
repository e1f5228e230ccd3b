#include "tools/json_output.h"

#include <gtest/gtest.h>

namespace tinyserve {
namespace {

TEST(JsonOutput, NamesAFileThatCannotBeWritten) {
  const Result<JsonOutput> output = JsonOutput::Open("/no/such/folder/out.json");
  ASSERT_FALSE(output.ok());
  EXPECT_NE(output.status().message().find("/no/such/folder/out.json"), std::string::npos);
}

}  // namespace
}  // namespace tinyserve
