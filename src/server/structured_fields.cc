#include "server/structured_fields.h"

#include <fmt/format.h>

#include <boost/json/array.hpp>
#include <utility>

#include "text/gbnf.h"
#include "text/json_text.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

constexpr size_t kTypeBytesMax = 64, kNameBytesMax = 256;
constexpr size_t kGrammarBytesMax = 1 << 18;
constexpr size_t kChoicesMax = 1024;
constexpr const char* kAnyObject = R"({"type": "object"})";

// Keeps the one grammar of a request, and refuses a second.
class OneGrammar {
 public:
  explicit OneGrammar(Fields* fields) : fields_(fields) {}

  void Set(std::string path, GrammarKind kind, std::string text) {
    if (spec_) {
      return fields_->Fail(BadField(path, fmt::format("'{}' and '{}' both say what the answer "
                                                      "must follow: give one of them",
                                                      spec_->field, path)));
    }
    spec_ = {.kind = kind, .text = std::move(text), .field = std::move(path)};
  }
  std::optional<GrammarSpec> Take() { return std::move(spec_); }

 private:
  Fields* fields_;
  std::optional<GrammarSpec> spec_;
};

// A schema: an object, or, as vLLM allows, its text.
void ReadSchema(Fields* fields, std::string_view name, bool text_allowed, OneGrammar* out) {
  const json::value* value = fields->Find(name);
  if (value == nullptr) return;
  if (value->is_object())
    return out->Set(fields->Path(name), GrammarKind::kJsonSchema, ToJson(*value));
  if (text_allowed && value->is_string()) {
    std::string text;
    fields->String(name, kGrammarBytesMax, &text);
    return out->Set(fields->Path(name), GrammarKind::kJsonSchema, std::move(text));
  }
  fields->Fail(name, fmt::format("'{}' must be a JSON schema, which is an object{}",
                                 fields->Path(name), text_allowed ? " or its text" : ""));
}

void ReadText(Fields* fields, std::string_view name, GrammarKind kind, OneGrammar* out) {
  if (fields->Find(name) == nullptr) return;
  std::string text;
  fields->String(name, kGrammarBytesMax, &text);
  if (kind == GrammarKind::kLark && IsGbnf(text)) {
    Result<std::string> lark = LarkOfGbnf(text);
    if (!lark.ok())
      return fields->Fail(name,
                          fmt::format("'{}': {}", fields->Path(name), lark.status().message()));
    text = *std::move(lark);
  }
  out->Set(fields->Path(name), kind, std::move(text));
}

// One of several texts, as a grammar.
void ReadChoice(Fields* fields, std::string_view name, OneGrammar* out) {
  const json::value* value = fields->Find(name);
  if (value == nullptr) return;
  const json::array* list = value->if_array();
  const auto fail = [&] {
    fields->Fail(name, fmt::format("'{}' must be a list of 1 to {} strings, none of them empty",
                                   fields->Path(name), kChoicesMax));
  };
  if (list == nullptr || list->empty() || list->size() > kChoicesMax) return fail();
  std::string grammar = "start: ";
  for (const json::value& choice : *list) {
    if (!choice.is_string() || choice.get_string().empty()) return fail();
    if (&choice != &list->front()) grammar += " | ";
    grammar += ToJson(choice);
  }
  out->Set(fields->Path(name), GrammarKind::kLark, std::move(grammar));
}

// The members of a schema with a name, which chats nest in an object and responses do not.
void ReadNamedSchema(Fields* named, OneGrammar* out) {
  std::string name, description;
  bool strict = false;
  named->String("name", kNameBytesMax, &name);
  named->String("description", kGrammarBytesMax, &description);
  named->Bool("strict", &strict);  // a schema is always kept to
  if (named->Find("schema") == nullptr)
    named->Fail("schema", fmt::format("'{}' is missing", named->Path("schema")));
  ReadSchema(named, "schema", /*text_allowed=*/false, out);
}

void ReadResponseFormat(Fields* fields, std::optional<ApiError>* error, OneGrammar* out) {
  const json::object* object = fields->Object("response_format");
  if (object == nullptr) return;
  Fields format(*object, "response_format.", error);
  std::string type;
  format.String("type", kTypeBytesMax, &type);
  if (type == "json_object") {
    out->Set("response_format", GrammarKind::kJsonSchema, kAnyObject);
  } else if (type == "json_schema") {
    const json::object* inner = format.Object("json_schema");
    if (inner == nullptr) {
      return format.Fail("json_schema", "'response_format.json_schema' is missing");
    }
    Fields named(*inner, "response_format.json_schema.", error);
    ReadNamedSchema(&named, out);
    named.RefuseOthers();
  } else if (type != "text") {
    format.Fail("type", "'response_format.type' is none of text, json_object, json_schema");
  }
  format.RefuseOthers();
}

// vLLM's object of the same forms.
void ReadStructuredOutputs(Fields* fields, std::optional<ApiError>* error, OneGrammar* out) {
  const json::object* object = fields->Object("structured_outputs");
  if (object == nullptr) return;
  Fields inner(*object, "structured_outputs.", error);
  ReadSchema(&inner, "json", /*text_allowed=*/true, out);
  ReadText(&inner, "regex", GrammarKind::kRegex, out);
  ReadText(&inner, "grammar", GrammarKind::kLark, out);
  ReadChoice(&inner, "choice", out);
  bool any = false;
  inner.Bool("json_object", &any);
  if (any) out->Set("structured_outputs.json_object", GrammarKind::kJsonSchema, kAnyObject);
  inner.RefuseUnsupported({"structural_tag", "whitespace_pattern", "disable_any_whitespace",
                           "disable_additional_properties", "disable_fallback"});
  inner.RefuseOthers();
}

}  // namespace

std::optional<GrammarSpec> ReadStructured(Fields* fields, std::optional<ApiError>* error) {
  OneGrammar grammar(fields);
  ReadResponseFormat(fields, error, &grammar);
  ReadStructuredOutputs(fields, error, &grammar);
  ReadSchema(fields, "guided_json", /*text_allowed=*/true, &grammar);
  ReadText(fields, "guided_regex", GrammarKind::kRegex, &grammar);
  ReadText(fields, "guided_grammar", GrammarKind::kLark, &grammar);
  ReadChoice(fields, "guided_choice", &grammar);
  return grammar.Take();
}

std::optional<GrammarSpec> ReadTextFormat(Fields* text, std::optional<ApiError>* error) {
  const json::object* object = text->Object("format");
  if (object == nullptr) return std::nullopt;
  OneGrammar grammar(text);
  const std::string path = text->Path("format");
  Fields format(*object, path + ".", error);
  std::string type;
  format.String("type", kTypeBytesMax, &type);
  if (type == "json_object") {
    grammar.Set(path, GrammarKind::kJsonSchema, kAnyObject);
  } else if (type == "json_schema") {
    ReadNamedSchema(&format, &grammar);
  } else if (type != "text") {
    format.Fail("type", fmt::format("'{}.type' is none of text, json_object, json_schema", path));
  }
  format.RefuseOthers();
  return grammar.Take();
}

}  // namespace tinyserve
