// The fields of a chat request that make its conversation: messages, tools, the template's
// variables.
#ifndef TINYSERVE_SERVER_CONVERSATION_FIELDS_H_
#define TINYSERVE_SERVER_CONVERSATION_FIELDS_H_

#include "server/chat_conversation.h"
#include "server/json_fields.h"
#include "server/openai_request.h"

namespace tinyserve {

// `messages`, `tools`, `tool_choice`, `parallel_tool_calls`, `chat_template_kwargs`,
// `add_generation_prompt`; those that only older clients know are refused.
void ReadConversation(Fields* fields, const RequestLimits& limits, Conversation* conversation);

// Where a tool, {"type": "function", …}, has its function's name, description, parameters and
// strict: in a member `function`, as in chats, or beside its type, as in responses.
enum class ToolForm : uint8_t { kNested, kFlat };
// `tools`: each name once.
void ReadTools(Fields* fields, ToolForm form, Conversation* conversation);

// `chat_template_kwargs`.
void ReadTemplateVariables(Fields* fields, Conversation* conversation);

// Whether one of the tools has this name.
bool HasTool(const Conversation& conversation, std::string_view name);

// Keeps of `conversation`'s tools what `choice` allows: "none", "auto", "required" or the name of
// one. False: there is no such tool.
bool ChooseTools(std::string_view choice, Conversation* conversation);

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_CONVERSATION_FIELDS_H_
