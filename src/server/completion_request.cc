#include <fmt/format.h>

#include <algorithm>
#include <boost/json/array.hpp>
#include <utility>

#include "server/generation_fields.h"
#include "server/openai_request.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

constexpr uint32_t kMaxTokensDefault = 16;  // OpenAI's

void FailPrompt(Fields* fields) {
  fields->Fail("prompt",
               "'prompt' must be a string, a list of token ids, a list of strings or a list of "
               "lists of token ids");
}

// A string, or a list of token ids.
void ReadPrompt(Fields* fields, const json::value& value, const RequestLimits& limits,
                std::vector<Prompt>* prompts) {
  if (const json::string* text = value.if_string()) {
    prompts->emplace_back(std::string(text->data(), text->size()));
  } else if (const json::array* list = value.if_array()) {
    if (list->empty()) return fields->Fail("prompt", "'prompt' is empty: give at least one token");
    prompts->emplace_back(ReadTokens(fields, "prompt", *list, limits));
  } else {
    FailPrompt(fields);
  }
}

void ReadPrompts(Fields* fields, const RequestLimits& limits, std::vector<Prompt>* prompts) {
  const json::value* value = fields->Find("prompt");
  if (fields->failed()) return;
  if (value == nullptr) return fields->Fail("prompt", "'prompt' is missing");
  const json::array* list = value->if_array();
  const bool several = list != nullptr && !list->empty() && !list->front().is_number();
  if (!several) return ReadPrompt(fields, *value, limits, prompts);
  if (list->size() > limits.prompts_max) {
    return fields->Fail("prompt", fmt::format("'prompt' has {} prompts: at most {} are allowed",
                                              list->size(), limits.prompts_max));
  }
  for (const json::value& element : *list) {
    if (element.is_string() != list->front().is_string()) return FailPrompt(fields);
    ReadPrompt(fields, element, limits, prompts);
    if (fields->failed()) return;
  }
}

void ReadLogprobs(Fields* fields, CompletionRequest* request) {
  if (fields->Find("logprobs") == nullptr) return;
  uint32_t top = 0;
  fields->Count("logprobs", 0, kTopLogprobsMax, &top);
  request->options.engine.top_logprobs = static_cast<int32_t>(top);
}

}  // namespace

std::optional<CompletionRequest> ParseCompletionRequest(std::string_view body,
                                                        const RequestLimits& limits,
                                                        std::optional<ApiError>* error) {
  const std::optional<json::object> object = ParseBody(body, limits.json_depth_max, error);
  if (!object) return std::nullopt;
  Fields fields(*object, "", error);
  CompletionRequest request;
  GenerationOptions& options = request.options;
  options.add_special = true;
  ReadGenerationFields(&fields, limits, &options);
  ReadPrompts(&fields, limits, &request.prompts);
  ReadLogprobs(&fields, &request);
  uint32_t max_tokens = kMaxTokensDefault;
  fields.Count("max_tokens", 0, limits.context_tokens, &max_tokens);
  options.max_tokens = max_tokens;
  fields.Bool("echo", &request.echo);
  options.engine.prompt_logprobs = request.echo && options.engine.top_logprobs >= 0;
  fields.RefuseUnsupported({"suffix"});
  if (options.engine.prompt_logprobs && options.stream) {
    fields.Fail("echo", "'echo' with 'logprobs' is not supported in a stream");
  }
  if (max_tokens == 0 && !request.echo) {
    fields.Fail("max_tokens", "'max_tokens' is 0: that is allowed with 'echo' alone");
  }
  if (uint64_t{options.n} * request.prompts.size() > limits.choices_max) {
    fields.Fail("n", fmt::format("'n' for each of {} prompts makes {} answers: at most {} are "
                                 "allowed",
                                 request.prompts.size(),
                                 uint64_t{options.n} * request.prompts.size(), limits.choices_max));
  }
  fields.RefuseOthers();
  if (fields.failed()) return std::nullopt;
  return request;
}

}  // namespace tinyserve
