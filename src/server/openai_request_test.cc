#include "server/openai_request.h"

#include <gtest/gtest.h>

#include <span>

namespace tinyserve {
namespace {

RequestLimits Limits() {
  RequestLimits limits;
  limits.models = {"m", "alias"};
  limits.vocab = 256;
  limits.context_tokens = 128;
  limits.prompts_max = 3;
  limits.choices_max = 4;
  limits.messages_max = 3;
  return limits;
}

struct Refusal {
  const char* body;
  const char* param;
  const char* words;  // of the message
  int status = 400;
};

CompletionRequest Completion(std::string_view body) {
  std::optional<ApiError> error;
  std::optional<CompletionRequest> request = ParseCompletionRequest(body, Limits(), &error);
  EXPECT_TRUE(request.has_value()) << body << ": " << (error ? error->message : "");
  return request ? *request : CompletionRequest();
}

ChatRequest ChatOf(std::string_view body) {
  std::optional<ApiError> error;
  std::optional<ChatRequest> request = ParseChatRequest(body, Limits(), &error);
  EXPECT_TRUE(request.has_value()) << body << ": " << (error ? error->message : "");
  return request ? *request : ChatRequest();
}

TEST(OpenAiRequest, CompletionDefaultsAreOpenAis) {
  const CompletionRequest request = Completion(R"({"prompt": "x"})");
  EXPECT_EQ(request.options.engine.sampling.temperature, 1.0f);
  EXPECT_EQ(request.options.engine.sampling.top_p, 1.0f);
  EXPECT_EQ(request.options.engine.top_logprobs, -1);
  EXPECT_EQ(request.options.max_tokens, 16u);
  EXPECT_EQ(request.options.n, 1u);
  EXPECT_FALSE(request.options.stream);
  EXPECT_FALSE(request.options.seed.has_value());
  EXPECT_FALSE(request.echo);
  EXPECT_TRUE(request.options.add_special);
  EXPECT_FALSE(ChatOf(R"({"messages": [{"role": "user", "content": "x"}]})").options.max_tokens);
}

TEST(OpenAiRequest, EveryFieldReachesTheEngine) {
  const CompletionRequest request = Completion(R"({
    "model": "alias", "prompt": [[1, 2], [3]], "temperature": 0.5, "top_p": 0.25, "top_k": 7,
    "min_p": 0.125, "presence_penalty": 1, "frequency_penalty": -1.5, "repetition_penalty": 1.25,
    "logit_bias": {"5": -100, "6": 1.5}, "seed": -1, "stop": ["a", "bc"], "stop_token_ids": [9],
    "ignore_eos": true, "min_tokens": 2, "max_tokens": 3.0, "logprobs": 2, "n": 2, "best_of": 2,
    "echo": true, "user": "u", "priority": 5, "metadata": {"a": "b"}, "store": true, "suffix": null,
    "tinyserve": {"selector": "box", "session": "s", "step_plugins": ["early_exit"]}})");
  const Request& engine = request.options.engine;
  ASSERT_EQ(request.prompts.size(), 2u);
  EXPECT_EQ(std::get<1>(request.prompts[0]), (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(engine.sampling.temperature, 0.5f);
  EXPECT_EQ(engine.sampling.top_p, 0.25f);
  EXPECT_EQ(engine.sampling.top_k, 7u);
  EXPECT_EQ(engine.sampling.min_p, 0.125f);
  EXPECT_EQ(engine.sampling.presence_penalty, 1.0f);
  EXPECT_EQ(engine.sampling.frequency_penalty, -1.5f);
  EXPECT_EQ(engine.sampling.repetition_penalty, 1.25f);
  EXPECT_EQ(engine.sampling.logit_bias,
            (std::vector<std::pair<int32_t, float>>{{5, -100.0f}, {6, 1.5f}}));
  EXPECT_EQ(request.options.seed, ~uint64_t{0});
  EXPECT_EQ(engine.stop, (std::vector<std::string>{"a", "bc"}));
  EXPECT_EQ(engine.stop_tokens, std::vector<int32_t>{9});
  EXPECT_TRUE(engine.ignore_eos);
  EXPECT_EQ(engine.min_tokens, 2u);
  EXPECT_EQ(request.options.max_tokens, 3u);
  EXPECT_EQ(engine.top_logprobs, 2);
  EXPECT_TRUE(engine.prompt_logprobs);
  EXPECT_EQ(request.options.n, 2u);
  EXPECT_EQ(engine.priority, Priority::kLow);
  EXPECT_EQ(engine.selector, "box");
  EXPECT_EQ(engine.step_plugins, std::vector<std::string>{"early_exit"});
  EXPECT_EQ(engine.session, "s");
}

TEST(OpenAiRequest, PromptsOfEveryForm) {
  EXPECT_EQ(std::get<0>(Completion(R"({"prompt": "ab"})").prompts.at(0)), "ab");
  EXPECT_EQ(Completion(R"({"prompt": ["a", "b"]})").prompts.size(), 2u);
  EXPECT_EQ(std::get<1>(Completion(R"({"prompt": [7, 8]})").prompts.at(0)),
            (std::vector<int32_t>{7, 8}));
}

void ExpectRefused(std::span<const Refusal> refusals) {
  for (const Refusal& refusal : refusals) {
    std::optional<ApiError> error;
    EXPECT_FALSE(ParseCompletionRequest(refusal.body, Limits(), &error)) << refusal.body;
    ASSERT_TRUE(error.has_value()) << refusal.body;
    EXPECT_EQ(error->param, refusal.param) << refusal.body;
    EXPECT_EQ(error->status, refusal.status) << refusal.body;
    EXPECT_NE(error->message.find(refusal.words), std::string::npos)
        << refusal.body << ": " << error->message;
  }
}

TEST(OpenAiRequest, WhatAnswersMustFollowIsSaidOnceAndWhole) {
  const Refusal refusals[] = {
      {R"({"prompt": "a", "response_format": {"type": "xml"}})", "response_format.type",
       "json_object"},
      {R"({"prompt": "a", "response_format": {"type": "json_schema"}})",
       "response_format.json_schema", "missing"},
      {R"({"prompt": "a",
           "response_format": {"type": "json_schema", "json_schema": {"name": "n"}}})",
       "response_format.json_schema.schema", "missing"},
      {R"({"prompt": "a",
           "response_format": {"type": "json_schema", "json_schema": {"schema": 1}}})",
       "response_format.json_schema.schema", "object"},
      {R"({"prompt": "a", "response_format": {"type": "json_object", "grammar": "a"}})",
       "response_format.grammar", "unknown"},
      {R"({"prompt": "a", "guided_regex": "a", "guided_choice": ["b"]})", "guided_choice",
       "give one"},
      {R"({"prompt": "a", "guided_choice": []})", "guided_choice", "1 to 1024"},
      {R"({"prompt": "a", "guided_choice": [""]})", "guided_choice", "empty"},
      {R"({"prompt": "a", "structured_outputs": {"structural_tag": "x"}})",
       "structured_outputs.structural_tag", "not supported"},
      {R"({"prompt": "a", "guided_regex": "a", "ignore_eos": true})", "ignore_eos", "not allowed"},
  };
  ExpectRefused(refusals);
}

