// Chat templates: a model's own Jinja source, rendered in a sandbox (no files, bounded steps and
// output).
#ifndef TINYSERVE_TEXT_CHAT_TEMPLATE_H_
#define TINYSERVE_TEXT_CHAT_TEMPLATE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tinyserve/status.h"

namespace tinyserve {

struct ChatMessage {
  std::string role;  // "system", "user", "assistant", "tool"
  std::string content;
};

struct TemplateLimits {
  uint64_t steps_max = 1'000'000;  // interpreter instructions
  uint64_t output_bytes_max = 16 << 20;
};

class ChatTemplate {
 public:
  // Errors: kCorrupt with the template's line where it does not parse.
  static Result<std::unique_ptr<ChatTemplate>> Create(const std::string& source,
                                                      const std::string& bos_token,
                                                      const std::string& eos_token,
                                                      const TemplateLimits& limits = {});
  virtual ~ChatTemplate() = default;

  // Renders messages to the prompt's text. `extra_json`: a JSON object of further variables ("" for
  // none): tools, documents, enable_thinking ... Errors: kInvalidArgument (raise_exception, with
  // its message), kResourceExhausted (limits), kCorrupt.
  virtual Result<std::string> Render(const std::vector<ChatMessage>& messages,
                                     bool add_generation_prompt,
                                     const std::string& extra_json) const = 0;
  // The same with messages as a JSON array (tool calls, content parts).
  virtual Result<std::string> RenderJson(const std::string& messages_json,
                                         bool add_generation_prompt,
                                         const std::string& extra_json) const = 0;
};

// The template used where a model file carries none (ChatML).
const char* DefaultChatTemplate();

}  // namespace tinyserve

#endif  // TINYSERVE_TEXT_CHAT_TEMPLATE_H_
