#include "tools/json_output.h"

#include <gtest/gtest.h>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <cmath>

namespace tinyserve {
namespace {

namespace json = boost::json;

TEST(JsonOutput, KeepsOrderAndWritesShortNumbers) {
  const json::object value = {
      {"z", 0.614}, {"a", 91.0}, {"n", 12345678901234u}, {"list", json::array{1, -2, true}}};
  EXPECT_EQ(ToJson(value), R"({"z": 0.614, "a": 91, "n": 12345678901234, "list": [1, -2, true]})");
}

TEST(JsonOutput, WhatJsonCannotHoldIsNull) {
  EXPECT_EQ(ToJson(json::array{NAN, INFINITY, nullptr}), "[null, null, null]");
}

TEST(JsonOutput, StringsAreEscapedAndAlwaysUtf8) {
  EXPECT_EQ(ToJson(json::value("a\"\n\x1b")), "\"a\\\"\\n\\u001b\"");
  EXPECT_EQ(ToJson(json::value("\xc3\xa9\xff")), "\"\xc3\xa9\xef\xbf\xbd\"");
}

TEST(JsonOutput, ReadsBackExactly) {
  for (double number : {1e-300, 1.0 / 3, 6.02214076e23, -0.1}) {
    EXPECT_EQ(json::parse(ToJson(json::value(number))).to_number<double>(), number);
  }
}

TEST(JsonOutput, NamesAFileThatCannotBeWritten) {
  const Result<JsonOutput> output = JsonOutput::Open("/no/such/folder/out.json");
  ASSERT_FALSE(output.ok());
  EXPECT_NE(output.status().message().find("/no/such/folder/out.json"), std::string::npos);
}

}  // namespace
}  // namespace tinyserve
