#include "server/openapi_fields.h"

namespace tinyserve {
namespace {

constexpr std::string_view kTextOrNull = R"({"type": ["string", "null"]})";
constexpr std::string_view kFlag = R"({"type": ["boolean", "null"]})";
constexpr std::string_view kObject = R"({"type": ["object", "null"]})";
constexpr std::string_view kAnything = R"({"description": "accepted, and changes nothing"})";
constexpr std::string_view kCount = R"({"type": ["integer", "null"], "minimum": 1})";
constexpr std::string_view kCountOrNone = R"({"type": ["integer", "null"], "minimum": 0})";
constexpr std::string_view kTopLogprobs =
    R"({"type": ["integer", "null"], "minimum": 0, "maximum": 20})";
constexpr std::string_view kPenalty =
    R"({"type": ["number", "null"], "minimum": -2, "maximum": 2})";
constexpr std::string_view kSalt = R"({"type": ["string", "null"], "maxLength": 128})";
constexpr std::string_view kShortText = R"({"type": ["string", "null"], "maxLength": 256})";
constexpr std::string_view kTokens =
    R"({"type": "array", "items": {"type": "integer", "minimum": 0}})";
constexpr std::string_view kPrompts = R"({"oneOf": [{"type": "string"},
    {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}},
    {"type": "array", "minItems": 1, "items": {"type": "string"}},
    {"type": "array", "minItems": 1, "items":
     {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}}]})";
constexpr std::string_view kStreamOptions = R"({"type": ["object", "null"], "properties":
    {"include_usage": {"type": ["boolean", "null"]},
     "continuous_usage_stats": {"type": ["boolean", "null"]}, "include_obfuscation": {}},
    "additionalProperties": false, "description": "with 'stream' alone"})";
constexpr std::string_view kServiceTier =
    R"({"type": ["string", "null"], "enum": ["auto", "default", "priority", "flex", null]})";
constexpr std::string_view kPriority = R"({"type": ["integer", "null"], "minimum": -2147483648,
    "maximum": 2147483647, "description": "a lower number is served first"})";
constexpr std::string_view kStructured = R"({"type": ["object", "null"], "properties":
    {"json": {"type": ["object", "string", "null"]}, "regex": {"type": ["string", "null"]},
     "choice": {"type": ["array", "null"], "minItems": 1, "items":
                {"type": "string", "minLength": 1}},
     "grammar": {"type": ["string", "null"]}, "json_object": {"type": ["boolean", "null"]}},
    "additionalProperties": false})";
constexpr std::string_view kChatTools = R"({"type": ["array", "null"], "maxItems": 128, "items":
    {"type": "object", "properties": {"type": {"const": "function"}, "function":
     {"$ref": "#/components/schemas/Function"}},
     "required": ["type", "function"], "additionalProperties": false}})";
constexpr std::string_view kChatChoice = R"({"anyOf": [{"type": "null"},
    {"enum": ["none", "auto", "required"]}, {"type": "object", "properties":
     {"type": {"const": "function"}, "function": {"type": "object", "properties":
      {"name": {"type": "string"}}, "required": ["name"], "additionalProperties": false}},
     "required": ["type", "function"], "additionalProperties": false}]})";
constexpr std::string_view kFormat = R"({"anyOf": [{"type": "null"},
    {"type": "object", "properties": {"type": {"enum": ["text", "json_object"]}},
     "required": ["type"], "additionalProperties": false},
    {"type": "object", "properties": {"type": {"const": "json_schema"}, "json_schema":
     {"type": "object", "properties": {"name": {"type": "string", "maxLength": 256},
      "description": {"type": ["string", "null"]}, "strict": {"type": ["boolean", "null"]},
      "schema": {"type": "object"}}, "required": ["schema"], "additionalProperties": false}},
     "required": ["type", "json_schema"], "additionalProperties": false}]})";