TEST(OpenAiRequest, CompletionsThatAreRefusedNameTheField) {
  const Refusal refusals[] = {
      {"", "", "no JSON"},
      {"[]", "", "JSON object"},
      {"{} x", "", "no JSON"},
      {"{\"prompt\": \"\xff\"}", "", "no JSON"},
      {R"({})", "prompt", "missing"},
      {R"({"prompt": null})", "prompt", "missing"},
      {R"({"prompt": 3})", "prompt", "must be a string"},
      {R"({"prompt": []})", "prompt", "empty"},
      {R"({"prompt": [[]]})", "prompt", "empty"},
      {R"({"prompt": [["a"]]})", "prompt", "token id"},
      {R"({"prompt": ["a", [1]]})", "prompt", "must be a string"},
      {R"({"prompt": [1, "a"]})", "prompt", "token id"},
      {R"({"prompt": [256]})", "prompt", "0 to 255"},
      {R"({"prompt": [-1]})", "prompt", "0 to 255"},
      {R"({"prompt": [1.5]})", "prompt", "0 to 255"},
      {R"({"prompt": ["a", "b", "c", "d"]})", "prompt", "at most 3"},
      {R"({"prompt": "a", "frobnicate": 1})", "frobnicate", "unknown"},
      {R"({"prompt": "a", "frobnicate": null})", "frobnicate", "unknown"},
      {R"({"prompt": "a", "suffix": "b"})", "suffix", "not supported"},
      {R"({"prompt": "a", "prompt": "a"})", "prompt", "twice"},
      {R"({"prompt": "a", "metadata": {"b": [{"c": 1, "d": {}, "c": 1}]}})", "metadata.b.c",
       "twice"},
      {R"({"prompt": "a", "temperature": 1e999})", "temperature", "beyond all numbers"},
      {R"({"prompt": "a", "use_beam_search": true})", "use_beam_search", "other than false"},
      {R"({"prompt": "a", "length_penalty": 1.5})", "length_penalty", "other than 1"},
      {R"({"prompt": "a", "skip_special_tokens": false})", "skip_special_tokens", "true"},
      {R"({"prompt": "a", "tinyserve": {"session": "a\n"}})", "tinyserve.session", "control"},
      {R"({"prompt": "a", "temperature": 2.5})", "temperature", "from 0 to 2"},
      {R"({"prompt": "a", "temperature": "1"})", "temperature", "from 0 to 2"},
      {R"({"prompt": "a", "top_p": 0})", "top_p", "to 1"},
      {R"({"prompt": "a", "top_k": -2})", "top_k", "from -1"},
      {R"({"prompt": "a", "seed": 1e30})", "seed", "whole number"},
      {R"({"prompt": "a", "seed": 18446744073709551615})", "seed", "whole number"},
      {R"({"prompt": "a", "n": 0})", "n", "from 1"},
      {R"({"prompt": ["a", "b", "c"], "n": 2})", "n", "6 answers"},
      {R"({"prompt": "a", "best_of": 2})", "best_of", "not supported"},
      {R"({"prompt": "a", "logprobs": 21})", "logprobs", "to 20"},
      {R"({"prompt": "a", "logprobs": true})", "logprobs", "whole number"},
      {R"({"prompt": "a", "max_tokens": -1})", "max_tokens", "from 0"},
      {R"({"prompt": "a", "max_tokens": 0})", "max_tokens", "'echo' alone"},
      {R"({"prompt": "a", "max_tokens": 129})", "max_tokens", "to 128"},
      {R"({"prompt": "a", "stop": [""]})", "stop", "1 to 256"},
      {R"({"prompt": "a", "stop": {"a": 1}})", "stop", "string"},
      {R"({"prompt": "a", "stop_token_ids": [256]})", "stop_token_ids", "0 to 255"},
      {R"({"prompt": "a", "logit_bias": {"x": 1}})", "logit_bias", "no token id"},
      {R"({"prompt": "a", "logit_bias": {"256": 1}})", "logit_bias", "0 to 255"},
      {R"({"prompt": "a", "logit_bias": {"1": 101}})", "logit_bias", "-100 to 100"},
      {R"({"prompt": "a", "logit_bias": {"1": null}})", "logit_bias", "-100 to 100"},
      {R"({"prompt": "a", "stream": 1})", "stream", "true or false"},
      {R"({"prompt": "a", "stream_options": {}})", "stream_options", "'stream' alone"},
      {R"({"prompt": "a", "stream": true, "stream_options": {"x": 1}})", "stream_options.x",
       "unknown"},
      {R"({"prompt": "a", "stream": true, "echo": true, "logprobs": 1})", "echo", "stream"},
      {R"({"prompt": "a", "tinyserve": {"step_plugins": "early_exit"}})", "tinyserve.step_plugins",
       "a list of at most 8"},
      {R"({"prompt": "a", "tinyserve": {"selektor": "box"}})", "tinyserve.selektor", "unknown"},
      {R"({"prompt": "a", "tinyserve": {"deadline_ms": 0}})", "tinyserve.deadline_ms", "from 1"},
      {R"({"prompt": "a", "tinyserve": {"deadline_ms": 9e7}})", "tinyserve.deadline_ms", "from 1"},
      {R"({"prompt": "a", "tinyserve": 1})", "tinyserve", "object"},
      {R"({"prompt": "a", "service_tier": "gold"})", "service_tier", "flex"},
      {R"({"prompt": "a", "service_tier": "flex", "priority": 1})", "service_tier", "one of"},
      {R"({"prompt": "a", "model": "gpt-4"})", "model", "not served", 404},
  };
  ExpectRefused(refusals);
}

