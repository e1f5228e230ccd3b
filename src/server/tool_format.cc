#include "server/tool_format.h"

#include <fmt/format.h>

#include <utility>

#include "text/json_text.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

constexpr std::string_view kHermesOpener = "<tool_call>", kMistralOpener = "[TOOL_CALLS]";

bool Contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

std::string_view Text(const json::object& object, std::string_view name) {
  const json::value* value = object.if_contains(json::string_view(name.data(), name.size()));
  if (value == nullptr || !value->is_string()) return {};
  return {value->get_string().data(), value->get_string().size()};
}

// A call in the form kHermes.
std::string HermesCall(const json::object& call) {
  return fmt::format("<tool_call>\n{}\n</tool_call>", ToJson(call.at("function")));
}

std::string ToolsPrompt(const std::vector<Tool>& tools) {
  std::string text =
      "You can call functions to answer the user. Their signatures, one a line:\n<tools>\n";
  for (const Tool& tool : tools) text += ToJson(tool.definition) + "\n";
  return text +
         "</tools>\n\nTo call a function, answer with its name and its arguments as JSON:\n"
         "<tool_call>\n{\"name\": \"function-name\", \"arguments\": {\"argument\": \"value\"}}\n"
         "</tool_call>";
}

// Assistants' calls written out in their contents; results become words of the user, which every
// template takes.
json::object WithoutTools(const json::object& message) {
  const std::string_view role = Text(message, "role");
  std::string content(Text(message, "content"));
  if (role == "tool") {
    return {{"role", "user"},
            {"content", fmt::format("<tool_response>\n{}\n</tool_response>", content)}};
  }
  if (const json::value* calls = message.if_contains("tool_calls")) {
    for (const json::value& call : calls->as_array()) {
      if (!content.empty()) content += "\n";
      content += HermesCall(call.as_object());
    }
  }
  json::object plain = {{"role", json::string(role)}, {"content", content}};
  if (const json::value* name = message.if_contains("name")) plain["name"] = *name;
  return plain;
}

}  // namespace

std::optional<ToolFormat> ParseToolFormat(std::string_view name) {
  if (name == "hermes") return ToolFormat::kHermes;
  if (name == "llama3_json") return ToolFormat::kLlama3;
  if (name == "mistral") return ToolFormat::kMistral;
  return std::nullopt;
}

ToolFormat ToolFormatOf(std::string_view chat_template) {
  if (Contains(chat_template, kMistralOpener)) return ToolFormat::kMistral;
  if (Contains(chat_template, kHermesOpener)) return ToolFormat::kHermes;
  const bool llama =
      Contains(chat_template, "<|start_header_id|>") || Contains(chat_template, "<|python_tag|>");
  return llama && TemplateTakesTools(chat_template) ? ToolFormat::kLlama3 : ToolFormat::kHermes;
}

bool TemplateTakesTools(std::string_view chat_template) { return Contains(chat_template, "tools"); }

std::string_view CallOpener(ToolFormat format) {
  switch (format) {
    case ToolFormat::kHermes:
      return kHermesOpener;
    case ToolFormat::kMistral:
      return kMistralOpener;
    case ToolFormat::kLlama3:
      break;
  }
  return "";
}

std::string CallGrammar(ToolFormat format, const std::vector<Tool>& tools, bool parallel) {
  // Before, between and after calls.
  static constexpr struct {
    const char *before, *between, *after, *arguments;
  } kForms[] = {
      {R"("\n")", R"("\n</tool_call>\n<tool_call>\n")", R"("\n</tool_call>")", "arguments"},
      {"", R"("; ")", "", "parameters"},
      {R"("[")", R"(", ")", R"("]")", "arguments"}};
  const auto& form = kForms[static_cast<size_t>(format)];
  const std::string more = parallel ? fmt::format("({} call)*", form.between) : "";
  std::string grammar = fmt::format("start: {} call {} {}\ncall: ", form.before, more, form.after);
  for (size_t i = 0; i < tools.size(); ++i)
    grammar += fmt::format("{}call_{}", i > 0 ? " | " : "", i);
  for (size_t i = 0; i < tools.size(); ++i) {
    json::object schema = tools[i].parameters;
    // As in schemas of whole answers: a small model could go on with white space for ever.
    schema["x-guidance"] = {{"whitespace_pattern", R"(\x20|\n\x20{0,24})"}};
    grammar += fmt::format("\ncall_{0}: {1} args_{0} \"}}\"\nargs_{0}: %json {2}", i,
                           ToJson(json::value(fmt::format(R"({{"name": "{}", "{}": )",
                                                          tools[i].name, form.arguments))),
                           ToJson(schema));
  }
  return grammar;
}

json::array MessagesWithTools(const json::array& messages, const std::vector<Tool>& tools) {
  json::array out;
  if (!tools.empty()) {
    std::string system = ToolsPrompt(tools);
    const json::object& first = messages.front().as_object();
    if (Text(first, "role") == "system")
      system = fmt::format("{}\n\n{}", Text(first, "content"), system);
    out.push_back(json::object{{"role", "system"}, {"content", system}});
  }
  bool results = false;  // the last message was a result: the next one joins it
  for (const json::value& value : messages) {
    const json::object& message = value.as_object();
    const std::string_view role = Text(message, "role");
    if (&value == &messages.front() && role == "system" && !tools.empty()) continue;
    json::object plain = WithoutTools(message);
    if (role == "tool" && results) {
      json::string& before = out.back().as_object()["content"].as_string();
      before += "\n";
      before += plain["content"].as_string();
    } else {
      out.push_back(std::move(plain));
    }
    results = role == "tool";
  }
  return out;
}

}  // namespace tinyserve
