#include "server/answer_parser.h"

#include <gtest/gtest.h>

namespace tinyserve {
namespace {

// "text", "think:…", "call N name", "args N …", joined by lines.
std::string Shown(const std::vector<AnswerPart>& parts) {
  std::string out;
  AnswerPart last;
  const auto flush = [&] {
    if (last.text.empty()) return;
    const char* names[] = {"", "think ", "call ", "args "};
    const bool numbered = last.kind >= AnswerPart::Kind::kCall;
    out += names[static_cast<size_t>(last.kind)] +
           (numbered ? std::to_string(last.call) + " " : std::string()) + last.text + "\n";
  };
  for (const AnswerPart& part : parts) {
    if (part.kind == last.kind && part.call == last.call) {
      last.text += part.text;
      continue;
    }
    flush();
    last = part;
  }
  flush();
  return out;
}

AnswerForm Form(std::optional<ToolFormat> tools, bool reasoning = false) {
  AnswerForm form;
  form.tools = tools;
  form.tool_names = {"f", "g"};
  form.reasoning = reasoning;
  return form;
}

// In pieces of every size the same comes out, and nothing waits that need not.
std::string Parsed(const AnswerForm& form, std::string_view text) {
  std::string whole;
  for (size_t piece = 1; piece <= text.size() + 1; ++piece) {
    AnswerParser parser(form);
    std::vector<AnswerPart> all;
    const auto add = [&](std::vector<AnswerPart> parts) {
      for (AnswerPart& part : parts) all.push_back(std::move(part));
    };
    for (size_t at = 0; at < text.size(); at += piece) add(parser.Push(text.substr(at, piece)));
    add(parser.Finish());
    const std::string shown = Shown(all);
    if (piece > 1) {
      EXPECT_EQ(shown, whole) << text << " in pieces of " << piece;
    }
    whole = shown;
  }
  return whole;
}

constexpr ToolFormat kHermes = ToolFormat::kHermes, kLlama3 = ToolFormat::kLlama3,
                     kMistral = ToolFormat::kMistral;

TEST(AnswerParser, HermesCalls) {
  const AnswerForm form = Form(kHermes);
  EXPECT_EQ(Parsed(form, R"(<tool_call>
{"name": "f", "arguments": {"a": [1, {"b": "}\"]"}]}}
</tool_call>)"),
            "call 0 f\nargs 0 {\"a\": [1, {\"b\": \"}\\\"]\"}]}\n");
  EXPECT_EQ(Parsed(form, R"(Let me see. <tool_call>{"name": "f", "arguments": {}}</tool_call>
<tool_call>{"arguments": {"x": 1}, "name": "g"}</tool_call> Done.)"),
            "Let me see.\ncall 0 f\nargs 0 {}\ncall 1 g\nargs 1 {\"x\": 1}\nDone.\n");
  // SmolLM2 writes a list; an end is not always written.
  EXPECT_EQ(Parsed(form, R"(<tool_call>[{"name": "f", "arguments": {"a": 1}}, {"name": "g"}])"),
            "call 0 f\nargs 0 {\"a\": 1}\ncall 1 g\nargs 1 {}\n");
  // Arguments as their text, as some models write them; none at all.
  EXPECT_EQ(Parsed(form, R"(<tool_call>{"id": 7, "name": "f", "arguments": "{\"a\": 1}"})"),
            "call 0 f\nargs 0 {\"a\": 1}\n");
  EXPECT_EQ(Parsed(form, R"(<tool_call>{"name": "f", "arguments": null})"),
            "call 0 f\nargs 0 {}\n");
}

TEST(AnswerParser, WhatIsNoCallStaysText) {
  const AnswerForm form = Form(kHermes);
  for (const char* text :
       {"a < b and <tool b", "<tool_call>what?", "x\n<tool_call>{\"name\": \"unknown\", \"a",
        "<tool_call>{\"name\": \"f\"", "<tool_call>[1, 2]</tool_call>",
        "<tool_call>{\"arguments\": {\"a\": 1}}</tool_call>",
        "<tool_call>{\"name\": 3, \"arguments\": {}}",
        "<tool_call>{\"name\": \"f\", \"arguments\": [1]}",
        "<tool_call>{\"name\": \"f\", \"arguments\": \"x\"}", "<tool_call>",
        "<tool_call>{\"name\": {\"name\": \"f\"}}", "<tool_call>\"f\""})
    EXPECT_EQ(Parsed(form, text), std::string(text) + "\n");
  EXPECT_EQ(Parsed(Form(std::nullopt), "<tool_call>{\"name\": \"f\"}"),
            "<tool_call>{\"name\": \"f\"}\n");
  // A call that breaks off keeps what was given out; what it goes on with is text.
  EXPECT_EQ(Parsed(form, R"(<tool_call>{"name": "f", "arguments": {"a": 1]} oh)"),
            "call 0 f\nargs 0 {\"a\": 1\n]} oh\n");
  EXPECT_EQ(Parsed(form, R"(<tool_call>{"name": "f", "arguments": {"a": "cut)"),
            "call 0 f\nargs 0 {\"a\": \"cut\n");
  // And the next call has a number of its own.
  EXPECT_EQ(Parsed(form, R"(<tool_call>{"name": "f", "arguments": {]<tool_call>{"name": "g"})"),
            "call 0 f\nargs 0 {\n]\ncall 1 g\nargs 1 {}\n");
  const std::string deep = std::string(2000, '[');
  EXPECT_EQ(Parsed(form, "<tool_call>{\"x\": " + deep).size(), deep.size() + 18);
}

TEST(AnswerParser, Llama3Calls) {
  const AnswerForm form = Form(kLlama3);
  EXPECT_EQ(
      Parsed(form, R"({"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}})"),
      "call 0 f\nargs 0 {\"a\": 1}\ncall 1 g\nargs 1 {}\n");
  EXPECT_EQ(Parsed(form, R"(<|python_tag|>{"name": "f", "parameters": {}})"),
            "call 0 f\nargs 0 {}\n");
  // JSON that is an answer, and calls that are only talked of.
  for (const char* text : {R"({"city": "Paris"})", R"(Say {"name": "f", "parameters": {}})",
                           R"({"name": "nobody", "parameters": {}})", "<|python_tag", "{"})
    EXPECT_EQ(Parsed(form, text), std::string(text) + "\n");
}