TEST(OpenAiRequest, GrammarsMayBeWrittenAsGbnf) {
  std::optional<ApiError> error;
  const auto read = [&](const char* grammar) {
    error.reset();
    return ParseCompletionRequest(
        std::string(R"({"prompt": "a", "structured_outputs": {"grammar": )") + grammar + "}}",
        Limits(), &error);
  };
  const auto request = read(R"("root ::= \"yes\" | \"no\"")");
  ASSERT_TRUE(request.has_value()) << error->message;
  EXPECT_EQ(request->options.grammar->text, "start: r0\nr0: \"yes\" | \"no\"");
  EXPECT_FALSE(read(R"("root ::= other")"));
  EXPECT_EQ(error->param, "structured_outputs.grammar");
}

TEST(OpenAiRequest, FieldsThatAskForWhatIsDoneAnywayAreTaken) {
  ChatOf(R"({"messages": [{"role": "user", "content": "x"}], "use_beam_search": false,
      "length_penalty": 1.0, "skip_special_tokens": true, "spaces_between_special_tokens": true,
      "include_stop_str_in_output": false, "verbosity": "medium", "function_call": "none",
      "continue_final_message": false, "echo": false, "prompt_cache_retention": "24h"})");
}

TEST(OpenAiRequest, TheEarlierOfTwoDeadlinesCounts) {
  RequestLimits limits = Limits();
  const auto deadline = [&](const char* own) {
    std::optional<ApiError> error;
    const std::string body = std::string(R"({"prompt": "a", "input": "a")") + own + "}";
    std::string completion = body, embedding = body;
    completion.erase(completion.find(R"(, "input": "a")"), 14);
    embedding.erase(embedding.find(R"("prompt": "a", )"), 15);
    const auto first = ParseCompletionRequest(completion, limits, &error);
    const auto second = ParseEmbeddingRequest(embedding, limits, /*dim=*/8, &error);
    EXPECT_FALSE(error.has_value()) << error->message;
    EXPECT_EQ(first->options.engine.deadline_ms, second->deadline_ms);
    return second->deadline_ms;
  };
  const char* own = R"(, "tinyserve": {"deadline_ms": 2500})";
  EXPECT_EQ(deadline(""), 0u);
  EXPECT_EQ(deadline(own), 2500u);
  limits.request_seconds_max = 2;
  EXPECT_EQ(deadline(""), 2000u);
  EXPECT_EQ(deadline(R"(, "tinyserve": {})"), 2000u);
  EXPECT_EQ(deadline(own), 2000u);
  limits.request_seconds_max = 3;
  EXPECT_EQ(deadline(own), 2500u);
}

