#include "server/openapi.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/parse.hpp>
#include <initializer_list>

#include "server/openapi_fields.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

// Parts that several bodies and replies are made of.
constexpr std::string_view kSchemas = R"({
"Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "object",
  "required": ["message", "type", "param", "code"], "properties": {"message": {"type": "string"},
  "type": {"type": "string"}, "param": {"type": ["string", "null"]},
  "code": {"type": ["string", "null"]}}}}},
"Function": {"type": "object", "required": ["name"], "additionalProperties": false, "properties":
  {"name": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
   "description": {"type": ["string", "null"]}, "parameters": {"type": ["object", "null"]},
   "strict": {"type": ["boolean", "null"]}}},
"FunctionTool": {"type": "object", "required": ["type", "name"], "additionalProperties": false,
  "properties": {"type": {"const": "function"},
   "name": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
   "description": {"type": ["string", "null"]}, "parameters": {"type": ["object", "null"]},
   "strict": {"type": ["boolean", "null"]}}},
"Message": {"type": "object", "required": ["role"], "additionalProperties": false, "properties":
  {"role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
   "content": {"anyOf": [{"type": ["string", "null"]}, {"type": "array", "items":
    {"type": "object", "required": ["type", "text"], "additionalProperties": false, "properties":
     {"type": {"const": "text"}, "text": {"type": "string"}}}}]},
   "reasoning_content": {"type": ["string", "null"]}, "reasoning": {"type": ["string", "null"]},
   "tool_calls": {"type": ["array", "null"], "maxItems": 128, "items": {"type": "object",
    "required": ["function"], "additionalProperties": false, "properties":
    {"id": {"type": ["string", "null"]}, "type": {"enum": ["function", null]}, "index": {},
     "function": {"type": "object", "required": ["name"], "additionalProperties": false,
      "properties": {"name": {"type": "string"},
       "arguments": {"type": ["string", "null"], "description": "a JSON object's text"}}}}}},
   "tool_call_id": {"type": ["string", "null"]}, "name": {"type": ["string", "null"]},
   "annotations": {"type": ["array", "object", "null"]}, "refusal": {"type": "null"},
   "function_call": {"type": "null"}, "audio": {"type": "null"}}},
"Item": {"type": "object", "description": "message, function_call, function_call_output, reasoning",
  "properties": {"type": {"enum": ["message", "function_call", "function_call_output", "reasoning",
                                   null]}}},
"Usage": {"type": "object", "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
  "properties": {"prompt_tokens": {"type": "integer"}, "completion_tokens": {"type": "integer"},
  "total_tokens": {"type": "integer"}, "prompt_tokens_details": {"type": "object"},
  "tinyserve": {"$ref": "#/components/schemas/OwnUsage"}}},
"OwnUsage": {"type": "object", "required": ["queue_seconds", "prefill_seconds", "decode_seconds",
  "first_token_seconds", "pages_held", "pages_read", "kv_bytes_read", "kv_fraction_read",
  "hit_rate"], "properties": {"queue_seconds": {"type": "number"},
  "prefill_seconds": {"type": "number"}, "decode_seconds": {"type": "number"},
  "first_token_seconds": {"type": "number"}, "pages_held": {"type": "integer"},
  "pages_read": {"type": "integer"}, "kv_bytes_read": {"type": "integer"},
  "kv_fraction_read": {"type": ["number", "null"]}, "hit_rate": {"type": ["number", "null"]}}},
"Completion": {"type": "object", "required": ["id", "object", "created", "model", "choices",
  "usage"], "properties": {"id": {"type": "string"}, "object": {"const": "text_completion"},
  "created": {"type": "integer"}, "model": {"type": "string"}, "choices": {"type": "array",
  "items": {"type": "object", "required": ["index", "text", "logprobs", "finish_reason"],
  "properties": {"index": {"type": "integer"}, "text": {"type": "string"},
  "logprobs": {"type": ["object", "null"]}, "finish_reason": {"enum": ["stop", "length"]}}}},
  "usage": {"$ref": "#/components/schemas/Usage"}}},
"ChatCompletion": {"type": "object", "required": ["id", "object", "created", "model", "choices",
  "usage"], "properties": {"id": {"type": "string"}, "object": {"const": "chat.completion"},
  "created": {"type": "integer"}, "model": {"type": "string"}, "choices": {"type": "array",
  "items": {"type": "object", "required": ["index", "message", "logprobs", "finish_reason"],
  "properties": {"index": {"type": "integer"}, "message": {"type": "object",
  "required": ["role", "content"], "properties": {"role": {"const": "assistant"},
  "content": {"type": ["string", "null"]}, "reasoning_content": {"type": "string"},
  "tool_calls": {"type": "array"}}}, "logprobs": {"type": ["object", "null"]},
  "finish_reason": {"enum": ["stop", "length", "tool_calls"]}}}},
  "usage": {"$ref": "#/components/schemas/Usage"}}},
