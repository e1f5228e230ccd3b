#include "text/grammar.h"

#include <gtest/gtest.h>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <chrono>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "tests/support/byte_vocab.h"
#include "text/gbnf.h"
#include "text/json_text.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

constexpr int32_t kEnd = 2;

class GrammarTest : public testing::Test {
 protected:
  GrammarTest() : tokenizer_(ByteTokenizer()) {
    auto compiler = GrammarCompiler::Create(*tokenizer_);
    EXPECT_TRUE(compiler.ok()) << compiler.status().message();
    compiler_ = *std::move(compiler);
  }

  Result<std::unique_ptr<CompiledGrammar>> Compile(GrammarLanguage language,
                                                   std::string_view text) const {
    return compiler_->Compile(language, text);
  }

  std::unique_ptr<GrammarState> Started(GrammarLanguage language, std::string_view text) const {
    const Result<std::unique_ptr<CompiledGrammar>> grammar = Compile(language, text);
    EXPECT_TRUE(grammar.ok()) << text << ": " << grammar.status().message();
    return grammar.ok() ? *(*grammar)->Start() : nullptr;
  }

  std::vector<int32_t> Allowed(GrammarState* state) const {
    std::vector<uint32_t> bits((tokenizer_->size() + 31) / 32, ~uint32_t{0});
    const Status masked = state->Mask(bits);
    EXPECT_TRUE(masked.ok()) << masked.message();
    std::vector<int32_t> tokens;
    for (uint32_t t = 0; masked.ok() && t < bits.size() * 32; ++t) {
      if ((bits[t / 32] >> t % 32 & 1) != 0) tokens.push_back(static_cast<int32_t>(t));
    }
    return tokens;
  }

  // What a model says that likes no token more than another, but for those that close something.
  // Nothing: it did not end within `tokens_max`.
  std::optional<std::string> Say(GrammarState* state, std::mt19937* random, int tokens_max) const {
    std::string text;
    for (int i = 0; i < tokens_max; ++i) {
      const std::vector<int32_t> allowed = Allowed(state);
      if (allowed.empty()) ADD_FAILURE() << "nothing may come after " << text;
      if (allowed.empty()) return std::nullopt;
      std::vector<double> weights;
      for (const int32_t token : allowed) {
        const std::string bytes = *tokenizer_->TokenBytes(token, false);
        weights.push_back(bytes == "\"" || bytes == "}" || bytes == "]" || token == kEnd ? 40 : 1);
      }
      const int32_t token =
          allowed[std::discrete_distribution<size_t>(weights.begin(), weights.end())(*random)];
      if (token == kEnd) return text;
      text += *tokenizer_->TokenBytes(token, false);
      const Status accepted = state->Accept(token);
      EXPECT_TRUE(accepted.ok()) << accepted.message();
    }
    return std::nullopt;
  }

