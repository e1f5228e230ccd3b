#include "server/tool_format.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "text/json_text.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

std::string Template(const std::string& name) {
  std::ifstream file(std::string(TS_SOURCE_DIR) + "/tests/golden/text/templates/" + name);
  std::stringstream text;
  text << file.rdbuf();
  EXPECT_FALSE(text.str().empty()) << name;
  return text.str();
}

TEST(ToolFormat, TemplatesTellTheirFamily) {
  EXPECT_EQ(ToolFormatOf(Template("qwen25.jinja")), ToolFormat::kHermes);
  EXPECT_EQ(ToolFormatOf(Template("llama3.jinja")), ToolFormat::kLlama3);
  EXPECT_EQ(ToolFormatOf(Template("mistral.jinja")), ToolFormat::kMistral);
  EXPECT_EQ(ToolFormatOf("{{ messages }}"), ToolFormat::kHermes);
  EXPECT_TRUE(TemplateTakesTools(Template("qwen25.jinja")));
  EXPECT_FALSE(TemplateTakesTools("{{ messages }}"));
  EXPECT_EQ(ParseToolFormat("llama3_json"), ToolFormat::kLlama3);
  EXPECT_EQ(ParseToolFormat("eval"), std::nullopt);
}

TEST(ToolFormat, WhereTheTemplateTakesNoToolsTheyAreWrittenOut) {
  Tool tool;
  tool.name = "f";
  tool.definition = {{"type", "function"}, {"function", {{"name", "f"}}}};
  const json::array messages = {
      json::object{{"role", "system"}, {"content", "Be brief."}},
      json::object{{"role", "user"}, {"content", "q"}},
      json::object{{"role", "assistant"},
                   {"content", ""},
                   {"tool_calls", json::array{json::object{
                                      {"function", {{"name", "f"}, {"arguments", {{"a", 1}}}}}}}}},
      json::object{{"role", "tool"}, {"content", "one"}},
      json::object{{"role", "tool"}, {"content", "two"}}};
  const json::array written = MessagesWithTools(messages, {tool});
  ASSERT_EQ(written.size(), 4u);
  const std::string told(written[0].at("content").as_string());
  EXPECT_EQ(told.rfind("Be brief.\n\n", 0), 0u);
  EXPECT_NE(told.find(ToJson(tool.definition)), std::string::npos);
  EXPECT_EQ(written[2].at("content"),
            "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>");
  EXPECT_EQ(written[3].at("role"), "user");
  EXPECT_EQ(written[3].at("content"),
            "<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response>");
  EXPECT_EQ(MessagesWithTools(messages, {}).front().at("content"), "Be brief.");
}

}  // namespace
}  // namespace tinyserve