constexpr std::string_view kTextOptions = R"({"type": ["object", "null"], "properties":
    {"verbosity": {"enum": ["medium", null]}, "format": {"anyOf": [{"type": "null"},
     {"type": "object", "properties": {"type": {"enum": ["text", "json_object"]}},
      "required": ["type"], "additionalProperties": false},
     {"type": "object", "properties": {"type": {"const": "json_schema"},
      "name": {"type": "string", "maxLength": 256}, "description": {"type": ["string", "null"]},
      "strict": {"type": ["boolean", "null"]}, "schema": {"type": "object"}},
      "required": ["type", "schema"], "additionalProperties": false}]}},
    "additionalProperties": false})";

constexpr ApiField kGeneration[] = {
    {"model", kTextOrNull},
    {"temperature", R"({"type": ["number", "null"], "minimum": 0, "maximum": 2})"},
    {"top_p", R"({"type": ["number", "null"], "minimum": 0.000001, "maximum": 1})"},
    {"top_k", R"({"type": ["integer", "null"], "minimum": -1})"},
    {"min_p", R"({"type": ["number", "null"], "minimum": 0, "maximum": 0.999})"},
    {"presence_penalty", kPenalty},
    {"frequency_penalty", kPenalty},
    {"repetition_penalty", R"({"type": ["number", "null"], "minimum": 0.001, "maximum": 100})"},
    {"logit_bias", R"({"type": ["object", "null"], "maxProperties": 1024, "additionalProperties":
                       {"type": "number", "minimum": -100, "maximum": 100}})"},
    {"seed", R"({"type": ["integer", "null"]})"},
    {"stop", R"({"anyOf": [{"type": "null"}, {"type": "string", "minLength": 1, "maxLength": 256},
                 {"type": "array", "maxItems": 16, "items":
                  {"type": "string", "minLength": 1, "maxLength": 256}}]})"},
    {"stop_token_ids", R"({"type": ["array", "null"], "maxItems": 256, "items":
                           {"type": "integer", "minimum": 0}})"},
    {"ignore_eos", kFlag},
    {"min_tokens", kCountOrNone},
    {"stream", kFlag},
    {"stream_options", kStreamOptions},
    {"service_tier", kServiceTier},
    {"priority", kPriority},
    {"structured_outputs", kStructured},
    {"guided_json", R"({"type": ["object", "string", "null"]})"},
    {"guided_regex", kTextOrNull},
    {"guided_grammar", kTextOrNull},
    {"guided_choice", R"({"type": ["array", "null"], "minItems": 1, "maxItems": 1024, "items":
                          {"type": "string", "minLength": 1}})"},
    {"add_special_tokens", kFlag},
    {"cache_salt", kSalt},
    {"tinyserve", R"({"type": ["object", "null"], "properties":
                      {"selector": {"type": ["string", "null"], "maxLength": 256},
                       "step_plugins": {"type": ["array", "null"], "maxItems": 8, "items":
                                        {"type": "string", "maxLength": 256}},
                       "session": {"type": ["string", "null"], "maxLength": 256,
                                   "pattern": "^[^\\u0000-\\u001f\\u007f]*$"},
                       "deadline_ms": {"type": ["integer", "null"], "minimum": 1,
                                       "maximum": 86400000}},
                      "additionalProperties": false})"}};

constexpr ApiField kAnswers[] = {
    {"n", kCount},
    {"best_of", R"({"type": ["integer", "null"], "minimum": 1, "description": "as 'n'"})"},
    {"response_format", kFormat},
    {"modalities", R"({"enum": [["text"], null]})"},
    {"user", kAnything},
    {"metadata", kAnything},
    {"store", kAnything},
    {"safety_identifier", kAnything},
    {"prompt_cache_key", kAnything},
    {"prompt_cache_retention", kAnything}};

constexpr ApiField kCompletion[] = {{"prompt", kPrompts, true},
                                    {"max_tokens", kCountOrNone},
                                    {"logprobs", kTopLogprobs},
                                    {"echo", kFlag}};

