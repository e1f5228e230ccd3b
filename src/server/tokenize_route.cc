// POST /tokenize, /detokenize and GET /tokenizer_info, with the fields that vLLM gives them.
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <utility>

#include "server/chat_prompt.h"
#include "server/conversation_fields.h"
#include "server/json_fields.h"
#include "server/logprobs_json.h"
#include "server/openai_request.h"
#include "server/routes.h"
#include "text/json_text.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

struct TokenizeRequest {
  std::optional<std::string> prompt;
  Conversation conversation;
  bool add_special = true;
  bool token_texts = false;
};

std::optional<TokenizeRequest> ParseTokenize(std::string_view body, const RequestLimits& limits,
                                             std::optional<ApiError>* error) {
  const std::optional<json::object> object = ParseBody(body, limits.json_depth_max, error);
  if (!object) return std::nullopt;
  Fields fields(*object, "", error);
  TokenizeRequest request;
  ReadModel(&fields, limits);
  fields.Bool("return_token_strs", &request.token_texts);
  if (fields.Find("prompt") != nullptr) {
    request.prompt.emplace();
    fields.String("prompt", SIZE_MAX, &*request.prompt);
    fields.Bool("add_special_tokens", &request.add_special);
  } else {
    ReadConversation(&fields, limits, &request.conversation);
    request.add_special = false;  // the template has written them
    fields.Bool("add_special_tokens", &request.add_special);
    fields.RefuseUnsupported({"chat_template"});
    fields.RefuseUnless("continue_final_message", false);
  }
  fields.RefuseOthers();
  if (fields.failed()) return std::nullopt;
  return request;
}

Result<std::vector<int32_t>> Tokens(const Engine& engine, const AnswerParsers& parsers,
                                    const TokenizeRequest& request) {
  if (request.prompt)
    return engine.Tokenize(*request.prompt, request.add_special, /*parse_special=*/true);
  TS_ASSIGN_OR_RETURN(ChatPrompt prompt,
                      PromptOf(engine, parsers, request.conversation, request.add_special));
  return std::move(prompt.tokens);
}

}  // namespace

HttpReply Tokenize(const Service& service, const HttpRequest& http) {
  const Engine* engine = service.engine();
  if (engine == nullptr) return ErrorReply(Unavailable("the model is still loading"));
  std::optional<ApiError> error;
  const std::optional<TokenizeRequest> request = ParseTokenize(http.body, service.limits(), &error);
  if (!request) return ErrorReply(*error);
  const Result<std::vector<int32_t>> tokens = Tokens(*engine, service.options().parsers, *request);
  if (!tokens.ok()) return ErrorReply(ErrorOf(tokens.status()));
  json::array ids, texts;
  for (const int32_t token : *tokens) {
    ids.push_back(token);
    if (request->token_texts) texts.emplace_back(TokenText(*engine, token));
  }
  HttpReply reply;
  reply.body = ToJson(json::object{
      {"count", tokens->size()},
      {"max_model_len", service.limits().context_tokens},
      {"tokens", std::move(ids)},
      {"token_strs", request->token_texts ? json::value(std::move(texts)) : json::value(nullptr)}});
  return reply;
}

HttpReply Detokenize(const Service& service, const HttpRequest& http) {
  const Engine* engine = service.engine();
  if (engine == nullptr) return ErrorReply(Unavailable("the model is still loading"));
  std::optional<ApiError> error;
  const std::optional<json::object> object =
      ParseBody(http.body, service.limits().json_depth_max, &error);
  if (!object) return ErrorReply(*error);
  Fields fields(*object, "", &error);
  ReadModel(&fields, service.limits());
  const json::value* list = fields.Find("tokens");
  std::vector<int32_t> tokens;
  if (list != nullptr && list->is_array()) {
    tokens = ReadTokens(&fields, "tokens", list->get_array(), service.limits());
  } else {
    fields.Fail("tokens", "'tokens' must be a list of token ids");
  }
  fields.RefuseOthers();
  if (error) return ErrorReply(*error);
  const Result<std::string> text = engine->Detokenize(tokens);
  if (!text.ok()) return ErrorReply(ErrorOf(text.status()));
  HttpReply reply;
  reply.body = ToJson(json::object{{"prompt", *text}});
  return reply;
}

HttpReply DescribeTokenizer(const Service& service, const HttpRequest&) {
  const Engine* engine = service.engine();
  if (engine == nullptr) return ErrorReply(Unavailable("the model is still loading"));
  const TokenizerInfo& info = engine->tokenizer_info();
  const auto token = [](const std::string& text) {
    return text.empty() ? json::value(nullptr) : json::value(text);
  };
  json::array ends;
  for (const int32_t end : info.end_tokens) ends.push_back(end);
  HttpReply reply;
  reply.body = ToJson(json::object{{"tokenizer_class", "TinyServeTokenizer"},
                                   {"bos_token", token(info.bos_token)},
                                   {"eos_token", token(info.eos_token)},
                                   {"pad_token", token(info.eos_token)},
                                   {"add_bos_token", info.add_bos},
                                   {"add_eos_token", info.add_eos},
                                   {"end_token_ids", std::move(ends)},
                                   {"vocab_size", service.limits().vocab},
                                   {"model_max_length", service.limits().context_tokens},
                                   {"chat_template", info.chat_template}});
  return reply;
}

}  // namespace tinyserve
