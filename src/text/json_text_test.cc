#include "text/json_text.h"

#include <gtest/gtest.h>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <cmath>

namespace tinyserve {
namespace {

namespace json = boost::json;

TEST(JsonText, KeepsOrderAndWritesShortNumbers) {
  const json::object value = {
      {"z", 0.614}, {"a", 91.0}, {"n", 12345678901234u}, {"list", json::array{1, -2, true}}};
  EXPECT_EQ(ToJson(value), R"({"z": 0.614, "a": 91, "n": 12345678901234, "list": [1, -2, true]})");
}

TEST(JsonText, WhatJsonCannotHoldIsNull) {
  EXPECT_EQ(ToJson(json::array{NAN, INFINITY, nullptr}), "[null, null, null]");
}

TEST(JsonText, StringsAreEscapedAndAlwaysUtf8) {
  EXPECT_EQ(ToJson(json::value("a\"\n\x1b")), "\"a\\\"\\n\\u001b\"");
  EXPECT_EQ(ToJson(json::value("\xc3\xa9\xff")), "\"\xc3\xa9\xef\xbf\xbd\"");
}

TEST(JsonText, ReadsBackExactly) {
  for (double number : {1e-300, 1.0 / 3, 6.02214076e23, -0.1}) {
    EXPECT_EQ(json::parse(ToJson(json::value(number))).to_number<double>(), number);
  }
}

}  // namespace
}  // namespace tinyserve
