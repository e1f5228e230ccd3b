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

// Values that are cheap to build and endless to walk: each is refused within a bounded time.
TEST(ChatTemplate, WalksAreBounded) {
  const std::string twins =
      "{% set a = namespace(x=['a']) %}{% set b = namespace(x=['a']) %}"
      "{% for i in range(60) %}{% set a.x = [a.x, a.x] %}{% set b.x = [b.x, b.x] %}{% endfor %}";
  const std::string maps =
      "{% set a = namespace(x={'k': 'a'}) %}"
      "{% for i in range(60) %}{% set a.x = {'l': a.x, 'r': a.x} %}{% endfor %}";
  const std::string deep =
      "{% set a = namespace(x=[]) %}{% for i in range(90000) %}{% set a.x = [a.x] %}{% endfor %}";
  const std::string sums =
      "{% set a = namespace(x=[1]) %}{% for i in range(60) %}{% set a.x = a.x + a.x %}{% endfor %}";
  const std::string text = "{% set x = 'a' * 10000000 %}{% for i in range(100000) %}";
  const std::string hostile[] = {
      twins + "{{ a.x }}",
      twins + "{{ a.x ~ '' }}",
      twins + "{{ a.x == b.x }}",
      twins + "{{ a.x in [b.x] }}",
      twins + "{{ [a.x, b.x] | sort }}",
      twins + "{{ a.x | tojson }}",
      twins + "{{ ''.join(a.x) }}",
      twins + "{{ {a.x: 1} }}",
      twins + "{% set y %}{{ a.x }}{% endset %}",
      maps + "{{ a.x }}",
      "{% macro m(x) %}{{ m([x, x]) }}{% endmacro %}{{ m(1) }}",
      "{% macro m(x) %}{{ m(dict(a=x, b=x)) }}{% endmacro %}{{ m(1) }}",
      "{% for x in [1] recursive %}{{ loop([[x, x]]) }}{% endfor %}",
      deep,
      deep + "{{ a.x }}",
      sums + "{{ a.x | length }}",
      "{% set a = namespace(x=[1]) %}{% for i in range(50000) %}{% set a.x = a.x | chain([1]) %}"
      "{% endfor %}{{ a.x | list }}",
      "{% set a = namespace(x='a') %}{% for i in range(60) %}{% set a.x = a.x ~ a.x %}{% endfor %}",
      "{% set x = 'a' * 1000000 %}{{ x.replace('a', x) }}",
      "{{ ('a' * 1000000) * 1000000 }}",
      "{{ 'a' | indent(1000000000) }}",
      "{{ '%1000000000d' | format(3) }}",
      "{{ ('{0}' * 100000).format('a' * 5000000) }}",
      "{{ ('{a}' * 100000).format(a='a' * 5000000) }}",
      "{{ ('{0[0]}' * 100000).format(['a' * 5000000]) }}",
      text + "{% set y = x[9999999] %}{% endfor %}",
      text + "{% set y = x == x + '' %}{% endfor %}",
      text + "{% set y = x is lower %}{% endfor %}",
  };
  for (const std::string& source : hostile) {
    const auto result = Render(source);
    ASSERT_FALSE(result.ok()) << source;
    const std::string& message = result.status().message();
    EXPECT_TRUE(result.status().code() == Code::kResourceExhausted ||
                message.find("recursion limit") != std::string::npos)
        << source << ": " << message;
  }
  ExpectError(Render("{{ '{:1000000000}'.format(3) }}"), Code::kCorrupt, "3 digits");
  ExpectError(Render("{{ '{:{}}'.format(3, 1000000000) }}"), Code::kCorrupt, "format spec");
}

TEST(ChatTemplate, NothingHoldsItself) {
  for (const char* source :
       {"{% set a = namespace() %}{% set a.x = a %}{{ a }}",
        "{% set a = namespace() %}{% set a.x = [a] %}{{ a }}",
        "{% set a = namespace() %}{% set a.x = {'k': (a, 1)} %}{{ a }}",
        "{% set a = namespace() %}{% set b = namespace(x=a) %}{% set a.x = b %}"}) {
    ExpectError(Render(source), Code::kCorrupt, "a namespace cannot be");
  }
}

TEST(ChatTemplate, SourcesAreBounded) {
  const auto repeat = [](const std::string& unit, int count) {
    std::string text;
    for (int i = 0; i < count; ++i) text += unit;
    return text;
  };
  const std::string close = " }}";
  for (const std::string& source :
       {"{{ 1" + repeat("+1", 100000) + close, "{{ x" + repeat(".a", 100000) + close,
        "{{ " + repeat("-", 100000) + "1" + close, "{{ " + repeat("[", 100000) + close,
        "{{ x" + repeat("()", 100000) + close}) {
    ExpectError(Render(source), Code::kCorrupt, "2000 tokens");
  }
  ExpectError(Render("\n{% if 0 %}" + repeat("{% elif 0 %}", 501) + "{% endif %}"), Code::kCorrupt,
              "line 2: more than 500 elifs");
  ExpectError(Render(repeat("{% if 1 %}", 200) + repeat("{% endif %}", 200)), Code::kCorrupt,
              "recursion");
  ExpectError(Render(repeat("x", 300000)), Code::kCorrupt, "300000 bytes");
  // What is allowed does not come near the end of the stack.
  EXPECT_EQ(Text("{{ 1" + repeat("+1", 990) + close), "991");
  EXPECT_EQ(Text("{% if 0 %}" + repeat("{% elif 0 %}", 500) + "{% else %}x{% endif %}"), "x");
}

TEST(ChatTemplate, LongConversationsFit) {
  std::vector<ChatMessage> messages;
  for (int i = 0; i < 1000; ++i) {
    messages.push_back({i % 2 == 0 ? "user" : "assistant", std::string(1000, 'a')});
  }
  for (const char* source :
       {DefaultChatTemplate(),
        "{% for m in messages %}{% if loop.index0 == messages | length - 1 %}last{% endif %}"
        "{{ m.content | trim }}{% endfor %}",
        "{% set ns = namespace(seen=[]) %}{% for m in messages %}{% set ns.seen = ns.seen + "
        "[m.role] %}"
        "{{ m.content.strip() }}{% endfor %}"}) {
    const auto made = ChatTemplate::Create(source, "", "");
    ASSERT_TRUE(made.ok()) << made.status().message();
    const auto text = (*made)->Render(messages, true, "");
    ASSERT_TRUE(text.ok()) << text.status().message();
    EXPECT_GE(text->size(), 1000u * 1000u);
  }
}

}  // namespace
}  // namespace tinyserve
