// Bodies of the server's routes: any bytes are parsed, or refused with a reason.
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "base/check.h"
#include "server/api_error.h"
#include "server/openai_request.h"

namespace tinyserve {
namespace {

constexpr uint32_t kVocab = 1000, kContextTokens = 256;

void CheckError(const std::optional<ApiError>& error) {
  TS_CHECK(error.has_value() && !error->message.empty());
  TS_CHECK(error->status == 400 || error->status == 404);
  TS_CHECK(!ErrorJson(*error).empty());
}

void CheckOptions(const GenerationOptions& options, const RequestLimits& limits) {
  const Request& engine = options.engine;
  TS_CHECK(options.n >= 1 && options.n <= limits.choices_max);
  TS_CHECK(engine.sampling.temperature >= 0 && engine.sampling.temperature <= 2);
  TS_CHECK(engine.sampling.top_p > 0 && engine.sampling.top_p <= 1);
  TS_CHECK(engine.top_logprobs >= -1 && engine.top_logprobs <= 20);
  TS_CHECK(!options.max_tokens || *options.max_tokens <= kContextTokens);
  TS_CHECK(options.stream || !options.include_usage);
  for (const int32_t token : engine.stop_tokens) TS_CHECK(token >= 0 && token < int32_t{kVocab});
  for (const auto& [token, bias] : engine.sampling.logit_bias) {
    TS_CHECK(token >= 0 && token < int32_t{kVocab} && bias >= -100 && bias <= 100);
  }
}

void CheckInputs(const std::vector<Prompt>& prompts, size_t count_max) {
  TS_CHECK(!prompts.empty() && prompts.size() <= count_max);
  for (const Prompt& prompt : prompts) {
    const auto* tokens = std::get_if<std::vector<int32_t>>(&prompt);
    if (tokens == nullptr) continue;
    TS_CHECK(!tokens->empty() && tokens->size() <= kContextTokens);
    for (const int32_t token : *tokens) TS_CHECK(token >= 0 && token < int32_t{kVocab});
  }
}

}  // namespace
}  // namespace tinyserve

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tinyserve;
  RequestLimits limits;
  limits.models = {"m"};
  limits.vocab = kVocab;
  limits.context_tokens = kContextTokens;
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  std::optional<ApiError> error;
  if (const auto request = ParseCompletionRequest(body, limits, &error)) {
    CheckOptions(request->options, limits);
    CheckInputs(request->prompts, limits.prompts_max);
    TS_CHECK(request->prompts.size() * request->options.n <= limits.choices_max);
  } else {
    CheckError(error);
  }
  error.reset();
  if (const auto request = ParseChatRequest(body, limits, &error)) {
    CheckOptions(request->options, limits);
    TS_CHECK(!request->conversation.messages.empty());
  } else {
    CheckError(error);
  }
  error.reset();
  if (const auto request = ParseResponseRequest(body, limits, &error)) {
    CheckOptions(request->options, limits);
    TS_CHECK(request->options.n == 1);
  } else {
    CheckError(error);
  }
  error.reset();
  if (const auto request = ParseEmbeddingRequest(body, limits, /*dim=*/8, &error)) {
    CheckInputs(request->inputs, limits.inputs_max);
    TS_CHECK(request->pooling != Pooling::kNone);
  } else {
    CheckError(error);
  }
  return 0;
}
