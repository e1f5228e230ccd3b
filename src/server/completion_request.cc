#include <fmt/format.h>

#include "server/generation_fields.h"
#include "server/openai_request.h"
#include "server/prompt_fields.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

constexpr uint32_t kMaxTokensDefault = 16;  // OpenAI's

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
  request.prompts = ReadPrompts(&fields, "prompt", limits.prompts_max, limits);
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
