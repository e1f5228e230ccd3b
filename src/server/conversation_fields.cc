#include "server/conversation_fields.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "server/message_fields.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

constexpr size_t kToolsMax = 128, kNameBytesMax = 64, kWordBytesMax = 64;

bool IsToolName(std::string_view name) {
  return !name.empty() && name.size() <= kNameBytesMax &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                  c == '_' || c == '-';
         });
}

void ReadMessages(Fields* fields, const RequestLimits& limits, json::array* messages) {
  const json::value* value = fields->Find("messages");
  if (fields->failed()) return;
  const json::array* list = value != nullptr ? value->if_array() : nullptr;
  if (list == nullptr || list->empty())
    return fields->Fail("messages", "'messages' must be a list of at least one message");
  if (list->size() > limits.messages_max) {
    return fields->Fail("messages", fmt::format("'messages' has {} messages: at most {} are "
                                                "allowed",
                                                list->size(), limits.messages_max));
  }
  for (size_t i = 0; i < list->size(); ++i) {
    std::optional<ApiError> error;
    std::optional<json::object> message =
        ReadMessage((*list)[i], fmt::format("messages[{}]", i), limits.json_depth_max, &error);
    if (!message) return fields->Fail(*std::move(error));
    messages->push_back(*std::move(message));
  }
}

// The members of a function's object.
std::optional<Tool> ReadFunction(Fields* function) {
  Tool tool;
  std::string description;
  bool strict = false;
  function->String("name", kNameBytesMax, &tool.name);
  if (!function->failed() && !IsToolName(tool.name)) {
    function->Fail("name", fmt::format("'{}' must be 1 to {} letters, digits, _ or -",
                                       function->Path("name"), kNameBytesMax));
  }
  function->String("description", SIZE_MAX, &description);
  function->Bool("strict", &strict);
  if (const json::object* parameters = function->Object("parameters"))
    tool.parameters = *parameters;
  if (tool.parameters.empty())
    tool.parameters = {{"type", "object"}, {"properties", json::object()}};
  if (function->failed()) return std::nullopt;
  json::object shown = {{"name", tool.name}};
  if (!description.empty()) shown["description"] = description;
  shown["parameters"] = tool.parameters;
  tool.definition = {{"type", "function"}, {"function", std::move(shown)}};
  return tool;
}

// One tool at `path`. Nothing: `*error` says why.
std::optional<Tool> ReadTool(const json::value& value, const std::string& path, ToolForm form,
                             std::optional<ApiError>* error) {
  if (!value.is_object()) {
    *error = BadField(path, fmt::format("'{}' must be an object", path));
    return std::nullopt;
  }
  Fields fields(value.get_object(), path + ".", error);
  std::string type;
  fields.String("type", kWordBytesMax, &type);
  if (type != "function")
    fields.Fail("type", fmt::format("'{}.type' must be function: others are not supported", path));
  if (form == ToolForm::kFlat) {
    std::optional<Tool> tool = ReadFunction(&fields);
    fields.RefuseOthers();
    return fields.failed() ? std::nullopt : std::move(tool);
  }
  const json::object* inner = fields.Object("function");
  if (inner == nullptr) {
    fields.Fail("function", fmt::format("'{}.function' is missing", path));
    return std::nullopt;
  }
  fields.RefuseOthers();
  Fields function(*inner, path + ".function.", error);
  std::optional<Tool> tool = ReadFunction(&function);
  function.RefuseOthers();
  return function.failed() ? std::nullopt : std::move(tool);
}

