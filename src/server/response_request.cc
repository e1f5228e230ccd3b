#include <fmt/format.h>

#include <boost/json/array.hpp>
#include <utility>

#include "server/conversation_fields.h"
#include "server/generation_fields.h"
#include "server/openai_request.h"
#include "server/response_items.h"
#include "server/structured_fields.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

constexpr size_t kWordBytesMax = 64, kIdBytesMax = 256;

// "none", "auto", "required", or {"type": "function", "name"}.
void ReadToolChoice(Fields* fields, Conversation* conversation) {
  const json::value* value = fields->Find("tool_choice");
  if (value == nullptr) return;
  std::string choice;
  if (const json::object* object = value->if_object()) {
    std::optional<ApiError> error;
    Fields named(*object, "tool_choice.", &error);
    std::string type;
    named.String("type", kWordBytesMax, &type);
    if (type != "function")
      named.Fail("type", "'tool_choice.type' must be function: others are not supported");
    named.String("name", kWordBytesMax, &choice);
    named.RefuseOthers();
    if (!HasTool(*conversation, choice))
      named.Fail("name",
                 fmt::format("'tool_choice.name' is '{}', which is none of 'tools'", choice));
    if (error) return fields->Fail(*std::move(error));
  } else if (*value == "none" || *value == "auto" || *value == "required") {
    choice = std::string(std::string_view(value->get_string()));
  } else {
    return fields->Fail("tool_choice",
                        "'tool_choice' must be none, auto, required or {\"type\": \"function\", "
                        "\"name\": …}");
  }
  if (!ChooseTools(choice, conversation))
    fields->Fail("tool_choice", "'tool_choice' is required, and 'tools' has none");
}

void ReadText(Fields* fields, std::optional<ApiError>* error, GenerationOptions* options) {
  const json::object* object = fields->Object("text");
  if (object == nullptr) return;
  Fields text(*object, "text.", error);
  std::optional<GrammarSpec> grammar = ReadTextFormat(&text, error);
  if (grammar && options->grammar) {
    text.Fail("format", fmt::format("'text.format' and '{}' both say what the answer must follow: "
                                    "give one of them",
                                    options->grammar->field));
  }
  if (grammar) options->grammar = std::move(grammar);
  std::string verbosity = "medium";
  text.String("verbosity", kWordBytesMax, &verbosity);
  if (verbosity != "medium")
    text.Fail("verbosity", "'text.verbosity' other than medium is not supported by this server");
  text.RefuseOthers();
}

// Fields of which only the value that asks for nothing is allowed.
void ReadFixed(Fields* fields, std::optional<ApiError>* error) {
  std::string truncation = "disabled";
  fields->String("truncation", kWordBytesMax, &truncation);
  if (truncation != "disabled")
    fields->Fail("truncation", "'truncation' other than disabled is not supported by this server");
  uint32_t top = 0;
  fields->Count("top_logprobs", 0, 0, &top);
  fields->RefuseUnlessEmpty({"include"});
  fields->RefuseUnsupported({"max_tool_calls", "prompt", "conversation"});
  if (const json::object* object = fields->Object("reasoning")) {
    Fields reasoning(*object, "reasoning.", error);
    reasoning.RefuseUnsupported({"effort", "summary", "generate_summary"});
    reasoning.RefuseOthers();
  }
}

// What the response repeats as it was sent, or says in its place.
json::object EchoOf(const json::object& request, const ResponseRequest& parsed) {
  const json::object text_default = {{"format", {{"type", "text"}}}};
  json::object echo;
  const auto repeat = [&](const char* name, json::value otherwise) {
    const json::value* value = request.if_contains(name);
    echo[name] = value == nullptr || value->is_null() ? std::move(otherwise) : *value;
  };
  repeat("instructions", nullptr);
  repeat("max_output_tokens", nullptr);
  repeat("metadata", json::object());
  repeat("parallel_tool_calls", true);
  repeat("previous_response_id", nullptr);
  repeat("prompt_cache_key", nullptr);
  repeat("safety_identifier", nullptr);
  repeat("service_tier", "auto");
  repeat("text", text_default);
  if (!echo["text"].get_object().contains("format"))
    echo["text"].get_object()["format"] = text_default.at("format");
  repeat("tool_choice", "auto");
  json::array tools;
  for (const Tool& tool : parsed.conversation.tools) {
    json::object definition = tool.definition.at("function").as_object();
    definition["type"] = "function";
    definition["strict"] = parsed.conversation.tool_use == ToolUse::kRequired;
    tools.push_back(std::move(definition));
  }
  echo["tools"] = std::move(tools);
  repeat("user", nullptr);
  echo["background"] = parsed.background;
  echo["max_tool_calls"] = nullptr;
  echo["reasoning"] = {{"effort", nullptr}, {"summary", nullptr}};
  echo["store"] = parsed.store;
  echo["temperature"] = parsed.options.engine.sampling.temperature;
  echo["top_p"] = parsed.options.engine.sampling.top_p;
  echo["top_logprobs"] = 0;
  echo["truncation"] = "disabled";
  return echo;
}

