#include <fmt/format.h>

#include <boost/json/array.hpp>
#include <utility>

#include "server/conversation_fields.h"
#include "server/generation_fields.h"
#include "server/openai_request.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

void ReadLogprobs(Fields* fields, ChatRequest* request) {
  bool wanted = false;
  fields->Bool("logprobs", &wanted);
  if (wanted) request->options.engine.top_logprobs = 0;
  if (fields->Find("top_logprobs") == nullptr) return;
  uint32_t top = 0;
  fields->Count("top_logprobs", 0, kTopLogprobsMax, &top);
  if (!wanted) {
    return fields->Fail("top_logprobs", "'top_logprobs' is allowed with 'logprobs': true alone");
  }
  request->options.engine.top_logprobs = static_cast<int32_t>(top);
}

void ReadMaxTokens(Fields* fields, const RequestLimits& limits, GenerationOptions* options) {
  for (const char* name : {"max_completion_tokens", "max_tokens"}) {
    if (fields->Find(name) == nullptr) continue;
    uint32_t tokens = 0;
    fields->Count(name, 1, limits.context_tokens, &tokens);
    if (options->max_tokens && *options->max_tokens != tokens) {
      fields->Fail(name, "'max_tokens' and 'max_completion_tokens' differ: give one of them");
    }
    options->max_tokens = tokens;
  }
}

}  // namespace

void ReadModel(Fields* fields, const RequestLimits& limits) {
  constexpr size_t kModelBytesMax = 1024;
  std::string model;
  fields->String("model", kModelBytesMax, &model);
  if (model.empty()) return;
  for (const std::string& served : limits.models) {
    if (model == served) return;
  }
  fields->Fail({.status = 404,
                .message = fmt::format("the model '{}' is not served here; '{}' is", model,
                                       limits.models.empty() ? "" : limits.models.front()),
                .type = "invalid_request_error",
                .param = "model",
                .code = "model_not_found"});
}

std::vector<int32_t> ReadTokens(Fields* fields, std::string_view name, const json::array& value,
                                const RequestLimits& limits) {
  std::vector<int32_t> tokens;
  if (value.size() > limits.context_tokens) {
    fields->Fail({.status = 400,
                  .message = fmt::format("'{}' has {} tokens: the context holds {}", name,
                                         value.size(), limits.context_tokens),
                  .type = "invalid_request_error",
                  .param = fields->Path(name),
                  .code = "context_length_exceeded"});
    return tokens;
  }
  tokens.reserve(value.size());
  for (const json::value& element : value) {
    const std::optional<int64_t> token = WholeNumber(element, 0, int64_t{limits.vocab} - 1);
    if (!token) {
      fields->Fail(name, fmt::format("'{}' holds what is no token id: 0 to {} are expected",
                                     fields->Path(name), int64_t{limits.vocab} - 1));
      return tokens;
    }
    tokens.push_back(static_cast<int32_t>(*token));
  }
  return tokens;
}

std::optional<ChatRequest> ParseChatRequest(std::string_view body, const RequestLimits& limits,
                                            std::optional<ApiError>* error) {
  const std::optional<json::object> object = ParseBody(body, limits.json_depth_max, error);
  if (!object) return std::nullopt;
  Fields fields(*object, "", error);
  ChatRequest request;
  ReadGenerationFields(&fields, limits, &request.options);
  ReadConversation(&fields, limits, &request.conversation);
  ReadLogprobs(&fields, &request);
  ReadMaxTokens(&fields, limits, &request.options);
  if (request.options.grammar && request.conversation.calls()) {
    fields.Fail("tools", fmt::format("'{}' says what the answer must be, so that it can call no "
                                     "tools: leave it out, or set 'tool_choice' to none",
                                     request.options.grammar->field));
  }
  fields.RefuseUnsupported(
      {"audio", "prediction", "web_search_options", "reasoning_effort", "chat_template"});
  fields.RefuseUnless("verbosity", "medium");
  fields.RefuseUnless("function_call", "none");
  fields.RefuseUnless("continue_final_message", false);
  fields.RefuseUnless("echo", false);
  fields.RefuseOthers();
  if (fields.failed()) return std::nullopt;
  return request;
}

}  // namespace tinyserve
