#include "server/generation_fields.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/array.hpp>
#include <charconv>
#include <limits>

#include "server/structured_fields.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

constexpr size_t kStopStringsMax = 16, kStopBytesMax = 256;  // of the engine
constexpr size_t kStopTokensMax = 256;
constexpr size_t kBiasesMax = 1024;
constexpr size_t kNameBytesMax = 256;
constexpr size_t kStepPluginsMax = 8;  // of the engine
constexpr int64_t kDeadlineMsMax = 24 * 3600 * 1000;

void ReadSampling(Fields* fields, const RequestLimits& limits, SamplingOptions* sampling) {
  sampling->temperature = 1.0f;  // OpenAI's default; the engine's own is 0
  fields->Number("temperature", 0, 2, &sampling->temperature);
  fields->Number("top_p", 1e-6, 1, &sampling->top_p);
  fields->Number("min_p", 0, 0.999, &sampling->min_p);
  fields->Number("presence_penalty", -2, 2, &sampling->presence_penalty);
  fields->Number("frequency_penalty", -2, 2, &sampling->frequency_penalty);
  fields->Number("repetition_penalty", 0.001, 100, &sampling->repetition_penalty);
  int64_t top_k = 0;
  fields->Integer("top_k", -1, limits.vocab, &top_k);  // vLLM's -1 is off too
  sampling->top_k = static_cast<uint32_t>(std::max<int64_t>(top_k, 0));
}

// {"token id": value}.
void ReadBias(Fields* fields, const RequestLimits& limits, SamplingOptions* sampling) {
  const json::object* biases = fields->Object("logit_bias");
  if (biases == nullptr) return;
  if (biases->size() > kBiasesMax) {
    return fields->Fail("logit_bias",
                        fmt::format("'{}' has {} members: at most {} are allowed",
                                    fields->Path("logit_bias"), biases->size(), kBiasesMax));
  }
  for (const auto& member : *biases) {
    const char* end = member.key().data() + member.key().size();
    uint32_t id = 0;
    const auto [last, failed] = std::from_chars(member.key().data(), end, id);
    if (failed != std::errc() || last != end || id >= limits.vocab) {
      return fields->Fail("logit_bias",
                          fmt::format("'{}' has a name that is no token id: 0 to {} are expected",
                                      fields->Path("logit_bias"), limits.vocab - 1));
    }
    const std::optional<double> value = RealNumber(member.value(), -100, 100);
    if (!value) {
      return fields->Fail("logit_bias",
                          fmt::format("'{}' of token {} is no number from -100 to 100",
                                      fields->Path("logit_bias"), id));
    }
    sampling->logit_bias.emplace_back(static_cast<int32_t>(id), static_cast<float>(*value));
  }
}

void ReadStop(Fields* fields, Request* request) {
  const json::value* value = fields->Find("stop");
  if (value == nullptr) return;
  const auto add = [&](const json::value& element) {
    const json::string* text = element.if_string();
    if (text == nullptr || text->empty() || text->size() > kStopBytesMax) {
      return fields->Fail("stop", fmt::format("'stop' must be a string, or a list of strings, of 1 "
                                              "to {} bytes each",
                                              kStopBytesMax));
    }
    request->stop.emplace_back(text->data(), text->size());
  };
  if (const json::array* list = value->if_array()) {
    if (list->size() > kStopStringsMax) {
      return fields->Fail("stop", fmt::format("'stop' has {} strings: at most {} are allowed",
                                              list->size(), kStopStringsMax));
    }
    for (const json::value& element : *list) add(element);
  } else {
    add(*value);
  }
}

void ReadEnd(Fields* fields, const RequestLimits& limits, Request* request) {
  ReadStop(fields, request);
  fields->Bool("ignore_eos", &request->ignore_eos);
  fields->Count("min_tokens", 0, limits.context_tokens, &request->min_tokens);
  const json::value* tokens = fields->Find("stop_token_ids");
  if (tokens == nullptr) return;
  if (!tokens->is_array() || tokens->get_array().size() > kStopTokensMax) {
    return fields->Fail(
        "stop_token_ids",
        fmt::format("'stop_token_ids' must be a list of at most {} token ids", kStopTokensMax));
  }
  request->stop_tokens = ReadTokens(fields, "stop_token_ids", tokens->get_array(), limits);
}

void ReadStream(Fields* fields, std::optional<ApiError>* error, GenerationOptions* options) {
  fields->Bool("stream", &options->stream);
  const json::object* object = fields->Object("stream_options");
  if (object == nullptr) return;
  if (!options->stream) {
    return fields->Fail("stream_options", "'stream_options' is allowed with 'stream' alone");
  }
  Fields inner(*object, "stream_options.", error);
  inner.Bool("include_usage", &options->include_usage);
  inner.Bool("continuous_usage_stats", &options->continuous_usage);
  // Noise that hides the lengths of tokens from listeners; there is none to leave out.
  inner.Accept({"include_obfuscation"});
  inner.RefuseOthers();
  if (options->continuous_usage && !options->include_usage) {
    inner.Fail("continuous_usage_stats",
               "'stream_options.continuous_usage_stats' is allowed with 'include_usage' alone");
  }
}

