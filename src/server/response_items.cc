#include "server/response_items.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <utility>

#include "server/message_fields.h"
#include "server/reply_id.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

constexpr size_t kWordBytesMax = 64, kIdBytesMax = 256;

// The texts of a list of parts whose types are allowed, joined.
std::string ReadParts(Fields* item, std::string_view name, const json::array& list,
                      std::initializer_list<std::string_view> types,
                      std::optional<ApiError>* error) {
  std::string whole;
  for (size_t i = 0; i < list.size() && !item->failed(); ++i) {
    const std::string path = fmt::format("{}[{}]", item->Path(name), i);
    const json::object* object = list[i].if_object();
    if (object == nullptr) {
      item->Fail(BadField(path, fmt::format("'{}' must be an object", path)));
      break;
    }
    Fields part(*object, path + ".", error);
    std::string type, text;
    part.String("type", kWordBytesMax, &type);
    if (std::find(types.begin(), types.end(), type) == types.end()) {
      std::string allowed;
      for (const std::string_view one : types) allowed += fmt::format(" {}", one);
      part.Fail("type",
                fmt::format("'{}.type' is '{}': understood here are{}", path, type, allowed));
    }
    if (part.Find("text") == nullptr) part.Fail("text", fmt::format("'{}.text' is missing", path));
    part.String("text", SIZE_MAX, &text);
    part.Accept({"annotations", "logprobs"});  // of outputs that come back as they were sent
    part.RefuseOthers();
    whole += text;
  }
  return whole;
}

// A text, or parts. Nothing: it is absent.
std::optional<std::string> ReadText(Fields* item, std::string_view name,
                                    std::initializer_list<std::string_view> types,
                                    std::optional<ApiError>* error) {
  const json::value* value = item->Find(name);
  if (value == nullptr) return std::nullopt;
  if (const json::string* text = value->if_string()) return std::string(text->data(), text->size());
  if (const json::array* list = value->if_array())
    return ReadParts(item, name, *list, types, error);
  item->Fail(name, fmt::format("'{}' must be a string or a list of parts", item->Path(name)));
  return std::nullopt;
}

json::object TextPart(const char* type, const std::string& text) {
  return {{"type", type}, {"text", text}};
}

// Puts items together to messages: what an assistant says and calls between two others is one.
class Messages {
 public:
  explicit Messages(json::array* out) : out_(*out) {}

  void Add(json::object message) { out_.push_back(std::move(message)); }
  void Say(const std::string& text) {
    json::object& message = Assistant(/*silent=*/true);
    message["content"] = text;
  }
  void Reason(const std::string& text) {
    json::object& message = Assistant(/*silent=*/true);
    message["reasoning_content"] = text;
  }
  void Call(json::object call) {
    json::object& message = Assistant(/*silent=*/false);
    json::value& calls = message["tool_calls"];
    if (calls.is_null()) calls = json::array();
    calls.get_array().push_back(std::move(call));
  }

 private:
  // The last message if it is an assistant's, and, where `silent` is asked for, has said nothing
  // yet; else a new one.
  json::object& Assistant(bool silent) {
    const bool open = !out_.empty() && out_.back().at("role") == "assistant" &&
                      !(silent && (out_.back().at("content") != "" ||
                                   out_.back().get_object().contains("tool_calls")));
    if (!open) out_.push_back(json::object{{"role", "assistant"}, {"content", ""}});
    return out_.back().get_object();
  }

  json::array& out_;
};

class ItemReader {
 public:
  ItemReader(const RequestLimits& limits, ResponseRequest* request)
      : limits_(limits), request_(*request), messages_(&request->conversation.messages) {}

  void Read(const json::value& value, const std::string& path, std::optional<ApiError>* error) {
    const json::object* object = value.if_object();
    if (object == nullptr) {
      *error = BadField(path, fmt::format("'{}' must be an object", path));
      return;
    }
    Fields item(*object, path + ".", error);
    std::string type = "message", id;
    item.String("type", kWordBytesMax, &type);
    item.String("id", kIdBytesMax, &id);
    item.Accept({"status"});
    if (type == "message") {
      ReadMessageItem(&item, error, &id);
    } else if (type == "function_call") {
      ReadCall(&item, &id);
    } else if (type == "function_call_output") {
      ReadOutput(&item, error, &id);
    } else if (type == "reasoning") {
      ReadReasoning(&item, error, &id);
    } else {
      item.Fail("type", fmt::format("'{}' is '{}': this server understands items of type message, "
                                    "function_call, function_call_output, reasoning",
                                    item.Path("type"), type));
    }
    item.RefuseOthers();
  }

 private:
  void Keep(std::string* id, const char* prefix, const char* type, json::object rest) {
    if (id->empty()) *id = NewReplyId(prefix);
    rest["id"] = *id;
    rest["type"] = type;
    rest["status"] = "completed";
    request_.input.push_back(std::move(rest));
  }

