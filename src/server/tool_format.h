// How a model's family writes calls of tools, and how it is told of tools where its chat template
// knows none.
#ifndef TINYSERVE_SERVER_TOOL_FORMAT_H_
#define TINYSERVE_SERVER_TOOL_FORMAT_H_

#include <boost/json/array.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/chat_conversation.h"

namespace tinyserve {

enum class ToolFormat : uint8_t {
  kHermes,   // <tool_call>{"name": …, "arguments": {…}}</tool_call>, or a list of such objects:
             // Hermes, Qwen, SmolLM2
  kLlama3,   // {"name": …, "parameters": {…}}; another after "; "
  kMistral,  // [TOOL_CALLS][{"name": …, "arguments": {…}}, …]
};

// How answers are read; nothing: as the chat template tells.
struct AnswerParsers {
  std::optional<ToolFormat> tools;
  std::optional<bool> reasoning;  // whether <think>…</think> at the beginning is reasoning
};

// "hermes", "llama3_json", "mistral", as vLLM names them. Nothing: there is no such format.
std::optional<ToolFormat> ParseToolFormat(std::string_view name);
// That of the family for which a chat template was written; kHermes where it does not tell.
ToolFormat ToolFormatOf(std::string_view chat_template);
// Whether a chat template takes tools, and their calls in messages.
bool TemplateTakesTools(std::string_view chat_template);

// What stands before a format's calls; "": nothing.
std::string_view CallOpener(ToolFormat format);

// A Lark grammar of one or more calls of `tools`, as they follow CallOpener; exactly one where not
// `parallel`. Arguments keep to the tools' schemas.
std::string CallGrammar(ToolFormat format, const std::vector<Tool>& tools, bool parallel);

// For a template that does not take tools: they and the calls become part of the messages' text, in
// the form kHermes.
boost::json::array MessagesWithTools(const boost::json::array& messages,
                                     const std::vector<Tool>& tools);

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_TOOL_FORMAT_H_
