#include "server/message_fields.h"

#include <fmt/format.h>

#include <boost/json/array.hpp>
#include <boost/json/parse.hpp>
#include <utility>

#include "server/json_fields.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

constexpr size_t kRoleBytesMax = 64, kIdBytesMax = 256;
constexpr size_t kCallsMax = 128;

// The text of `content`: a string, or parts of type text, joined.
void ReadContent(Fields* message, bool required, std::optional<ApiError>* error, std::string* out) {
  const json::value* value = message->Find("content");
  if (message->failed()) return;
  if (value == nullptr) {
    if (required)
      message->Fail("content", fmt::format("'{}' is missing", message->Path("content")));
    return;
  }
  if (const json::string* text = value->if_string()) {
    *out = {text->data(), text->size()};
    return;
  }
  const json::array* parts = value->if_array();
  if (parts == nullptr) {
    return message->Fail("content", fmt::format("'{}' must be a string or a list of parts",
                                                message->Path("content")));
  }
  for (size_t i = 0; i < parts->size(); ++i) {
    const std::string path = fmt::format("{}[{}]", message->Path("content"), i);
    const json::object* object = (*parts)[i].if_object();
    if (object == nullptr) {
      return message->Fail(BadField(path, fmt::format("'{}' must be an object", path)));
    }
    Fields part(*object, path + ".", error);
    std::string type, text;
    part.String("type", kRoleBytesMax, &type);
    if (type != "text") {
      part.Fail("type",
                fmt::format("'{}.type': this server understands parts of type text alone", path));
    }
    part.String("text", SIZE_MAX, &text);
    if (part.Find("text") == nullptr) part.Fail("text", fmt::format("'{}.text' is missing", path));
    part.RefuseOthers();
    if (part.failed()) return;
    *out += text;
  }
}

// {"id", "type": "function", "function": {"name", "arguments"}}.
std::optional<json::object> ReadCall(const json::value& value, const std::string& path,
                                     uint32_t json_depth_max, std::optional<ApiError>* error) {
  if (!value.is_object()) {
    *error = BadField(path, fmt::format("'{}' must be an object", path));
    return std::nullopt;
  }
  Fields call(value.get_object(), path + ".", error);
  std::string id, type = "function", name, arguments = "{}";
  call.String("id", kIdBytesMax, &id);
  call.String("type", kRoleBytesMax, &type);
  if (type != "function") call.Fail("type", fmt::format("'{}.type' must be function", path));
  const json::object* inner = call.Object("function");
  if (inner == nullptr) {
    call.Fail("function", fmt::format("'{}.function' is missing", path));
    return std::nullopt;
  }
  call.Accept({"index"});  // of a stream's parts
  call.RefuseOthers();
  Fields function(*inner, path + ".function.", error);
  function.String("name", kRoleBytesMax, &name);
  if (name.empty()) function.Fail("name", fmt::format("'{}.function.name' is missing", path));
  function.String("arguments", SIZE_MAX, &arguments);
  function.RefuseOthers();
  std::optional<json::object> parsed = ParseObject(arguments, json_depth_max);
  if (!parsed) {
    function.Fail("arguments", fmt::format("'{}.function.arguments' must be the text of a JSON "
                                           "object, at most {} levels deep",
                                           path, json_depth_max));
  }
  if (function.failed()) return std::nullopt;
  return json::object{{"id", id},
                      {"type", "function"},
                      {"function", {{"name", name}, {"arguments", *std::move(parsed)}}}};
}

std::optional<json::array> ReadCalls(Fields* fields, const json::value& value,
                                     uint32_t json_depth_max, std::optional<ApiError>* error) {
  const json::array* list = value.if_array();
  if (list == nullptr || list->size() > kCallsMax) {
    fields->Fail("tool_calls", fmt::format("'{}' must be a list of at most {} calls",
                                           fields->Path("tool_calls"), kCallsMax));
    return std::nullopt;
  }
  json::array calls;
  for (size_t i = 0; i < list->size(); ++i) {
    std::optional<json::object> call = ReadCall(
        (*list)[i], fmt::format("{}[{}]", fields->Path("tool_calls"), i), json_depth_max, error);
    if (!call) return std::nullopt;
    calls.push_back(*std::move(call));
  }
  return calls;
}

// What an assistant's message has beside its content.
void ReadAssistant(Fields* fields, uint32_t json_depth_max, std::optional<ApiError>* error,
                   json::object* message) {
  for (const char* name : {"reasoning_content", "reasoning"}) {  // the second is vLLM's newer name
    std::string reasoning;
    fields->String(name, SIZE_MAX, &reasoning);
    if (!reasoning.empty()) (*message)["reasoning_content"] = reasoning;
  }
  const json::value* calls = fields->Find("tool_calls");
  if (calls == nullptr) return;
  std::optional<json::array> read = ReadCalls(fields, *calls, json_depth_max, error);
  if (read && !read->empty()) (*message)["tool_calls"] = *std::move(read);
}

// The result of a call.
void ReadResult(Fields* fields, json::object* message) {
  std::string id;
  fields->String("tool_call_id", kIdBytesMax, &id);
  if (id.empty())
    fields->Fail("tool_call_id", fmt::format("'{}' is missing", fields->Path("tool_call_id")));
  (*message)["tool_call_id"] = id;
}

}  // namespace

std::optional<json::object> ParseObject(std::string_view text, uint32_t depth_max) {
  json::parse_options options;
  options.max_depth = depth_max;
  json::error_code failed;
  json::value value = json::parse(json::string_view(text.data(), text.size()), failed, {}, options);
  if (failed || !value.is_object()) return std::nullopt;
  return std::move(value.get_object());
}

std::optional<json::object> ReadMessage(const json::value& value, const std::string& path,
                                        uint32_t json_depth_max, std::optional<ApiError>* error) {
  if (!value.is_object()) {
    *error = BadField(path, fmt::format("'{}' must be an object", path));
    return std::nullopt;
  }
  Fields fields(value.get_object(), path + ".", error);
  std::string role, content;
  fields.String("role", kRoleBytesMax, &role);
  if (role == "developer") role = "system";  // OpenAI's newer name
  const bool assistant = role == "assistant", tool = role == "tool";
  if (!assistant && !tool && role != "system" && role != "user") {
    fields.Fail("role",
                fmt::format("'{}.role' must be system, developer, user, assistant or tool", path));
  }
  json::object message = {{"role", role}, {"content", ""}};
  if (assistant) ReadAssistant(&fields, json_depth_max, error, &message);
  if (tool) ReadResult(&fields, &message);
  std::string name;  // who says it, or of a result what was called
  fields.String("name", kIdBytesMax, &name);
  if (!name.empty()) message["name"] = name;
  ReadContent(&fields, /*required=*/!message.contains("tool_calls"), error, &content);
  message["content"] = content;
  // What answers of this API carry, for those who send them back as they came.
  if (!assistant) fields.RefuseUnlessEmpty({"tool_calls"});
  if (!tool) fields.RefuseUnsupported({"tool_call_id"});
  fields.RefuseUnlessEmpty({"annotations"});
  fields.RefuseUnsupported({"function_call", "audio", "refusal"});
  fields.RefuseOthers();
  if (fields.failed()) return std::nullopt;
  return message;
}

}  // namespace tinyserve