  // Whether the grammar lets the text be said, byte by byte, and end.
  bool Takes(GrammarLanguage language, std::string_view grammar, std::string_view text) const {
    const std::unique_ptr<GrammarState> state = Started(language, grammar);
    for (const char c : text) {
      const int32_t token = 3 + static_cast<unsigned char>(c);
      const std::vector<int32_t> allowed = Allowed(state.get());
      if (std::find(allowed.begin(), allowed.end(), token) == allowed.end()) return false;
      EXPECT_TRUE(state->Accept(token).ok());
    }
    const std::vector<int32_t> allowed = Allowed(state.get());
    return std::find(allowed.begin(), allowed.end(), kEnd) != allowed.end();
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<GrammarCompiler> compiler_;
};

json::value RandomSchema(std::mt19937* random, int depth) {
  switch ((*random)() % (depth > 0 ? 7 : 5)) {
    case 0:
      return {{"type", "integer"}, {"minimum", -5}, {"maximum", 1000}};
    case 1:
      return {{"type", "boolean"}};
    case 2:
      return {{"type", "string"}, {"maxLength", 6}};
    case 3:
      return {{"enum", json::array{"red", "gr\"een", 7, nullptr}}};
    case 4:
      return {{"type", "number"}};
    case 5:
      return {{"type", "array"}, {"items", RandomSchema(random, depth - 1)}, {"maxItems", 3}};
    default: {
      json::object properties;
      json::array required;
      for (const char* name : {"a", "b c", "d"}) {
        properties[name] = RandomSchema(random, depth - 1);
        if ((*random)() % 2 == 0) required.push_back(name);
      }
      return {{"type", "object"},
              {"properties", properties},
              {"required", required},
              {"additionalProperties", false}};
    }
  }
}

bool Keeps(const json::value& value, const json::object& schema);

bool KeepsObject(const json::value& value, const json::object& schema) {
  if (!value.is_object()) return false;
  for (const json::value& name : schema.at("required").as_array()) {
    if (!value.get_object().contains(name.as_string())) return false;
  }
  const json::object& properties = schema.at("properties").as_object();
  for (const auto& member : value.get_object()) {
    const auto* property = properties.if_contains(member.key());
    if (property == nullptr || !Keeps(member.value(), property->as_object())) return false;
  }
  return true;
}

bool Keeps(const json::value& value, const json::object& schema) {
  if (const json::value* values = schema.if_contains("enum")) {
    const json::array& list = values->as_array();
    return std::find(list.begin(), list.end(), value) != list.end();
  }
  const json::string& type = schema.at("type").as_string();
  if (type == "integer")
    return value.is_int64() && value.get_int64() >= -5 && value.get_int64() <= 1000;
  if (type == "boolean") return value.is_bool();
  if (type == "number") return value.is_number();
  if (type == "string") return value.is_string();
  if (type == "object") return KeepsObject(value, schema);
  if (!value.is_array() || value.get_array().size() > 3) return false;
  for (const json::value& item : value.get_array()) {
    if (!Keeps(item, schema.at("items").as_object())) return false;
  }
  return true;
}

TEST_F(GrammarTest, WhatIsSaidUnderASchemaKeepsToIt) {
  std::mt19937 random(7);
  int ended = 0;
  for (int i = 0; i < 60; ++i) {
    const json::value schema = RandomSchema(&random, 3);
    const std::unique_ptr<GrammarState> state =
        Started(GrammarLanguage::kJsonSchema, ToJson(schema));
    ASSERT_NE(state, nullptr);
    const std::optional<std::string> text = Say(state.get(), &random, 600);
    if (!text) continue;  // numbers may be long
    ++ended;
    json::error_code failed;
    const json::value value = json::parse(*text, failed);
    ASSERT_FALSE(failed) << *text;
    EXPECT_TRUE(Keeps(value, schema.as_object())) << ToJson(schema) << "\n" << *text;
  }
  EXPECT_GE(ended, 50);
}

TEST_F(GrammarTest, AnyObjectIsWholeJson) {
  std::mt19937 random(8);
  for (int i = 0; i < 20; ++i) {
    const std::unique_ptr<GrammarState> state =
        Started(GrammarLanguage::kJsonSchema, R"({"type": "object"})");
    const std::optional<std::string> text = Say(state.get(), &random, 2000);
    if (!text) continue;
    EXPECT_TRUE(json::parse(*text).is_object()) << *text;
  }
}

TEST_F(GrammarTest, ExpressionsAndGrammarsTakeTheirTextsAndNoOthers) {
  EXPECT_TRUE(Takes(GrammarLanguage::kRegex, "[ab]{2}c", "abc"));
  EXPECT_FALSE(Takes(GrammarLanguage::kRegex, "[ab]{2}c", "ab"));
  EXPECT_FALSE(Takes(GrammarLanguage::kRegex, "[ab]{2}c", "abcd"));
  EXPECT_TRUE(Takes(GrammarLanguage::kRegex, "é|/+", "\xc3\xa9"));
  EXPECT_TRUE(Takes(GrammarLanguage::kRegex, "é|/+", "//"));
  const char* sums = "start: term (\"+\" term)*\nterm: /[0-9]+/ | \"(\" start \")\"";
  EXPECT_TRUE(Takes(GrammarLanguage::kLark, sums, "1+(22+3)"));
  EXPECT_FALSE(Takes(GrammarLanguage::kLark, sums, "1+(22+3"));
  EXPECT_TRUE(Takes(GrammarLanguage::kLark, R"(start: "a\"b" | "c")", "a\"b"));
  EXPECT_FALSE(Takes(GrammarLanguage::kLark, R"(start: "a\"b" | "c")", "cc"));
  // White space is bounded, or a small model would never come back from it.
  const char* pair = R"({"type": "array", "items": {"type": "null"}, "minItems": 2})";
  EXPECT_TRUE(Takes(GrammarLanguage::kJsonSchema, pair, "[null,\n  null]"));
  EXPECT_FALSE(Takes(GrammarLanguage::kJsonSchema, pair, "[null,\n\nnull]"));
}

// In memory of exactly its size, so that a sanitizer sees reads past its end.
TEST(Gbnf, MayEndAnywhere) {
  constexpr std::string_view kWhole =
      "root ::= [^a-z\\x41] \"\\u00e9\" | item{1,2}\nitem ::= . # x";
  for (size_t size = 0; size <= kWhole.size(); ++size) {
    const std::vector<char> text(kWhole.begin(), kWhole.begin() + static_cast<ptrdiff_t>(size));
    const Result<std::string> lark = LarkOfGbnf({text.data(), text.size()});
    EXPECT_TRUE(lark.ok() || !lark.status().message().empty()) << size;
  }
  for (const std::string_view cut : {"root ::= \"a", "root ::= [a"}) {
    const std::vector<char> text(cut.begin(), cut.end());
    const Result<std::string> lark = LarkOfGbnf({text.data(), text.size()});
    ASSERT_FALSE(lark.ok()) << cut;
    EXPECT_TRUE(lark.status().message().ends_with("has no end")) << lark.status().message();
  }
}

TEST_F(GrammarTest, GbnfBecomesLark) {
  const auto takes = [this](std::string_view gbnf, std::string_view text) {
    EXPECT_TRUE(IsGbnf(gbnf)) << gbnf;
    const Result<std::string> lark = LarkOfGbnf(gbnf);
    EXPECT_TRUE(lark.ok()) << lark.status().message();
    return lark.ok() && Takes(GrammarLanguage::kLark, *lark, text);
  };
  const char* sums = R"G(# sums
root   ::= term ("+" term)*   # begins here
term-1 ::= "(" root ")"
term   ::=
    [0-9]+ |
    term-1
)G";
  EXPECT_TRUE(takes(sums, "1+(22+3)"));
  EXPECT_FALSE(takes(sums, "1+(22+3"));
  const char* escapes = R"(root ::= "a\"\\\n" [^a-c\]"] [\x41-\u0043é-] . "é"? [0-9]{2,3})";
  EXPECT_TRUE(takes(escapes,
                    "a\"\\\nzBx\xc3\xa9"
                    "12"));
  EXPECT_TRUE(takes(escapes, "a\"\\\nz\xc3\xa9\n123"));
  EXPECT_TRUE(takes(escapes, "a\"\\\nz-/12"));
  EXPECT_FALSE(takes(escapes, "a\"\\\nbBx12"));    // b is none of the others
  EXPECT_FALSE(takes(escapes, "a\"\\\nzBx1"));     // two digits at least
  EXPECT_FALSE(takes(escapes, "a\"\\\nzBx1234"));  // and three at most
  EXPECT_FALSE(IsGbnf("start: \"x ::= y\""));
  const std::pair<const char*, const char*> wrong[] = {
      {"a ::= \"x\"", "'root'"},
      {"root ::= b", "'b'"},
      {"root ::= \"x", "line 1"},
      {"root ::= [a", "line 1"},
      {"\nroot ::= (=b)", "line 2"},
      {"root ::= []", "empty"},
      {"root ::= [b-a]", "before"},
      {"root ::= \"\\ud800\"", "not understood"},
      {"root ::= \"a\"{x}", "{m,n}"},
      {"root ::= \"a\"\nroot ::= \"b\"", "already"},
      {"root ::= \"a\" & root", "expected"}};
  for (const auto& [text, words] : wrong) {
    const Result<std::string> lark = LarkOfGbnf(text);
    ASSERT_FALSE(lark.ok()) << text;
    EXPECT_NE(lark.status().message().find(words), std::string::npos) << lark.status().message();
  }
}