constexpr ApiField kChat[] = {
    {"messages", R"({"type": "array", "minItems": 1, "maxItems": 4096, "items":
                     {"$ref": "#/components/schemas/Message"}})",
     true},
    {"max_completion_tokens", kCount},
    {"max_tokens", kCount},
    {"logprobs", kFlag},
    {"top_logprobs", kTopLogprobs},
    {"add_generation_prompt", kFlag},
    {"tools", kChatTools},
    {"tool_choice", kChatChoice},
    {"parallel_tool_calls", kFlag},
    {"chat_template_kwargs", kObject}};

constexpr ApiField kResponse[] = {
    {"input", R"({"anyOf": [{"type": ["string", "null"]}, {"type": "array", "maxItems": 4096,
                  "items": {"$ref": "#/components/schemas/Item"}}]})"},
    {"instructions", kTextOrNull},
    {"previous_response_id", kShortText},
    {"max_output_tokens", kCount},
    {"tools", R"({"type": ["array", "null"], "maxItems": 128, "items":
                  {"$ref": "#/components/schemas/FunctionTool"}})"},
    {"tool_choice", R"({"anyOf": [{"type": "null"}, {"enum": ["none", "auto", "required"]},
                        {"type": "object", "properties": {"type": {"const": "function"},
                         "name": {"type": "string"}}, "required": ["type", "name"],
                         "additionalProperties": false}]})"},
    {"parallel_tool_calls", kFlag},
    {"chat_template_kwargs", kObject},
    {"text", kTextOptions},
    {"store", kFlag},
    {"metadata", R"({"type": ["object", "null"], "maxProperties": 16, "additionalProperties":
                     {"type": "string", "maxLength": 512}})"},
    {"user", kShortText},
    {"safety_identifier", kShortText},
    {"prompt_cache_key", kShortText},
    {"prompt_cache_retention", kAnything},
    {"background", R"({"type": ["boolean", "null"]})"},
    {"truncation", R"({"enum": ["disabled", null]})"},
    {"top_logprobs", R"({"type": ["integer", "null"], "minimum": 0, "maximum": 0})"},
    {"reasoning", R"({"type": ["object", "null"], "properties": {}})"}};

constexpr ApiField kEmbedding[] = {{"model", kTextOrNull},
                                   {"input", kPrompts, true},
                                   {"encoding_format", R"({"enum": ["float", "base64", null]})"},
                                   {"dimensions", R"({"type": ["integer", "null"], "minimum": 1,
                       "description": "the model's own number alone"})"},
                                   {"add_special_tokens", kFlag},
                                   {"service_tier", kServiceTier},
                                   {"priority", kPriority},
                                   {"cache_salt", kSalt},
                                   {"tinyserve", R"({"type": ["object", "null"], "properties":
                      {"pooling": {"enum": ["mean", "last", null]},
                       "deadline_ms": {"type": ["integer", "null"], "minimum": 1,
                                       "maximum": 86400000}},
                      "additionalProperties": false})"},
                                   {"user", kAnything},
                                   {"metadata", kAnything},
                                   {"safety_identifier", kAnything}};

constexpr ApiField kTokenize[] = {
    {"model", kTextOrNull},         {"prompt", kTextOrNull},
    {"messages", kChat[0].schema},  {"add_special_tokens", kFlag},
    {"return_token_strs", kFlag},   {"add_generation_prompt", kFlag},
    {"tools", kChatTools},          {"tool_choice", kChatChoice},
    {"parallel_tool_calls", kFlag}, {"chat_template_kwargs", kObject}};

constexpr ApiField kDetokenize[] = {{"model", kTextOrNull}, {"tokens", kTokens, true}};

}  // namespace

const std::span<const ApiField> kGenerationFields = kGeneration;
const std::span<const ApiField> kAnswerFields = kAnswers;
const std::span<const ApiField> kCompletionFields = kCompletion;
const std::span<const ApiField> kChatFields = kChat;
const std::span<const ApiField> kResponseFields = kResponse;
const std::span<const ApiField> kEmbeddingFields = kEmbedding;
const std::span<const ApiField> kTokenizeFields = kTokenize;
const std::span<const ApiField> kDetokenizeFields = kDetokenize;

}  // namespace tinyserve