void ReadOwn(Fields* fields, const RequestLimits& limits, std::optional<ApiError>* error,
             Request* request) {
  const json::object* object = fields->Object("tinyserve");
  request->deadline_ms = ReadDeadline(nullptr, limits);
  if (object == nullptr) return;
  Fields inner(*object, "tinyserve.", error);
  request->deadline_ms = ReadDeadline(&inner, limits);
  inner.String("selector", kNameBytesMax, &request->selector);
  if (const json::value* list = inner.Find("step_plugins")) {
    request->step_plugins.emplace();
    const json::array* specs = list->if_array();
    const bool good = specs != nullptr && specs->size() <= kStepPluginsMax &&
                      std::all_of(specs->begin(), specs->end(), [](const json::value& spec) {
                        return spec.is_string() && spec.get_string().size() <= kNameBytesMax;
                      });
    if (!good) {
      return inner.Fail("step_plugins",
                        fmt::format("'tinyserve.step_plugins' must be a list of at most {} "
                                    "strings of at most {} bytes each",
                                    kStepPluginsMax, kNameBytesMax));
    }
    for (const json::value& spec : *specs)
      request->step_plugins->emplace_back(std::string_view(spec.get_string()));
  }
  inner.String("session", kNameBytesMax, &request->session);
  // Else no path could name it.
  if (std::any_of(request->session.begin(), request->session.end(),
                  [](unsigned char c) { return c < 0x20 || c == 0x7f; }))
    inner.Fail("session", "'tinyserve.session' must not hold control characters");
  inner.RefuseOthers();
}

// A grammar says itself where an answer may end.
void CheckEndsItself(Fields* fields, const Request& request) {
  const char* name = request.ignore_eos ? "ignore_eos" : "min_tokens";
  if (!request.ignore_eos && request.min_tokens == 0) return;
  fields->Fail(name, fmt::format("'{}' is not allowed where a schema or a grammar says what the "
                                 "answer must follow",
                                 name));
}

void ReadModalities(Fields* fields) {
  const json::value* value = fields->Find("modalities");
  if (value == nullptr || *value == json::array{"text"}) return;
  fields->Fail("modalities", R"('modalities': this server supports ["text"] alone)");
}

}  // namespace

Priority ReadPriority(Fields* fields) {
  Priority result = Priority::kNormal;
  int64_t priority = 0;
  const bool numbered = fields->Find("priority") != nullptr;
  fields->Integer("priority", std::numeric_limits<int32_t>::min(),
                  std::numeric_limits<int32_t>::max(), &priority);
  if (priority != 0) result = priority < 0 ? Priority::kHigh : Priority::kLow;
  std::string tier;
  fields->String("service_tier", kNameBytesMax, &tier);
  if (tier.empty()) return result;
  if (numbered) {
    fields->Fail("service_tier", "'service_tier' and 'priority' both: give one of them");
  } else if (tier == "priority") {
    result = Priority::kHigh;
  } else if (tier == "flex") {
    result = Priority::kLow;
  } else if (tier != "auto" && tier != "default") {
    fields->Fail("service_tier", "'service_tier' is none of auto, default, priority, flex");
  }
  return result;
}

uint64_t ReadDeadline(Fields* own, const RequestLimits& limits) {
  const uint64_t allowed_ms = uint64_t{limits.request_seconds_max} * 1000;
  int64_t asked_ms = 0;
  if (own != nullptr) own->Integer("deadline_ms", 1, kDeadlineMsMax, &asked_ms);
  if (asked_ms == 0) return allowed_ms;
  return allowed_ms == 0 ? static_cast<uint64_t>(asked_ms)
                         : std::min(static_cast<uint64_t>(asked_ms), allowed_ms);
}

void ReadGenerationFields(Fields* fields, const RequestLimits& limits, GenerationOptions* options) {
  std::optional<ApiError> error;  // of inner objects
  ReadModel(fields, limits);
  ReadSampling(fields, limits, &options->engine.sampling);
  ReadBias(fields, limits, &options->engine.sampling);
  ReadEnd(fields, limits, &options->engine);
  options->engine.priority = ReadPriority(fields);
  ReadStream(fields, &error, options);
  ReadOwn(fields, limits, &error, &options->engine);
  options->grammar = ReadStructured(fields, &error);
  if (options->grammar) CheckEndsItself(fields, options->engine);
  ReadModalities(fields);
  fields->Count("n", 1, limits.choices_max, &options->n);
  fields->Bool("add_special_tokens", &options->add_special);
  fields->String("cache_salt", kCacheSaltBytesMax, &options->cache_salt);
  if (fields->Find("seed") != nullptr) {
    int64_t seed = 0;
    fields->Integer("seed", std::numeric_limits<int64_t>::min(),
                    std::numeric_limits<int64_t>::max(), &seed);
    options->seed = static_cast<uint64_t>(seed);
  }
  int64_t best_of = options->n;
  fields->Integer("best_of", 1, limits.choices_max, &best_of);
  if (best_of != options->n) {
    fields->Fail("best_of", "'best_of' other than 'n' is not supported by this server");
  }
  if (error) fields->Fail(*std::move(error));
  fields->Accept({"user", "metadata", "store", "safety_identifier", "prompt_cache_key",
                  "prompt_cache_retention"});
  fields->RefuseUnsupported({"prompt_logprobs", "logits_processors", "guided_decoding_backend",
                             "guided_whitespace_pattern"});
  // What clients made for vLLM send though they want nothing else.
  fields->RefuseUnless("use_beam_search", false);
  fields->RefuseUnless("length_penalty", 1);
  fields->RefuseUnless("skip_special_tokens", true);
  fields->RefuseUnless("spaces_between_special_tokens", true);
  fields->RefuseUnless("include_stop_str_in_output", false);
}

}  // namespace tinyserve
