// POST /v1/completions.
#include <algorithm>
#include <memory>
#include <utility>

#include "server/generation_reply.h"
#include "server/routes.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

class CompletionForm : public ReplyForm {
 public:
  // `prompts` and `echoes` are of each prompt; answer i is of prompt i / n.
  CompletionForm(const Engine* engine, const CompletionRequest& request,
                 std::vector<std::vector<int32_t>> prompts, std::vector<std::string> echoes)
      : engine_(engine),
        echo_(request.echo),
        n_(request.options.n),
        top_(request.options.engine.top_logprobs),
        prompts_(std::move(prompts)),
        echoes_(std::move(echoes)) {}

  const char* id_prefix() const override { return "cmpl-"; }
  const char* object(bool) const override { return "text_completion"; }

  std::optional<json::object> Opening(AnswerChoice* choice) override {
    if (!echo_) return std::nullopt;
    return json::object{{"index", choice->index},
                        {"text", echoes_[choice->index / n_]},
                        {"logprobs", nullptr},
                        {"finish_reason", nullptr}};
  }

  std::optional<json::object> Choice(AnswerChoice* choice, bool chunk) override {
    const bool echo = echo_ && !chunk;
    json::value logprobs(nullptr);
    if (top_ >= 0) {
      std::vector<ScoredToken> scored;
      if (echo) scored = PromptTokens(*choice);
      scored.insert(scored.end(), choice->scored.begin(), choice->scored.end());
      logprobs = CompletionLogprobs(*engine_, scored, top_ > 0, &choice->text_offset);
    }
    return json::object{{"index", choice->index},
                        {"text", (echo ? echoes_[choice->index / n_] : "") + choice->text},
                        {"logprobs", std::move(logprobs)},
                        {"finish_reason", FinishJson(choice->finish)}};
  }

 private:
  std::vector<ScoredToken> PromptTokens(const AnswerChoice& choice) const {
    const std::vector<int32_t>& prompt = prompts_[choice.index / n_];
    std::vector<ScoredToken> scored;
    for (size_t i = 0; i < prompt.size(); ++i) {
      ScoredToken token{.token = prompt[i], .logprob = std::nullopt, .top = {}};
      if (i > 0 && i - 1 < choice.prompt_logprobs.size())
        token.logprob = choice.prompt_logprobs[i - 1];
      if (i > 0 && i - 1 < choice.prompt_top.size()) token.top = choice.prompt_top[i - 1];
      scored.push_back(std::move(token));
    }
    return scored;
  }

  const Engine* engine_;
  const bool echo_;
  const uint32_t n_;
  const int32_t top_;
  const std::vector<std::vector<int32_t>> prompts_;
  const std::vector<std::string> echoes_;
};

// Token ids of a prompt, and its text where it is to be echoed.
Status ReadPrompt(const Engine& engine, const CompletionRequest& request, const Prompt& prompt,
                  std::vector<int32_t>* tokens, std::string* echo) {
  if (const auto* text = std::get_if<std::string>(&prompt)) {
    TS_ASSIGN_OR_RETURN(*tokens, engine.Tokenize(*text, request.options.add_special,
                                                 /*parse_special=*/true));
    *echo = *text;
    return Status();
  }
  *tokens = std::get<std::vector<int32_t>>(prompt);
  if (request.echo) {
    TS_ASSIGN_OR_RETURN(*echo, engine.Detokenize(*tokens));
  }
  return Status();
}

}  // namespace

HttpReply Complete(const Service& service, const HttpRequest& http) {
  Engine* engine = service.engine();
  if (engine == nullptr) return ErrorReply(Unavailable("the model is still loading"));
  std::optional<ApiError> error;
  std::optional<CompletionRequest> request =
      ParseCompletionRequest(http.body, service.limits(), &error);
  if (!request) return ErrorReply(*error);
  std::vector<std::vector<int32_t>> prompts(request->prompts.size());
  std::vector<std::string> echoes(prompts.size());
  for (size_t i = 0; i < prompts.size(); ++i) {
    const Status read = ReadPrompt(*engine, *request, request->prompts[i], &prompts[i], &echoes[i]);
    if (!read.ok()) return ErrorReply(ErrorOf(read));
  }
  GenerationOptions& options = request->options;
  service.SetOwner(http, options.cache_salt, &options.engine);
  std::unique_ptr<Generation> generation =
      Generation::Start(engine, service.metrics(), options, prompts, &error);
  if (generation == nullptr) return ErrorReply(*error);
  std::vector<uint32_t> prompt_tokens;
  for (uint32_t c = 0; c < generation->choices(); ++c)
    prompt_tokens.push_back(static_cast<uint32_t>(prompts[c / options.n].size()));
  return GenerationHttpReply(
      std::make_unique<GenerationReply>(
          std::move(generation),
          std::make_unique<CompletionForm>(engine, *request, std::move(prompts), std::move(echoes)),
          options, std::move(prompt_tokens), service.options().models.front()),
      options.stream);
}

}  // namespace tinyserve