TEST(OpenAiRequest, APromptLongerThanTheContextHasItsOwnCode) {
  std::string body = R"({"prompt": [1)";
  for (int i = 0; i < 128; ++i) body += ",1";
  std::optional<ApiError> error;
  EXPECT_FALSE(ParseCompletionRequest(body + "]}", Limits(), &error));
  EXPECT_EQ(error->code, "context_length_exceeded");
  EXPECT_EQ(error->param, "prompt");
}

TEST(OpenAiRequest, DeepNestingIsRefused) {
  std::string body = R"({"prompt": )" + std::string(100000, '[');
  std::optional<ApiError> error;
  EXPECT_FALSE(ParseCompletionRequest(body, Limits(), &error));
  EXPECT_EQ(error->code, "invalid_json");
}

TEST(OpenAiRequest, ChatMessagesAndParts) {
  const ChatRequest request = ChatOf(R"({"messages": [
      {"role": "developer", "content": "be", "name": "boss"},
      {"role": "assistant", "content": "a", "refusal": null, "tool_calls": [], "audio": null},
      {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]}],
      "max_tokens": 5, "max_completion_tokens": 5, "logprobs": true, "top_logprobs": 3,
      "tools": [], "tool_choice": "auto", "parallel_tool_calls": true, "stream": true,
      "response_format": {"type": "text"}, "modalities": ["text"],
      "stream_options": {"include_usage": true, "continuous_usage_stats": true}})");
  const auto& messages = request.conversation.messages;
  ASSERT_EQ(messages.size(), 3u);
  EXPECT_EQ(messages[0].at("role"), "system");
  EXPECT_EQ(messages[0].at("name"), "boss");
  EXPECT_EQ(messages[2].at("content"), "xy");
  EXPECT_FALSE(request.conversation.calls());
  EXPECT_EQ(request.options.max_tokens, 5u);
  EXPECT_EQ(request.options.engine.top_logprobs, 3);
  EXPECT_TRUE(request.options.include_usage);
  EXPECT_TRUE(request.options.continuous_usage);
  EXPECT_TRUE(request.conversation.add_generation_prompt);
}

