// What a conversation is for the model: the prompt's tokens, and how its answer is to be read.
#ifndef TINYSERVE_SERVER_CHAT_PROMPT_H_
#define TINYSERVE_SERVER_CHAT_PROMPT_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "server/answer_parser.h"
#include "server/chat_conversation.h"
#include "server/openai_request.h"
#include "tinyserve/engine.h"

namespace tinyserve {

struct ChatPrompt {
  std::vector<int32_t> tokens;
  AnswerForm form;
  // Where the answer must be calls.
  std::optional<GrammarSpec> grammar;
};

// Errors: the chat template's, kInvalidArgument.
Result<ChatPrompt> PromptOf(const Engine& engine, const AnswerParsers& parsers,
                            const Conversation& conversation, bool add_special);

// What a chat request asks of the engine, with its prompt's part.
void Apply(const ChatPrompt& prompt, GenerationOptions* options);

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_CHAT_PROMPT_H_
