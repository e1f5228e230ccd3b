// A conversation that must fit the context.
#ifndef TINYSERVE_TOOLS_CONVERSATION_H_
#define TINYSERVE_TOOLS_CONVERSATION_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tinyserve/engine.h"

namespace tinyserve {

// What happens when a conversation outgrows the context.
enum class FullPolicy : uint8_t {
  kDrop,    // the oldest turns are forgotten, the system message stays
  kRefuse,  // the new message is refused
};

class BoundedConversation {
 public:
  // The prompt of `messages` in tokens.
  using Render = std::function<Result<std::vector<int32_t>>(const std::vector<Message>& messages)>;

  struct Fitted {
    std::vector<int32_t> prompt;
    uint32_t answer_tokens_max;  // that still fit behind it
    uint32_t dropped_turns;      // forgotten to make room: a question with its answer is one
  };

  // `system` may be empty. `answer_room_tokens`: room that a prompt must leave for the answer.
  BoundedConversation(std::string system, uint32_t context_tokens, uint32_t answer_room_tokens,
                      FullPolicy policy);

  // Adds a question and makes the prompt that asks it. Errors: kResourceExhausted (it does not fit,
  // even after what the policy allows; the conversation stays as it was), Render's own.
  Result<Fitted> Ask(const std::string& question, const Render& render);
  // Adds what the model said to the last question.
  void Answer(std::string text) { messages_.push_back({"assistant", std::move(text)}); }
  // Takes the last question back, as if it had not been asked.
  void TakeBack();
  void Reset();

  const std::vector<Message>& messages() const { return messages_; }
  uint32_t turns() const;

 private:
  size_t first_turn() const { return has_system_ ? 1 : 0; }

  bool has_system_;
  uint32_t context_tokens_, answer_room_tokens_;
  FullPolicy policy_;
  std::vector<Message> messages_;
};

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_CONVERSATION_H_
