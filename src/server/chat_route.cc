// POST /v1/chat/completions.
#include <memory>
#include <utility>

#include "server/chat_answer.h"
#include "server/chat_prompt.h"
#include "server/generation_reply.h"
#include "server/routes.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

class ChatForm : public ReplyForm {
 public:
  ChatForm(const Engine* engine, const AnswerForm& form, uint32_t choices, bool scored)
      : engine_(engine), scored_(scored) {
    for (uint32_t i = 0; i < choices; ++i) answers_.emplace_back(form);
  }

  const char* id_prefix() const override { return "chatcmpl-"; }
  const char* object(bool chunk) const override {
    return chunk ? "chat.completion.chunk" : "chat.completion";
  }

  std::optional<json::object> Opening(AnswerChoice* choice) override {
    return json::object{{"index", choice->index},
                        {"delta", {{"role", "assistant"}, {"content", ""}}},
                        {"logprobs", nullptr},
                        {"finish_reason", nullptr}};
  }

  std::optional<json::object> Choice(AnswerChoice* choice, bool chunk) override {
    ChatAnswer& answer = answers_[choice->index];
    const bool finished = choice->finish != FinishReason::kNone;
    json::object said = answer.Delta(choice->text, finished);
    if (chunk && said.empty() && !finished) return std::nullopt;
    if (!chunk) said = WholeMessage(std::move(said));
    const bool logprobs = scored_ && (!chunk || !choice->scored.empty());
    return json::object{{"index", choice->index},
                        {chunk ? "delta" : "message", std::move(said)},
                        {"logprobs", logprobs ? json::value(ChatLogprobs(*engine_, choice->scored))
                                              : json::value(nullptr)},
                        {"finish_reason", answer.called() && choice->finish == FinishReason::kStop
                                              ? json::value("tool_calls")
                                              : FinishJson(choice->finish)}};
  }

 private:
  const Engine* engine_;
  std::vector<ChatAnswer> answers_;  // by choice
  const bool scored_;
};

}  // namespace

HttpReply Chat(const Service& service, const HttpRequest& http) {
  Engine* engine = service.engine();
  if (engine == nullptr) return ErrorReply(Unavailable("the model is still loading"));
  std::optional<ApiError> error;
  std::optional<ChatRequest> request = ParseChatRequest(http.body, service.limits(), &error);
  if (!request) return ErrorReply(*error);
  Result<ChatPrompt> prompt = PromptOf(*engine, service.options().parsers, request->conversation,
                                       request->options.add_special);
  if (!prompt.ok()) {
    ApiError refused = ErrorOf(prompt.status());
    if (refused.param.empty()) refused.param = "messages";
    return ErrorReply(refused);
  }
  GenerationOptions& options = request->options;
  Apply(*prompt, &options);
  service.SetOwner(http, options.cache_salt, &options.engine);
  const auto prompt_tokens = static_cast<uint32_t>(prompt->tokens.size());
  std::unique_ptr<Generation> generation =
      Generation::Start(engine, service.metrics(), options, {std::move(prompt->tokens)}, &error);
  if (generation == nullptr) {
    if (error->param == "prompt") error->param = "messages";
    return ErrorReply(*error);
  }
  const std::vector<uint32_t> each(generation->choices(), prompt_tokens);
  auto form = std::make_unique<ChatForm>(engine, prompt->form, generation->choices(),
                                         options.engine.top_logprobs >= 0);
  return GenerationHttpReply(
      std::make_unique<GenerationReply>(std::move(generation), std::move(form), options, each,
                                        service.options().models.front()),
      options.stream);
}

}  // namespace tinyserve