  void ReadMessageItem(Fields* item, std::optional<ApiError>* error, std::string* id) {
    std::string role;
    item->String("role", kWordBytesMax, &role);
    const bool assistant = role == "assistant";
    if (!assistant && role != "user" && role != "system" && role != "developer") {
      item->Fail("role", fmt::format("'{}' must be user, assistant, system or developer",
                                     item->Path("role")));
    }
    const std::optional<std::string> text =
        ReadText(item, "content", {"input_text", "output_text", "text"}, error);
    if (!text) item->Fail("content", fmt::format("'{}' is missing", item->Path("content")));
    if (item->failed()) return;
    json::object part = TextPart(assistant ? "output_text" : "input_text", *text);
    if (assistant) part["annotations"] = json::array();
    Keep(id, "msg_", "message", {{"role", role}, {"content", json::array{std::move(part)}}});
    if (assistant) {
      messages_.Say(*text);
    } else {
      messages_.Add({{"role", role == "user" ? "user" : "system"}, {"content", *text}});
    }
  }

  void ReadCall(Fields* item, std::string* id) {
    std::string call_id, name, arguments;
    for (const auto& [field, out] : {std::pair("call_id", &call_id), {"name", &name}}) {
      item->String(field, kIdBytesMax, out);
      if (out->empty()) item->Fail(field, fmt::format("'{}' is missing", item->Path(field)));
    }
    item->String("arguments", SIZE_MAX, &arguments);
    std::optional<json::object> parsed = ParseObject(arguments, limits_.json_depth_max);
    if (!parsed) {
      item->Fail("arguments", fmt::format("'{}' must be the text of a JSON object, at most {} "
                                          "levels deep",
                                          item->Path("arguments"), limits_.json_depth_max));
    }
    if (item->failed()) return;
    Keep(id, "fc_", "function_call",
         {{"call_id", call_id}, {"name", name}, {"arguments", arguments}});
    messages_.Call({{"id", call_id},
                    {"type", "function"},
                    {"function", {{"name", name}, {"arguments", *std::move(parsed)}}}});
  }

  void ReadOutput(Fields* item, std::optional<ApiError>* error, std::string* id) {
    std::string call_id;
    item->String("call_id", kIdBytesMax, &call_id);
    if (call_id.empty())
      item->Fail("call_id", fmt::format("'{}' is missing", item->Path("call_id")));
    const std::optional<std::string> text = ReadText(item, "output", {"input_text"}, error);
    if (!text) item->Fail("output", fmt::format("'{}' is missing", item->Path("output")));
    if (item->failed()) return;
    Keep(id, "fco_", "function_call_output", {{"call_id", call_id}, {"output", *text}});
    messages_.Add({{"role", "tool"}, {"tool_call_id", call_id}, {"content", *text}});
  }

  void ReadReasoning(Fields* item, std::optional<ApiError>* error, std::string* id) {
    const std::optional<std::string> text = ReadText(item, "content", {"reasoning_text"}, error);
    item->RefuseUnlessEmpty({"summary"});
    item->RefuseUnsupported({"encrypted_content"});
    if (item->failed()) return;
    json::array content;
    if (text) content.push_back(TextPart("reasoning_text", *text));
    Keep(id, "rs_", "reasoning", {{"summary", json::array()}, {"content", std::move(content)}});
    if (text) messages_.Reason(*text);
  }

  const RequestLimits& limits_;
  ResponseRequest& request_;
  Messages messages_;
};

}  // namespace

void ReadInput(Fields* fields, const RequestLimits& limits, ResponseRequest* request) {
  const json::value* value = fields->Find("input");
  if (value == nullptr) return;
  json::array one;
  const json::array* list = value->if_array();
  if (value->is_string()) {
    one = {json::object{{"role", "user"}, {"content", *value}}};
    list = &one;
  }
  if (list == nullptr) return fields->Fail("input", "'input' must be a string or a list of items");
  if (list->size() > limits.messages_max) {
    return fields->Fail("input", fmt::format("'input' has {} items: at most {} are allowed",
                                             list->size(), limits.messages_max));
  }
  ItemReader reader(limits, request);
  for (size_t i = 0; i < list->size(); ++i) {
    std::optional<ApiError> error;
    reader.Read((*list)[i], fmt::format("input[{}]", i), &error);
    if (error) return fields->Fail(*std::move(error));
  }
}

json::array MessagesOfOutput(const json::array& output, uint32_t json_depth_max) {
  json::array list;
  Messages messages(&list);
  std::string text;
  for (const json::value& item : output) {
    if (item.at("type") == "function_call") {
      std::optional<json::object> arguments =
          ParseObject(item.at("arguments").as_string(), json_depth_max);
      if (!arguments) continue;
      messages.Call({{"id", item.at("call_id")},
                     {"type", "function"},
                     {"function", {{"name", item.at("name")}, {"arguments", *arguments}}}});
      continue;
    }
    std::string said;
    for (const json::value& part : item.at("content").as_array())
      said += std::string_view(part.at("text").as_string());
    if (item.at("type") == "reasoning") {
      messages.Reason(said);
    } else {
      messages.Say(said);
    }
  }
  return list;
}

}  // namespace tinyserve