TEST(AnswerParser, MistralCalls) {
  EXPECT_EQ(Parsed(Form(kMistral), R"([TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}, "id": "x"},
 {"name": "g", "arguments": {}}])"),
            "call 0 f\nargs 0 {\"a\": 1}\ncall 1 g\nargs 1 {}\n");
  EXPECT_EQ(Parsed(Form(kMistral), "see [TOOL_USE] there"), "see [TOOL_USE] there\n");
}

TEST(AnswerParser, CallsThatThePromptBegan) {
  AnswerForm form = Form(kHermes);
  form.in_call = true;
  EXPECT_EQ(Parsed(form, "\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>"),
            "call 0 f\nargs 0 {}\n");
  form.parallel_calls = false;
  EXPECT_EQ(Parsed(form, R"([{"name": "f"}, {"name": "g"}])"), "call 0 f\nargs 0 {}\n");
}

TEST(AnswerParser, ReasoningIsSplitOff) {
  const AnswerForm form = Form(std::nullopt, true);
  EXPECT_EQ(Parsed(form, "<think>\nHm, 2 < 3.\n</think>\n\nYes."), "think Hm, 2 < 3.\nYes.\n");
  EXPECT_EQ(Parsed(form, "\n<think></think>Yes"), "Yes\n");
  EXPECT_EQ(Parsed(form, "<think>never ends"), "think never ends\n");
  EXPECT_EQ(Parsed(form, "Yes <think>no"), "Yes <think>no\n");
  AnswerForm begun = Form(kHermes, true);
  begun.in_reasoning = true;
  EXPECT_EQ(Parsed(begun, "so</think>\n<tool_call>{\"name\": \"f\"}</tool_call>"),
            "think so\ncall 0 f\nargs 0 {}\n");
}

TEST(AnswerParser, ArgumentsComeAsTheyAreWritten) {
  AnswerParser parser(Form(kHermes));
  EXPECT_TRUE(parser.Push(R"(<tool_call>{"name": "f", "arguments": )").empty());
  EXPECT_FALSE(parser.called());
  EXPECT_EQ(Shown(parser.Push("{\"a\"")), "call 0 f\nargs 0 {\"a\"\n");
  EXPECT_TRUE(parser.called());
  EXPECT_EQ(Shown(parser.Push(": 1")), "args 0 : 1\n");
  EXPECT_EQ(Shown(parser.Push("}}")), "args 0 }\n");
}

}  // namespace
}  // namespace tinyserve
