// POST /v1/chat/completions.
#include <memory>
#include <utility>

#include "server/generation_reply.h"
#include "server/routes.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

class ChatForm : public ReplyForm {
 public:
  ChatForm(const Engine* engine, bool scored) : engine_(engine), scored_(scored) {}

  const char* id_prefix() const override { return "chatcmpl-"; }
  const char* object(bool chunk) const override {
    return chunk ? "chat.completion.chunk" : "chat.completion";
  }

  std::optional<json::object> Opening(AnswerChoice* choice) const override {
    return json::object{{"index", choice->index},
                        {"delta", {{"role", "assistant"}, {"content", ""}}},
                        {"logprobs", nullptr},
                        {"finish_reason", nullptr}};
  }

  json::object Choice(AnswerChoice* choice, bool chunk) const override {
    json::object said;
    if (!chunk) said = {{"role", "assistant"}, {"content", choice->text}, {"refusal", nullptr}};
    if (chunk && !choice->text.empty()) said = {{"content", choice->text}};
    const bool logprobs = scored_ && (!chunk || !choice->scored.empty());
    return {{"index", choice->index},
            {chunk ? "delta" : "message", std::move(said)},
            {"logprobs",
             logprobs ? json::value(ChatLogprobs(*engine_, choice->scored)) : json::value(nullptr)},
            {"finish_reason", FinishJson(choice->finish)}};
  }

 private:
  const Engine* engine_;
  const bool scored_;
};

}  // namespace

HttpReply Chat(const Service& service, const HttpRequest& http) {
  Engine* engine = service.engine();
  if (engine == nullptr) return ErrorReply(Unavailable("the model is still loading"));
  std::optional<ApiError> error;
  std::optional<ChatRequest> request = ParseChatRequest(http.body, service.limits(), &error);
  if (!request) return ErrorReply(*error);
  Result<std::vector<int32_t>> prompt = ChatTokens(
      *engine, request->messages, request->add_generation_prompt, request->options.add_special);
  if (!prompt.ok()) {
    ApiError refused = ErrorOf(prompt.status());
    if (refused.param.empty()) refused.param = "messages";
    return ErrorReply(refused);
  }
  GenerationOptions& options = request->options;
  options.engine.salt = service.SaltOf(http);
  const auto prompt_tokens = static_cast<uint32_t>(prompt->size());
  std::unique_ptr<Generation> generation =
      Generation::Start(engine, service.metrics(), options, {*std::move(prompt)}, &error);
  if (generation == nullptr) {
    if (error->param == "prompt") error->param = "messages";
    return ErrorReply(*error);
  }
  const std::vector<uint32_t> each(generation->choices(), prompt_tokens);
  return GenerationHttpReply(
      std::make_unique<GenerationReply>(
          std::move(generation),
          std::make_unique<ChatForm>(engine, options.engine.top_logprobs >= 0), options, each,
          service.options().models.front()),
      options.stream);
}

}  // namespace tinyserve