"Response": {"type": "object", "required": ["id", "object", "created_at", "status", "error",
  "incomplete_details", "model", "output", "usage"], "properties": {"id": {"type": "string"},
  "object": {"const": "response"}, "created_at": {"type": "integer"}, "status": {"enum":
  ["in_progress", "completed", "incomplete", "cancelled", "failed"]},
  "output": {"type": "array", "items": {"type": "object", "required": ["id", "type", "status"],
  "properties": {"type": {"enum": ["message", "function_call", "reasoning"]}}}},
  "usage": {"anyOf": [{"type": "null"}, {"type": "object", "required":
  ["input_tokens", "output_tokens", "total_tokens"]}]}}},
"Deleted": {"type": "object", "required": ["id", "object", "deleted"], "properties":
  {"id": {"type": "string"}, "object": {"type": "string"}, "deleted": {"const": true}}},
"ItemList": {"type": "object", "required": ["object", "data", "first_id", "last_id", "has_more"],
  "properties": {"object": {"const": "list"}, "data": {"type": "array"},
  "has_more": {"type": "boolean"}}},
"Embeddings": {"type": "object", "required": ["object", "data", "model", "usage"], "properties":
  {"object": {"const": "list"}, "data": {"type": "array", "items": {"type": "object",
  "required": ["object", "index", "embedding"], "properties": {"object": {"const": "embedding"},
  "index": {"type": "integer"}, "embedding": {"anyOf": [{"type": "string"},
  {"type": "array", "items": {"type": "number"}}]}}}}, "model": {"type": "string"},
  "usage": {"type": "object", "required": ["prompt_tokens", "total_tokens"]}}},
"Model": {"type": "object", "required": ["id", "object", "created", "owned_by"], "properties":
  {"id": {"type": "string"}, "object": {"const": "model"}, "created": {"type": "integer"},
  "max_model_len": {"type": "integer"}}},
"ModelList": {"type": "object", "required": ["object", "data"], "properties":
  {"object": {"const": "list"}, "data": {"type": "array", "items":
  {"$ref": "#/components/schemas/Model"}}}},
"Tokens": {"type": "object", "required": ["count", "max_model_len", "tokens", "token_strs"],
  "properties": {"count": {"type": "integer"}, "max_model_len": {"type": "integer"},
  "tokens": {"type": "array", "items": {"type": "integer"}},
  "token_strs": {"type": ["array", "null"]}}},
"Text": {"type": "object", "required": ["prompt"], "properties": {"prompt": {"type": "string"}}},
"Sessions": {"type": "object", "required": ["object", "data"], "properties":
  {"object": {"const": "list"}, "data": {"type": "array", "items": {"type": "object", "required":
  ["id", "object", "created_at", "last_activity_at", "requests", "prompt_tokens",
   "generated_tokens", "running"]}}}},
"Object": {"type": "object"}
})";

json::value Ref(std::string_view schema) {
  return json::object{{"$ref", "#/components/schemas/" + std::string(schema)}};
}

json::object Content(std::string_view type, json::value schema) {
  return {{type, {{"schema", std::move(schema)}}}};
}

json::object BodyOf(std::initializer_list<std::span<const ApiField>> tables) {
  json::object properties;
  json::array required;
  for (const std::span<const ApiField> table : tables) {
    for (const ApiField& field : table) {
      properties[field.name] = json::parse(json::string_view(field.schema));
      if (field.required) required.emplace_back(field.name);
    }
  }
  json::object schema = {
      {"type", "object"}, {"properties", std::move(properties)}, {"additionalProperties", false}};
  if (!required.empty()) schema["required"] = std::move(required);
  return {{"required", true}, {"content", Content("application/json", std::move(schema))}};
}

json::object Replies(std::string_view type, json::value schema, bool may_refuse) {
  json::object replies = {
      {"200", {{"description", "The answer"}, {"content", Content(type, std::move(schema))}}}};
  const json::object error = {{"description", "An error, which names the field where one is wrong"},
                              {"content", Content("application/json", Ref("Error"))}};
  for (const char* status :
       {"400", "401", "403", "404", "413", "429", "431", "500", "503", "504"}) {
    if (may_refuse) replies[status] = error;
  }
  return replies;
}