// "none", "auto", "required", or {"type": "function", "function": {"name"}}.
void ReadChoice(Fields* fields, Conversation* conversation) {
  const json::value* value = fields->Find("tool_choice");
  if (value == nullptr) return;
  std::optional<ApiError> error;
  std::string choice;
  if (const json::object* object = value->if_object()) {
    Fields named(*object, "tool_choice.", &error);
    std::string type;
    named.String("type", kWordBytesMax, &type);
    if (type != "function")
      named.Fail("type", "'tool_choice.type' must be function: others are not supported");
    const json::object* inner = named.Object("function");
    if (inner == nullptr) {
      named.Fail("function", "'tool_choice.function' is missing");
    } else {
      named.RefuseOthers();
      Fields function(*inner, "tool_choice.function.", &error);
      function.String("name", kNameBytesMax, &choice);
      function.RefuseOthers();
      if (!IsToolName(choice)) function.Fail("name", "'tool_choice.function.name' names no tool");
    }
    if (error) return fields->Fail(*std::move(error));
    if (!HasTool(*conversation, choice)) {
      return fields->Fail("tool_choice", fmt::format("'tool_choice' names '{}', which is none of "
                                                     "'tools'",
                                                     choice));
    }
  } else if (*value == "none" || *value == "auto" || *value == "required") {
    choice = std::string(value->get_string().data(), value->get_string().size());
  } else {
    return fields->Fail("tool_choice",
                        "'tool_choice' must be none, auto, required or {\"type\": \"function\", "
                        "\"function\": {\"name\": …}}");
  }
  if (!ChooseTools(choice, conversation))
    fields->Fail("tool_choice", "'tool_choice' is required, and 'tools' has none");
}

}  // namespace

bool HasTool(const Conversation& conversation, std::string_view name) {
  return std::any_of(conversation.tools.begin(), conversation.tools.end(),
                     [&](const Tool& tool) { return tool.name == name; });
}

bool ChooseTools(std::string_view choice, Conversation* conversation) {
  std::vector<Tool>& tools = conversation->tools;
  if (choice == "none" || choice == "auto") {
    conversation->tool_use = choice == "none" ? ToolUse::kNone : ToolUse::kAuto;
    return true;
  }
  conversation->tool_use = ToolUse::kRequired;
  if (choice != "required") {
    std::erase_if(tools, [&](const Tool& tool) { return tool.name != choice; });
    conversation->parallel_calls = false;
  }
  return !tools.empty();
}

void ReadTools(Fields* fields, ToolForm form, Conversation* conversation) {
  const json::value* value = fields->Find("tools");
  if (value == nullptr) return;
  const json::array* list = value->if_array();
  if (list == nullptr || list->size() > kToolsMax) {
    return fields->Fail("tools",
                        fmt::format("'tools' must be a list of at most {} tools", kToolsMax));
  }
  for (size_t i = 0; i < list->size(); ++i) {
    std::optional<ApiError> error;
    const std::string path = fmt::format("tools[{}]", i);
    std::optional<Tool> tool = ReadTool((*list)[i], path, form, &error);
    if (!tool) return fields->Fail(*std::move(error));
    if (HasTool(*conversation, tool->name)) {
      const char* name = form == ToolForm::kNested ? ".function.name" : ".name";
      return fields->Fail(
          BadField(path + name, fmt::format("there are two tools '{}'", tool->name)));
    }
    conversation->tools.push_back(*std::move(tool));
  }
}

void ReadConversation(Fields* fields, const RequestLimits& limits, Conversation* conversation) {
  ReadMessages(fields, limits, &conversation->messages);
  ReadTools(fields, ToolForm::kNested, conversation);
  fields->Bool("parallel_tool_calls", &conversation->parallel_calls);
  ReadChoice(fields, conversation);
  fields->Bool("add_generation_prompt", &conversation->add_generation_prompt);
  ReadTemplateVariables(fields, conversation);
  fields->RefuseUnlessEmpty({"functions"});
}

void ReadTemplateVariables(Fields* fields, Conversation* conversation) {
  if (const json::object* variables = fields->Object("chat_template_kwargs")) {
    for (const char* own : {"messages", "tools", "add_generation_prompt"}) {
      if (!variables->contains(own)) continue;
      fields->Fail(
          BadField(fmt::format("chat_template_kwargs.{}", own),
                   fmt::format("'chat_template_kwargs.{}': use the field '{}' instead", own, own)));
    }
    conversation->variables = *variables;
  }
}

}  // namespace tinyserve