// A response that nobody waits for is asked for again: it must be kept.
void ReadBackground(Fields* fields, ResponseRequest* request) {
  fields->Bool("background", &request->background);
  if (!request->background) return;
  if (request->options.stream)
    fields->Fail("background", "'background' with 'stream' is not supported by this server");
  if (!request->store)
    fields->Fail("background", "'background' needs 'store': nobody could ask for the response");
}

// Sixteen short texts by name: what a response may carry for its owner.
void CheckMetadata(Fields* fields) {
  constexpr size_t kPairsMax = 16, kKeyBytesMax = 64, kValueBytesMax = 512;
  const json::object* metadata = fields->Object("metadata");
  if (metadata == nullptr) return;
  bool good = metadata->size() <= kPairsMax;
  for (const auto& pair : *metadata) {
    good = good && pair.key().size() <= kKeyBytesMax && pair.value().is_string() &&
           pair.value().get_string().size() <= kValueBytesMax;
  }
  if (good) return;
  fields->Fail("metadata", fmt::format("'metadata' must have at most {} members, of at most {} "
                                       "bytes, that are strings of at most {}",
                                       kPairsMax, kKeyBytesMax, kValueBytesMax));
}

}  // namespace

std::optional<ResponseRequest> ParseResponseRequest(std::string_view body,
                                                    const RequestLimits& limits,
                                                    std::optional<ApiError>* error) {
  const std::optional<json::object> object = ParseBody(body, limits.json_depth_max, error);
  if (!object) return std::nullopt;
  Fields fields(*object, "", error);
  ResponseRequest request;
  // Of chats and completions; a response has one answer, and says its format in `text`.
  fields.RefuseUnsupported({"n", "best_of", "response_format", "modalities"});
  ReadGenerationFields(&fields, limits, &request.options);
  Conversation& conversation = request.conversation;
  fields.String("instructions", SIZE_MAX, &request.instructions);
  fields.String("previous_response_id", kIdBytesMax, &request.previous);
  ReadInput(&fields, limits, &request);
  if (conversation.messages.empty() && request.instructions.empty() && request.previous.empty())
    fields.Fail("input", "'input' is missing");
  ReadTools(&fields, ToolForm::kFlat, &conversation);
  fields.Bool("parallel_tool_calls", &conversation.parallel_calls);
  ReadToolChoice(&fields, &conversation);
  ReadTemplateVariables(&fields, &conversation);
  ReadText(&fields, error, &request.options);
  if (request.options.grammar && conversation.calls()) {
    fields.Fail("tools", fmt::format("'{}' says what the answer must be, so that it can call no "
                                     "tools: leave it out, or set 'tool_choice' to none",
                                     request.options.grammar->field));
  }
  if (fields.Find("max_output_tokens") != nullptr) {
    uint32_t tokens = 0;
    fields.Count("max_output_tokens", 1, limits.context_tokens, &tokens);
    request.options.max_tokens = tokens;
  }
  fields.Bool("store", &request.store);
  ReadBackground(&fields, &request);
  CheckMetadata(&fields);
  for (const char* name : {"user", "safety_identifier", "prompt_cache_key"}) {
    std::string text;
    fields.String(name, kIdBytesMax, &text);
  }
  ReadFixed(&fields, error);
  fields.RefuseOthers();
  if (fields.failed()) return std::nullopt;
  request.echo = EchoOf(*object, request);
  return request;
}

}  // namespace tinyserve
