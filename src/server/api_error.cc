#include "server/api_error.h"

#include <boost/json/object.hpp>
#include <string_view>
#include <utility>

#include "text/json_text.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

json::value StringOrNull(const std::string& text) {
  return text.empty() ? json::value(nullptr) : json::value(text);
}

// Fields that the engine names at the head of its messages, and what requests call them.
struct FieldName {
  std::string_view engine, request;
};
constexpr FieldName kFields[] = {{"prompt", "prompt"},
                                 {"max_tokens", "max_tokens"},
                                 {"min_tokens", "min_tokens"},
                                 {"temperature", "temperature"},
                                 {"top_k", "top_k"},
                                 {"top_p", "top_p"},
                                 {"min_p", "min_p"},
                                 {"repetition_penalty", "repetition_penalty"},
                                 {"presence_penalty", "presence_penalty"},
                                 {"frequency_penalty", "frequency_penalty"},
                                 {"logit_bias", "logit_bias"},
                                 {"top_logprobs", "top_logprobs"},
                                 {"stop_tokens", "stop_token_ids"},
                                 {"stop", "stop"},
                                 {"selector", "tinyserve.selector"},
                                 {"step_plugins", "tinyserve.step_plugins"}};

}  // namespace

std::string ErrorJson(const ApiError& error) {
  return ToJson(json::object{{"error",
                              {{"message", error.message},
                               {"type", error.type},
                               {"param", StringOrNull(error.param)},
                               {"code", StringOrNull(error.code)}}}});
}

HttpReply ErrorReply(const ApiError& error) {
  HttpReply reply;
  reply.status = error.status;
  reply.body = ErrorJson(error);
  if (error.status == 429 || error.status == 503) reply.headers = {{"Retry-After", "1"}};
  if (error.status == 401) reply.headers = {{"WWW-Authenticate", "Bearer"}};
  return reply;
}

ApiError ErrorOf(const Status& status) {
  ApiError error;
  error.message = status.message();
  switch (status.code()) {
    case Code::kInvalidArgument:
    case Code::kUnsupported:
    case Code::kNotFound:
      for (const FieldName& field : kFields) {
        const std::string_view rest =
            std::string_view(error.message).substr(0, field.engine.size());
        const bool whole =
            error.message.size() > field.engine.size() && error.message[field.engine.size()] == ' ';
        if (rest == field.engine && whole) error.param = field.request;
      }
      return error;
    case Code::kResourceExhausted:
      error.status = 429;
      error.type = "rate_limit_error";
      error.code = "queue_full";
      return error;
    default:
      error.status = 500;
      error.type = "server_error";
      return error;
  }
}

ApiError BadField(std::string param, std::string message) {
  ApiError error;
  error.message = std::move(message);
  error.param = std::move(param);
  return error;
}

ApiError Unavailable(std::string message) {
  return {.status = 503,
          .message = std::move(message),
          .type = "server_error",
          .param = "",
          .code = "unavailable"};
}

}  // namespace tinyserve
