// The document says what is parsed: no field more or less, and of each its range and its words.
#include "server/openapi.h"

#include <gtest/gtest.h>

#include <set>

#include "server/field_names.h"
#include "server/openapi_fields.h"
#include "server/routes.h"
#include "server/service_testing.h"
#include "text/json_text.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

struct Body {
  const char* path;
  const char* body;  // a good one, as short as possible
  std::vector<std::span<const ApiField>> tables;
  const char* other = nullptr;  // that reads fields which the first leaves alone
};

const std::vector<Body>& Bodies() {
  static const std::vector<Body> bodies = {
      {"/v1/completions",
       R"({"prompt": "a"})",
       {kGenerationFields, kAnswerFields, kCompletionFields}},
      {"/v1/chat/completions",
       R"({"messages": [{"role": "user", "content": "a"}]})",
       {kGenerationFields, kAnswerFields, kChatFields}},
      {"/v1/responses", R"({"input": "a"})", {kGenerationFields, kResponseFields}},
      {"/v1/embeddings", R"({"input": "a"})", {kEmbeddingFields}},
      {"/tokenize",
       R"({"prompt": "a"})",
       {kTokenizeFields},
       R"({"messages": [{"role": "user", "content": "a"}]})"},
      {"/detokenize", R"({"tokens": [97]})", {kDetokenizeFields}}};
  return bodies;
}

class OpenApiTest : public ServiceTest {
 protected:
  // "": the body is accepted; else the field that is to blame.
  std::string Blamed(const char* path, json::object body, std::string_view field,
                     const json::value& value) {
    body[field] = value;
    engine_.submitted.clear();
    const HttpReply reply = Post(path, ToJson(body));
    if (reply.status == 200 || reply.work != nullptr) return "";
    const json::value param = json::parse(reply.body).at("error").at("param");
    return param.is_null() ? "?" : std::string(std::string_view(param.as_string()));
  }
};

TEST_F(OpenApiTest, EveryRouteIsThere) {
  const json::object document = OpenApiDocument("1");
  const json::object& paths = document.at("paths").as_object();
  std::set<std::string> told;
  for (const auto& path : paths) {
    std::string pattern(std::string_view(path.key()));
    const size_t open = pattern.find('{'), close = pattern.find('}');
    if (open != std::string::npos) pattern.replace(open, close - open + 1, "*");
    for (const auto& method : path.value().as_object()) {
      std::string name(std::string_view(method.key()));
      for (char& c : name) c = static_cast<char>(std::toupper(c));
      EXPECT_EQ(told.count(name + " " + pattern), 0u);
      told.insert(name + " " + pattern);
    }
  }
  std::set<std::string> served;
  for (const Route& route : AllRoutes()) {
    // The dashboard is no part of the API.
    if (route.path == "/" || route.path.starts_with("/dashboard/")) continue;
    served.insert(std::string(route.method) + " " + std::string(route.path));
  }
  EXPECT_EQ(told, served);
  EXPECT_EQ(GetJson("/openapi.json").at("paths"), document.at("paths"));
}

TEST_F(OpenApiTest, EveryReferenceIsThere) {
  const json::object document = OpenApiDocument("1");
  const std::string text = ToJson(document);
  const std::string_view marker = "#/components/schemas/";
  size_t found = 0;
  for (size_t at = text.find(marker); at != std::string::npos; at = text.find(marker, at + 1)) {
    const size_t begin = at + marker.size();
    const std::string name = text.substr(begin, text.find('"', begin) - begin);
    EXPECT_TRUE(document.at("components").at("schemas").as_object().contains(name)) << name;
    ++found;
  }
  EXPECT_GT(found, 50u);
}

TEST_F(OpenApiTest, FieldsAreThoseThatAreRead) {
  for (const Body& route : Bodies()) {
    std::set<std::string> told;
    for (const auto table : route.tables) {
      for (const ApiField& field : table)
        EXPECT_TRUE(told.insert(std::string(field.name)).second) << route.path << field.name;
    }
    FieldNames names;
    Post(route.path, route.body);
    if (route.other != nullptr) Post(route.path, route.other);
    std::set<std::string> read;
    for (const std::string& name : names.names()) {
      if (name.find_first_of(".[") == std::string::npos) read.insert(name);
    }
    EXPECT_EQ(told, read) << route.path;
  }
}

TEST_F(OpenApiTest, RangesAndWordsAreThoseThatAreAllowed) {
  int checked = 0;
  for (const Body& route : Bodies()) {
    const json::object good = json::parse(route.body).as_object();
    for (const auto table : route.tables) {
      for (const ApiField& field : table) {
        const json::object schema = json::parse(json::string_view(field.schema)).as_object();
        SCOPED_TRACE(std::string(route.path) + " " + std::string(field.name));
        const auto expect = [&](const json::value& value, bool allowed) {
          const std::string blamed = Blamed(route.path, good, field.name, value);
          // What is allowed by itself may still not go with the rest of the body.
          EXPECT_EQ(blamed == field.name, !allowed) << ToJson(value) << blamed;
          ++checked;
        };
        const bool whole = ToJson(schema).find("integer") != std::string::npos;
        for (const auto& [bound, beyond] : {std::pair("minimum", -1.0), {"maximum", 1.0}}) {
          const json::value* limit = schema.if_contains(bound);
          if (limit == nullptr) continue;
          const double at = limit->to_number<double>();
          const double over = at + beyond * (whole ? 1 : 1e-3 * std::max(1.0, std::abs(at)));
          expect(whole ? json::value(static_cast<int64_t>(over)) : json::value(over), false);
          // Rules beyond ranges.
          if (field.name == "dimensions" || field.name == "max_tokens" ||
              field.name == "top_logprobs")
            continue;
          expect(*limit, true);
        }
        if (const json::value* words = schema.if_contains("enum")) {
          for (const json::value& word : words->as_array()) expect(word, true);
          expect("no such word", false);
        }
        if (ToJson(schema).find("\"boolean\"") != std::string::npos && schema.contains("type"))
          expect("yes", false);
      }
    }
  }
  EXPECT_GT(checked, 150);
}

}  // namespace
}  // namespace tinyserve