json::object Operation(std::string_view summary, std::string_view reply,
                       json::object body = json::object()) {
  json::object operation = {{"summary", summary},
                            {"responses", Replies("application/json", Ref(reply), true)}};
  if (!body.empty()) operation["requestBody"] = std::move(body);
  return operation;
}

// Replies may also be streams of server-sent events.
json::object Streams(json::object operation) {
  operation["responses"].at("200").at("content").as_object()["text/event-stream"] = {
      {"schema", {{"type", "string"}}}};
  return operation;
}

json::object Parameter(std::string_view name, const char* in, json::value schema) {
  return {{"name", name},
          {"in", in},
          {"required", in == std::string_view("path")},
          {"schema", std::move(schema)}};
}

json::object WithId(json::object operation, std::string_view name) {
  operation["parameters"] = {Parameter(name, "path", {{"type", "string"}, {"minLength", 1}})};
  return operation;
}

json::object ResponsePaths() {
  json::object input =
      WithId(Operation("What a response was asked with", "ItemList"), "response_id");
  json::array& parameters = input["parameters"].as_array();
  parameters.push_back(
      Parameter("limit", "query", {{"type", "integer"}, {"minimum", 1}, {"maximum", 100}}));
  parameters.push_back(Parameter("order", "query", {{"enum", {"asc", "desc"}}}));
  parameters.push_back(Parameter("after", "query", {{"type", "string"}}));
  return {{"/v1/responses",
           {{"post", Streams(Operation("Answer, and keep the answer for a while", "Response",
                                       BodyOf({kGenerationFields, kResponseFields})))}}},
          {"/v1/responses/{response_id}",
           {{"get", WithId(Operation("A response that is kept", "Response"), "response_id")},
            {"delete", WithId(Operation("Forget a response", "Deleted"), "response_id")}}},
          {"/v1/responses/{response_id}/cancel",
           {{"post", WithId(Operation("End a response that runs", "Response"), "response_id")}}},
          {"/v1/responses/{response_id}/input_items", {{"get", std::move(input)}}}};
}

json::object Paths() {
  json::object paths = {
      {"/v1/completions",
       {{"post",
         Streams(Operation("Continue texts", "Completion",
                           BodyOf({kGenerationFields, kAnswerFields, kCompletionFields})))}}},
      {"/v1/chat/completions",
       {{"post", Streams(Operation("Answer a conversation", "ChatCompletion",
                                   BodyOf({kGenerationFields, kAnswerFields, kChatFields})))}}},
      {"/v1/embeddings",
       {{"post", Operation("Vectors of texts", "Embeddings", BodyOf({kEmbeddingFields}))}}},
      {"/v1/models", {{"get", Operation("The served names", "ModelList")}}},
      {"/v1/models/{model}", {{"get", WithId(Operation("One of them", "Model"), "model")}}},
      {"/tokenize",
       {{"post",
         Operation("Tokens of a text or of a conversation", "Tokens", BodyOf({kTokenizeFields}))}}},
      {"/detokenize",
       {{"post", Operation("The text of tokens", "Text", BodyOf({kDetokenizeFields}))}}},
      {"/tokenizer_info", {{"get", Operation("What prompts are made with", "Object")}}},
      {"/v1/sessions", {{"get", Operation("Conversations whose time is not over", "Sessions")}}},
      {"/v1/sessions/{session}",
       {{"delete", WithId(Operation("Forget one", "Deleted"), "session")}}},
      {"/health", {{"get", Operation("Whether the process answers; needs no key", "Object")}}},
      {"/ready", {{"get", Operation("Whether the model is loaded", "Object")}}},
      {"/version", {{"get", Operation("The server's version", "Object")}}},
      {"/config", {{"get", Operation("The effective options", "Object")}}},
      {"/openapi.json", {{"get", Operation("This document", "Object")}}},
      {"/metrics",
       {{"get",
         {{"summary", "Prometheus text"},
          {"responses", Replies("text/plain", json::object{{"type", "string"}}, true)}}}}}};
  for (auto& path : ResponsePaths()) paths[path.key()] = std::move(path.value());
  return paths;
}

}  // namespace

json::object OpenApiDocument(const std::string& version) {
  json::object document = {{"openapi", "3.1.0"},
                           {"info", {{"title", "TinyServe"}, {"version", version}}},
                           {"security", {json::object{{"key", json::array()}}, json::object()}},
                           {"paths", Paths()}};
  document["components"] = {
      {"schemas", json::parse(json::string_view(kSchemas))},
      {"securitySchemes", {{"key", {{"type", "http"}, {"scheme", "bearer"}}}}}};
  return document;
}

}  // namespace tinyserve
