#include "text/chat_template.h"

#include <gtest/gtest.h>

#include <ctime>

namespace tinyserve {
namespace {

const std::vector<ChatMessage> kHello = {{"user", "Hello"}};

Result<std::string> Render(const std::string& source, const std::string& extra = "",
                           const TemplateLimits& limits = {}) {
  auto made = ChatTemplate::Create(source, "<s>", "</s>", limits);
  if (!made.ok()) return made.status();
  return (*made)->Render(kHello, true, extra);
}

std::string Text(const std::string& source, const std::string& extra = "") {
  const auto text = Render(source, extra);
  EXPECT_TRUE(text.ok()) << source << ": " << text.status().message();
  return text.ok() ? *text : "";
}

void ExpectError(const Result<std::string>& result, Code code, const std::string& part) {
  ASSERT_FALSE(result.ok()) << *result;
  EXPECT_EQ(result.status().code(), code) << result.status().message();
  EXPECT_NE(result.status().message().find(part), std::string::npos) << result.status().message();
}

TEST(ChatTemplate, RendersMessages) {
  EXPECT_EQ(Text("{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
                 "{{ eos_token }}{{ add_generation_prompt }}"),
            "<s>user: Hello</s>True");
}

TEST(ChatTemplate, DefaultIsChatMl) {
  const auto made = ChatTemplate::Create(DefaultChatTemplate(), "", "");
  ASSERT_TRUE(made.ok()) << made.status().message();
  const std::vector<ChatMessage> messages = {{"system", "Be kind."}, {"user", "Hi"}};
  EXPECT_EQ(*(*made)->Render(messages, true, ""),
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\n");
  EXPECT_EQ(*(*made)->Render({}, false, ""), "");
}

TEST(ChatTemplate, ContentIsDataNeverTemplate) {
  const auto made = ChatTemplate::Create("{{ messages[0].content }}", "", "");
  ASSERT_TRUE(made.ok());
  const std::string hostile = "{{ 1 }}{% endfor %}{# \" \\ \t \x01 \x7f <&> 😀 \u2028";
  EXPECT_EQ(*(*made)->Render({{"user", hostile}}, false, ""), hostile);
  // Bytes that are no character become U+FFFD, each.
  EXPECT_EQ(*(*made)->Render({{"user", "a\xE2\x82z"}}, false, ""), "a\uFFFD\uFFFDz");
}

TEST(ChatTemplate, EmptyTokensAreUndefined) {
  const auto made = ChatTemplate::Create("{{ bos_token is defined }}[{{ eos_token }}]", "", "");
  ASSERT_TRUE(made.ok());
  EXPECT_EQ(*(*made)->Render(kHello, false, ""), "False[]");
}

TEST(ChatTemplate, TakesFurtherVariables) {
  EXPECT_EQ(Text("{{ enable_thinking }} {{ tools | length }}",
                 R"({"enable_thinking": false, "tools": [1, 2]})"),
            "False 2");
  EXPECT_EQ(Text("{{ tools is none }} {{ documents is none }}"), "True True");
  EXPECT_EQ(Text("{{ bos_token }}", R"({"bos_token": "other"})"), "other");
  // What the caller says of messages and prompt stands.
  EXPECT_EQ(Text("{{ messages[0].content }} {{ add_generation_prompt }}",
                 R"({"messages": [], "add_generation_prompt": false})"),
            "Hello True");
}

TEST(ChatTemplate, RefusesWhatIsNoJson) {
  ExpectError(Render("x", "[1]"), Code::kInvalidArgument, "not a JSON object");
  ExpectError(Render("x", "{"), Code::kInvalidArgument, "template variables: not JSON");
  const auto made = ChatTemplate::Create("x", "", "");
  ASSERT_TRUE(made.ok());
  ExpectError((*made)->RenderJson("{}", false, ""), Code::kInvalidArgument, "not a JSON array");
  ExpectError((*made)->RenderJson("[", false, ""), Code::kInvalidArgument, "messages: not JSON");
  ExpectError((*made)->RenderJson("[\"\xFF\"]", false, ""), Code::kInvalidArgument, "messages");
  ExpectError((*made)->RenderJson(std::string(100000, '['), false, ""), Code::kInvalidArgument,
              "recursion");
}

TEST(ChatTemplate, ReportsTheTemplatesOwnComplaint) {
  ExpectError(Render("{{ raise_exception('no tools, please') }}"), Code::kInvalidArgument,
              "no tools, please");
  ExpectError(Render("{% macro m() %}{{ raise_exception('inside') }}{% endmacro %}{{ m() }}"),
              Code::kInvalidArgument, "inside");
}

TEST(ChatTemplate, ErrorsNameTheLine) {
  ExpectError(Render("a\nb\n{% if %}"), Code::kCorrupt, "line 3");
  ExpectError(Render("{% for m in messages %}"), Code::kCorrupt, "line 1");
  ExpectError(Render("\n{{ messages.nothing.more }}"), Code::kCorrupt, "line 2");
  ExpectError(Render("{{ 1 | no_such_filter }}"), Code::kCorrupt, "no_such_filter");
  ExpectError(Render(std::string("\xFF", 1)), Code::kCorrupt, "UTF-8");
}

TEST(ChatTemplate, TellsTheTime) {
  const auto local = [](const char* format) {
    const std::time_t seconds = std::time(nullptr);
    std::tm now = {};
    localtime_r(&seconds, &now);
    char text[256];
    return std::string(text, std::strftime(text, sizeof text, format, &now));
  };
  // No seconds, and twice where an hour or a minute begins between the two readings.
  const char* format = "%d %b %Y|%A %B %j %e %-d|%a %h %m %y %H:%M %I %p|%F %D %u %w %%|%t%n|";
  const std::string source = "{{ strftime_now('" + std::string(format) + "') }}";
  std::string before, text, after;
  do {
    before = local(format);
    text = Text(source);
    after = local(format);
  } while (before != after);
  EXPECT_EQ(text, before);
  ExpectError(Render("{{ strftime_now('%Q') }}"), Code::kCorrupt, "%Q");
  ExpectError(Render("{{ strftime_now('%') }}"), Code::kCorrupt, "strftime_now");
}

TEST(ChatTemplate, ReachesNeitherFilesNorInternals) {
  for (const char* source :
       {"{% include '/etc/passwd' %}", "{% import 'x' as x %}", "{{ debug() }}",
        "{% extends '/etc/passwd' %}", "{{ open('/etc/passwd') }}"}) {
    ExpectError(Render(source), Code::kCorrupt, "line 1");
  }
  EXPECT_EQ(Text("[{{ ''.__class__ }}]"), "[]");
}

TEST(ChatTemplate, OutputIsBounded) {
  TemplateLimits limits;
  limits.output_bytes_max = 10;
  EXPECT_EQ(*Render("0123456789", "", limits), "0123456789");
  ExpectError(Render("0123456789+", "", limits), Code::kResourceExhausted, "10 bytes");
  ExpectError(Render("{% for i in range(11) %}x{% endfor %}", "", limits), Code::kResourceExhausted,
              "10 bytes");
}

TEST(ChatTemplate, StepsAreBounded) {
  TemplateLimits limits;
  limits.steps_max = 1000;
  EXPECT_TRUE(Render("{% for i in range(10) %}{% endfor %}", "", limits).ok());
  ExpectError(Render("{% for i in range(1000) %}{% endfor %}", "", limits),
              Code::kResourceExhausted, "1000 steps");
}

}  // namespace
}  // namespace tinyserve
