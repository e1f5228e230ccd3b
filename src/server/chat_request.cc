#include <fmt/format.h>

#include <boost/json/array.hpp>
#include <utility>

#include "server/generation_fields.h"
#include "server/openai_request.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

constexpr size_t kRoleBytesMax = 64;

// The text of `content`: a string, or parts of type text, joined.
void ReadContent(Fields* message, std::optional<ApiError>* error, std::string* out) {
  const json::value* value = message->Find("content");
  if (message->failed()) return;
  if (value == nullptr)
    return message->Fail("content", fmt::format("'{}' is missing", message->Path("content")));
  if (const json::string* text = value->if_string()) {
    *out = {text->data(), text->size()};
    return;
  }
  const json::array* parts = value->if_array();
  if (parts == nullptr) {
    return message->Fail("content", fmt::format("'{}' must be a string or a list of parts",
                                                message->Path("content")));
  }
  for (size_t i = 0; i < parts->size(); ++i) {
    const std::string path = fmt::format("{}[{}]", message->Path("content"), i);
    const json::object* object = (*parts)[i].if_object();
    if (object == nullptr) {
      return message->Fail(BadField(path, fmt::format("'{}' must be an object", path)));
    }
    Fields part(*object, path + ".", error);
    std::string type, text;
    part.String("type", kRoleBytesMax, &type);
    if (type != "text") {
      part.Fail("type",
                fmt::format("'{}.type': this server understands parts of type text alone", path));
    }
    part.String("text", SIZE_MAX, &text);
    if (part.Find("text") == nullptr) part.Fail("text", fmt::format("'{}.text' is missing", path));
    part.RefuseOthers();
    if (part.failed()) return;
    *out += text;
  }
}

std::optional<Message> ReadMessage(const json::value& value, const std::string& path,
                                   std::optional<ApiError>* error) {
  if (!value.is_object()) {
    *error = BadField(path, fmt::format("'{}' must be an object", path));
    return std::nullopt;
  }
  Fields fields(value.get_object(), path + ".", error);
  Message message;
  fields.String("role", kRoleBytesMax, &message.role);
  if (message.role == "developer") message.role = "system";  // OpenAI's newer name
  if (message.role != "system" && message.role != "user" && message.role != "assistant") {
    fields.Fail("role",
                fmt::format("'{}.role' must be system, developer, user or assistant", path));
  }
  ReadContent(&fields, error, &message.content);
  // What answers of this API carry, for those who send them back as they came.
  fields.RefuseUnlessEmpty({"tool_calls", "annotations"});
  fields.RefuseUnsupported({"name", "function_call", "tool_call_id", "audio", "refusal"});
  fields.RefuseOthers();
  if (fields.failed()) return std::nullopt;
  return message;
}

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

void ReadTools(Fields* fields) {
  fields->RefuseUnlessEmpty({"tools", "functions"});
  const json::value* choice = fields->Find("tool_choice");
  if (choice != nullptr && *choice != "none" && *choice != "auto") {
    fields->Fail("tool_choice", "'tool_choice': this server supports no tools");
  }
  fields->Accept({"parallel_tool_calls"});  // says nothing without tools
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

std::vector<Message> ReadMessages(Fields* fields, const RequestLimits& limits) {
  std::vector<Message> messages;
  const json::value* value = fields->Find("messages");
  if (fields->failed()) return messages;
  const json::array* list = value != nullptr ? value->if_array() : nullptr;
  if (list == nullptr || list->empty()) {
    fields->Fail("messages", "'messages' must be a list of at least one message");
    return messages;
  }
  if (list->size() > limits.messages_max) {
    fields->Fail("messages", fmt::format("'messages' has {} messages: at most {} are allowed",
                                         list->size(), limits.messages_max));
    return messages;
  }
  for (size_t i = 0; i < list->size(); ++i) {
    std::optional<ApiError> error;
    std::optional<Message> message =
        ReadMessage((*list)[i], fmt::format("messages[{}]", i), &error);
    if (!message) {
      fields->Fail(*std::move(error));
      return messages;
    }
    messages.push_back(*std::move(message));
  }
  return messages;
}

std::optional<ChatRequest> ParseChatRequest(std::string_view body, const RequestLimits& limits,
                                            std::optional<ApiError>* error) {
  const std::optional<json::object> object = ParseBody(body, limits.json_depth_max, error);
  if (!object) return std::nullopt;
  Fields fields(*object, "", error);
  ChatRequest request;
  ReadGenerationFields(&fields, limits, &request.options);
  request.messages = ReadMessages(&fields, limits);
  ReadLogprobs(&fields, &request);
  ReadMaxTokens(&fields, limits, &request.options);
  ReadTools(&fields);
  fields.Bool("add_generation_prompt", &request.add_generation_prompt);
  fields.RefuseUnsupported({"audio", "prediction", "web_search_options", "reasoning_effort",
                            "verbosity", "function_call", "chat_template", "chat_template_kwargs",
                            "continue_final_message", "echo"});
  fields.RefuseOthers();
  if (fields.failed()) return std::nullopt;
  return request;
}

}  // namespace tinyserve
