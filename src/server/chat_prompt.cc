#include "server/chat_prompt.h"

#include <utility>

#include "text/json_text.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

bool EndsInThink(std::string_view text) {
  const size_t end = text.find_last_not_of(" \t\r\n");
  return end != std::string_view::npos && text.substr(0, end + 1).ends_with("<think>");
}

bool HasHistoryOfTools(const json::array& messages) {
  for (const json::value& message : messages) {
    if (message.at("role") == "tool" || message.as_object().contains("tool_calls")) return true;
  }
  return false;
}

Result<std::string> Render(const Engine& engine, const Conversation& conversation) {
  const bool told = conversation.calls();
  json::object variables = conversation.variables;
  json::array written;
  const json::array* messages = &conversation.messages;
  if (TemplateTakesTools(engine.tokenizer_info().chat_template)) {
    json::array tools;
    if (told) {
      for (const Tool& tool : conversation.tools) tools.push_back(tool.definition);
      variables["tools"] = std::move(tools);
    }
  } else if (told || HasHistoryOfTools(*messages)) {
    written = MessagesWithTools(*messages, told ? conversation.tools : std::vector<Tool>());
    messages = &written;
  }
  return engine.RenderConversation(ToJson(*messages), conversation.add_generation_prompt,
                                   ToJson(variables));
}

}  // namespace

Result<ChatPrompt> PromptOf(const Engine& engine, const AnswerParsers& parsers,
                            const Conversation& conversation, bool add_special) {
  const std::string_view source = engine.tokenizer_info().chat_template;
  TS_ASSIGN_OR_RETURN(std::string text, Render(engine, conversation));
  ChatPrompt prompt;
  prompt.form.reasoning =
      parsers.reasoning.value_or(source.find("</think>") != std::string_view::npos);
  prompt.form.in_reasoning = prompt.form.reasoning && EndsInThink(text);
  if (conversation.calls()) {
    const ToolFormat format = parsers.tools.value_or(ToolFormatOf(source));
    prompt.form.tools = format;
    prompt.form.parallel_calls = conversation.parallel_calls;
    for (const Tool& tool : conversation.tools) prompt.form.tool_names.push_back(tool.name);
    if (conversation.tool_use == ToolUse::kRequired) {
      text += CallOpener(format);
      prompt.form.in_call = true;
      prompt.grammar = {
          .kind = GrammarKind::kLark,
          .text = CallGrammar(format, conversation.tools, conversation.parallel_calls),
          .field = "tools"};
    }
  }
  TS_ASSIGN_OR_RETURN(prompt.tokens, engine.Tokenize(text, add_special, /*parse_special=*/true));
  return prompt;
}

void Apply(const ChatPrompt& prompt, GenerationOptions* options) {
  // Markers may be control tokens.
  if (!prompt.form.plain()) options->engine.spell_control = true;
  if (prompt.grammar) options->grammar = prompt.grammar;
}

}  // namespace tinyserve