TEST_F(GrammarTest, StatesOfOneGrammarAreTheirOwn) {
  const auto grammar = Compile(GrammarLanguage::kRegex, "ab|cd");
  ASSERT_TRUE(grammar.ok());
  const std::unique_ptr<GrammarState> first = *(*grammar)->Start();
  EXPECT_TRUE(first->Accept(3 + 'a').ok());
  const std::unique_ptr<GrammarState> second = *(*grammar)->Start();
  EXPECT_EQ(Allowed(first.get()), (std::vector<int32_t>{3 + 'b'}));
  EXPECT_EQ(Allowed(second.get()).size(), 3u);  // a, c, and the token "ab"
  EXPECT_FALSE(first->Accept(3 + 'z').ok());    // what no mask allowed is an error, not a crash
}

std::string Repeated(std::string_view text, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += text;
  return out;
}

// Each is refused, or costs a bounded time to compile and to follow.
TEST_F(GrammarTest, HostileGrammarsAreRefusedOrBounded) {
  std::string chain = "start: r0\n", values, properties, terminals = "start: T0\n";
  for (int i = 0; i < 5000; ++i) {
    chain += fmt::format("r{}: r{}\n", i, i + 1);
    terminals += fmt::format("T{}: \"a\" T{}\n", i, i + 1);
  }
  for (int i = 0; i < 10000; ++i) {
    values += fmt::format("\"value {}\",", i);
    properties += fmt::format("\"p{}\": {{\"type\": \"string\"}},", i);
  }
  const std::pair<GrammarLanguage, std::string> hostile[] = {
      {GrammarLanguage::kRegex, Repeated("(", 60000)},
      {GrammarLanguage::kRegex, Repeated("(", 120) + "a" + Repeated(")*", 120)},
      {GrammarLanguage::kRegex, "(((a{1000}){1000}){1000}){1000}"},
      {GrammarLanguage::kRegex, "(a|aa|aaa|b*)*[a-z]*x{50}(.*a){30}"},
      {GrammarLanguage::kRegex, "(?=a)b"},
      {GrammarLanguage::kRegex, "[\\p{L}]{0,10000}"},
      {GrammarLanguage::kRegex, "a" + Repeated("?", 100000)},
      {GrammarLanguage::kLark, Repeated("(", 60000)},
      {GrammarLanguage::kLark, "start: start start | \"a\" |"},
      {GrammarLanguage::kLark, chain + "r5000: \"a\""},
      {GrammarLanguage::kLark, terminals + "T5000: \"a\""},
      {GrammarLanguage::kLark, "start: %json {\"$ref\": \"http://example.com/a\"}"},
      {GrammarLanguage::kLark, "start: \"a\"{100000000}"},
      {GrammarLanguage::kLark, "%llguidance {"},
      {GrammarLanguage::kLark, ""},
      {GrammarLanguage::kJsonSchema, Repeated("[", 100000)},
      {GrammarLanguage::kJsonSchema, Repeated(R"({"items":)", 100) + "{}" + Repeated("}", 100)},
      {GrammarLanguage::kJsonSchema, "{\"enum\": [" + values + "1]}"},
      {GrammarLanguage::kJsonSchema, "{\"properties\": {" + properties + "\"z\": {}}}"},
      {GrammarLanguage::kJsonSchema, R"({"$ref": "#"})"},
      {GrammarLanguage::kJsonSchema, R"({"$ref": "https://example.com/schema.json"})"},
      {GrammarLanguage::kJsonSchema,
       R"({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}})"},
      {GrammarLanguage::kJsonSchema, R"({"type": "string", "minLength": 100000000})"},
      {GrammarLanguage::kJsonSchema,
       R"({"type": "string", "pattern": "(((a{100}){100}){100}){100}"})"},
      {GrammarLanguage::kJsonSchema, R"({"type": "array", "minItems": 4000000000})"},
      {GrammarLanguage::kJsonSchema, R"({"type": "integer", "multipleOf": 1e-300})"},
      {GrammarLanguage::kJsonSchema, R"({"type": "integer", "minimum": 5, "maximum": 1e308})"}};
  std::mt19937 random(9);
  for (const auto& [language, text] : hostile) {
    const auto start = std::chrono::steady_clock::now();
    const Result<std::unique_ptr<CompiledGrammar>> grammar = Compile(language, text);
    if (grammar.ok()) {
      const std::unique_ptr<GrammarState> state = *(*grammar)->Start();
      std::vector<uint32_t> bits((tokenizer_->size() + 31) / 32);
      for (int i = 0; i < 20 && state->Mask(bits).ok(); ++i) {
        const std::vector<int32_t> allowed = Allowed(state.get());
        if (allowed.empty() || allowed.back() == kEnd) break;
        if (!state->Accept(allowed.back()).ok()) break;
      }
    } else {
      EXPECT_EQ(grammar.status().code(), Code::kInvalidArgument) << text.substr(0, 60);
      EXPECT_LT(grammar.status().message().size(), 2000u);
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    EXPECT_LT(took.count(), 10) << text.substr(0, 60);
  }
}

TEST_F(GrammarTest, WhatASchemaAsksForIsKeptOrRefused) {
  for (const char* schema :
       {R"({"type": "strin"})", R"({"not": {"type": "string"}})", "[]", "true", "",
        R"({"type": "object", "x-guidance": {"lenient": true}})",
        R"({"type": "string", "format": "no-such"})", R"({"type": "array", "uniqueItems": true})",
        R"({"if": {}, "then": {}})", R"({"type": "integer", "minimum": 3, "maximum": 2})"}) {
    const auto grammar = Compile(GrammarLanguage::kJsonSchema, schema);
    ASSERT_FALSE(grammar.ok()) << schema;
    EXPECT_EQ(grammar.status().code(), Code::kInvalidArgument) << schema;
    EXPECT_FALSE(grammar.status().message().empty());
  }
}

}  // namespace
}  // namespace tinyserve
