#include "text/chat_template.h"

#include <fmt/format.h>

#include <ctime>

#include "text/rust_text.h"
#include "text/utf8.h"

namespace tinyserve {
namespace {

void AppendJsonString(std::string_view text, std::string* out) {
  out->push_back('"');
  for (const char c : ReplaceInvalidUtf8(text)) {
    if (c == '"' || c == '\\') {
      out->push_back('\\');
      out->push_back(c);
    } else if (static_cast<unsigned char>(c) < 0x20) {
      fmt::format_to(std::back_inserter(*out), "\\u{:04x}", static_cast<unsigned>(c));
    } else {
      out->push_back(c);
    }
  }
  out->push_back('"');
}

class JinjaTemplate : public ChatTemplate {
 public:
  explicit JinjaTemplate(RustTemplate tmpl) : template_(std::move(tmpl)) {}

  Result<std::string> Render(const std::vector<ChatMessage>& messages, bool add_generation_prompt,
                             const std::string& extra_json) const override {
    std::string json = "[";
    for (const ChatMessage& message : messages) {
      if (json.size() > 1) json.push_back(',');
      json += "{\"role\":";
      AppendJsonString(message.role, &json);
      json += ",\"content\":";
      AppendJsonString(message.content, &json);
      json.push_back('}');
    }
    json.push_back(']');
    return RenderJson(json, add_generation_prompt, extra_json);
  }

  Result<std::string> RenderJson(const std::string& messages_json, bool add_generation_prompt,
                                 const std::string& extra_json) const override {
    const std::time_t seconds = std::time(nullptr);
    std::tm now = {};
    localtime_r(&seconds, &now);
    return RustRender(*template_, messages_json, extra_json, add_generation_prompt, now);
  }

 private:
  RustTemplate template_;
};

}  // namespace

Result<std::unique_ptr<ChatTemplate>> ChatTemplate::Create(const std::string& source,
                                                           const std::string& bos_token,
                                                           const std::string& eos_token,
                                                           const TemplateLimits& limits) {
  TS_ASSIGN_OR_RETURN(
      RustTemplate tmpl,
      NewRustTemplate(source, bos_token, eos_token, limits.steps_max, limits.output_bytes_max));
  return std::unique_ptr<ChatTemplate>(std::make_unique<JinjaTemplate>(std::move(tmpl)));
}

const char* DefaultChatTemplate() {
  return "{% for message in messages %}"
         "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
         "{% endfor %}"
         "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
}

}  // namespace tinyserve