TEST(OpenAiRequest, ChatsThatAreRefusedNameTheField) {
  const std::string message = R"("messages": [{"role": "user", "content": "x"}])";
  const Refusal refusals[] = {
      {R"({})", "messages", "at least one"},
      {R"({"messages": []})", "messages", "at least one"},
      {R"({"messages": [3]})", "messages[0]", "an object"},
      {R"({"messages": [{"role": "wizard", "content": "x"}]})", "messages[0].role", "must be"},
      {R"({"messages": [{"role": "user"}]})", "messages[0].content", "missing"},
      {R"({"messages": [{"role": "user", "content": 3}]})", "messages[0].content", "string"},
      {R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})",
       "messages[0].content[0].type", "text alone"},
      {R"({"messages": [{"role": "user", "content": [{"type": "text"}]}]})",
       "messages[0].content[0].text", "missing"},
      {R"({"messages": [{"role": "user", "content": "x", "name": 3}]})", "messages[0].name",
       "string"},
      {R"({"messages": [{"role": "user", "content": "x", "nam": "n"}]})", "messages[0].nam",
       "unknown"},
      {R"({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]})",
       "messages[0].tool_calls[0].function", "missing"},
      {R"({"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]})",
       "messages[0].tool_calls", "not supported"},
      {R"({"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "type": "function",
           "function": {"name": "f", "arguments": "[1]"}}]}]})",
       "messages[0].tool_calls[0].function.arguments", "JSON object"},
      {R"({"messages": [{"role": "tool", "content": "x"}]})", "messages[0].tool_call_id",
       "missing"},
      {R"({"messages": [1, 2, 3, 4]})", "messages", "at most 3"},
  };
  for (const Refusal& refusal : refusals) {
    std::optional<ApiError> error;
    EXPECT_FALSE(ParseChatRequest(refusal.body, Limits(), &error)) << refusal.body;
    ASSERT_TRUE(error.has_value()) << refusal.body;
    EXPECT_EQ(error->param, refusal.param) << refusal.body;
    EXPECT_NE(error->message.find(refusal.words), std::string::npos) << error->message;
  }
  const std::pair<const char*, const char*> fields[] = {
      {R"("tools": [{}])", "tools[0].type"},
      {R"("tools": [{"type": "function", "function": {"name": "a b"}}])", "tools[0].function.name"},
      {R"("tools": [{"type": "function", "function": {"name": "a"}},
                    {"type": "function", "function": {"name": "a"}}])",
       "tools[1].function.name"},
      {R"("tools": [{"type": "function", "function": {"name": "a"}}],
          "tool_choice": {"type": "function", "function": {"name": "b"}})",
       "tool_choice"},
      {R"("tools": [{"type": "function", "function": {"name": "a"}}], "guided_regex": "a")",
       "tools"},
      {R"("tool_choice": "required")", "tool_choice"},
      {R"("chat_template_kwargs": {"messages": []})", "chat_template_kwargs.messages"},
      {R"("top_logprobs": 1)", "top_logprobs"},
      {R"("max_tokens": 0)", "max_tokens"},
      {R"("max_tokens": 1, "max_completion_tokens": 2)", "max_tokens"},
      {R"("reasoning_effort": "low")", "reasoning_effort"},
      {R"("verbosity": "low")", "verbosity"},
      {R"("function_call": "auto")", "function_call"},
      {R"("continue_final_message": true)", "continue_final_message"},
      {R"("echo": true)", "echo"},
      {R"("modalities": ["audio"])", "modalities"},
      {R"("logprobs": 1)", "logprobs"},
      {R"("prompt": "x")", "prompt"}};
  for (const auto& [field, param] : fields) {
    std::optional<ApiError> error;
    EXPECT_FALSE(ParseChatRequest("{" + message + ", " + field + "}", Limits(), &error)) << field;
    ASSERT_TRUE(error.has_value()) << field;
    EXPECT_EQ(error->param, param);
  }
}

}  // namespace
}  // namespace tinyserve
