#include "server/service.h"

#include <gtest/gtest.h>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>

#include "server/service_testing.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

TEST_F(ServiceTest, CompletionAnswersEveryPromptNTimes) {
  HttpReply reply =
      Post("/v1/completions",
           R"({"prompt": ["ab", "c"], "n": 2, "seed": 5, "max_tokens": 4, "temperature": 0})");
  ASSERT_NE(reply.work, nullptr);
  EXPECT_FALSE(reply.streams);
  ASSERT_EQ(engine_.submitted.size(), 4u);
  EXPECT_EQ(engine_.submitted[1].request.prompt, (std::vector<int32_t>{'^', 'a', 'b'}));
  EXPECT_EQ(engine_.submitted[2].request.sampling.seed, 6u);
  EXPECT_EQ(engine_.submitted[3].request.prompt, (std::vector<int32_t>{'^', 'c'}));
  for (RequestId id : {3, 1, 4, 2}) {
    engine_.Say(id, std::to_string(id));
    std::string none;
    EXPECT_FALSE(reply.work->Advance(&none));
  }
  engine_.Finish(1, FinishReason::kStop, Status(), "!");
  for (RequestId id : {2, 3, 4}) engine_.Finish(id, FinishReason::kLength);
  const json::object whole = Whole(&reply);
  EXPECT_EQ(whole.at("object"), "text_completion");
  EXPECT_EQ(whole.at("model"), "fake");
  const json::array& choices = whole.at("choices").as_array();
  ASSERT_EQ(choices.size(), 4u);
  EXPECT_EQ(choices[0].at("text"), "1!");
  EXPECT_EQ(choices[0].at("finish_reason"), "stop");
  EXPECT_EQ(choices[3].at("index"), 3);
  EXPECT_EQ(choices[3].at("text"), "4");
  EXPECT_EQ(choices[3].at("finish_reason"), "length");
  const json::object& usage = whole.at("usage").as_object();
  EXPECT_EQ(usage.at("prompt_tokens"), 5);  // a prompt counts once
  EXPECT_EQ(usage.at("completion_tokens"), 4);
  EXPECT_EQ(usage.at("total_tokens"), 9);
  EXPECT_EQ(usage.at("prompt_tokens_details").at("cached_tokens"), 2);  // 1 of each prompt
  const json::object& own = usage.at("tinyserve").as_object();
  EXPECT_EQ(own.at("queue_seconds"), 0.25);  // the longest
  EXPECT_EQ(own.at("pages_held"), 32);       // of all four
  EXPECT_EQ(own.at("pages_read"), 8);
  EXPECT_EQ(own.at("kv_bytes_read"), 400);
  EXPECT_EQ(own.at("kv_fraction_read"), 0.25);
  EXPECT_EQ(own.at("hit_rate"), 0.75);
}

TEST_F(ServiceTest, EchoGivesThePromptWithItsLogprobs) {
  HttpReply reply = Post("/v1/completions",
                         R"({"prompt": [97, 98], "echo": true, "logprobs": 1, "max_tokens": 1})");
  engine_.Say(1, "z", -0.5, {{'z', -0.5}});
  engine_.Finish(1, FinishReason::kLength);
  const json::object whole = Whole(&reply);
  const json::object& choice = whole.at("choices").at(0).as_object();
  EXPECT_EQ(choice.at("text"), "abz");
  const json::object& logprobs = choice.at("logprobs").as_object();
  EXPECT_EQ(logprobs.at("tokens"), (json::array{"a", "b", "z"}));
  EXPECT_EQ(logprobs.at("token_logprobs"), (json::array{nullptr, -1, -0.5}));
  EXPECT_EQ(logprobs.at("text_offset"), (json::array{0, 1, 2}));
  EXPECT_TRUE(logprobs.at("top_logprobs").at(0).is_null());
  EXPECT_EQ(logprobs.at("top_logprobs").at(1).at("b"), -1);
}

TEST_F(ServiceTest, ChatStreamsATokenAChunk) {
  HttpReply reply = Post("/v1/chat/completions", R"({"messages": [{"role": "user", "content": "q"}],
      "stream": true, "stream_options": {"include_usage": true}})");
  ASSERT_TRUE(reply.streams);
  EXPECT_EQ(reply.content_type, "text/event-stream");
  const Request& request = engine_.submitted.at(1).request;
  EXPECT_EQ(*engine_.Detokenize(request.prompt), "user:q;assistant:");
  EXPECT_EQ(request.max_tokens, 128 - request.prompt.size());  // what the context leaves
  EXPECT_TRUE(Events(&reply, false).empty());
  engine_.Say(1, "He");
  std::vector<std::string> events = Events(&reply, false);
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(Choice(events[0]).at("delta").at("role"), "assistant");
  EXPECT_EQ(Choice(events[1]).at("delta").at("content"), "He");
  EXPECT_TRUE(json::parse(events[1]).at("usage").is_null());
  engine_.Say(1, "");  // half a character
  EXPECT_TRUE(Events(&reply, false).empty());
  engine_.Say(1, "\xc3\xa9");
  engine_.Say(1, "y");
  EXPECT_EQ(Events(&reply, false).size(), 2u);
  engine_.Finish(1, FinishReason::kStop);
  events = Events(&reply, true);
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(Choice(events[0]).at("finish_reason"), "stop");
  EXPECT_TRUE(json::parse(events[1]).at("choices").as_array().empty());
  EXPECT_EQ(json::parse(events[1]).at("usage").at("completion_tokens"), 4);
  EXPECT_EQ(events[2], "[DONE]");
}

TEST_F(ServiceTest, LogprobsOfTokensWithoutTextComeWithTheNextChunk) {
  HttpReply reply = Post("/v1/chat/completions", R"({"messages": [{"role": "user", "content": "q"}],
      "stream": true, "logprobs": true, "top_logprobs": 1})");
  engine_.Say(1, "", -1, {{'x', -0.25}});
  engine_.Say(1, "\xc3\xa9", -2, {{'y', -0.5}});
  engine_.Finish(1, FinishReason::kLength);
  const std::vector<std::string> events = Events(&reply, true);
  ASSERT_EQ(events.size(), 4u);
  const json::object choice = Choice(events[1]);
  const json::array& content = choice.at("logprobs").at("content").as_array();
  ASSERT_EQ(content.size(), 2u);
  EXPECT_EQ(content[0].at("logprob"), -1);
  EXPECT_EQ(content[0].at("bytes"), (json::array{0xc3}));
  EXPECT_EQ(content[0].at("top_logprobs").at(0).at("token"), "x");
  EXPECT_TRUE(Choice(events[2]).at("logprobs").is_null());
}

constexpr const char* kToolsAsked =
    R"("messages": [{"role": "user", "content": "q"}], "tools": [{"type": "function", "function":
       {"name": "f", "parameters": {"type": "object",
        "properties": {"a": {"type": "integer"}}}}}])";

TEST_F(ServiceTest, CallsOfToolsAreStreamedAsTheyAreWritten) {
  engine_.model().context_tokens = 4096;
  HttpReply reply =
      Post("/v1/chat/completions", std::string("{\"stream\": true, ") + kToolsAsked + "}");
  const Request& request = engine_.submitted.at(1).request;
  // The template of the fake takes no tools, so they are told in the system message.
  EXPECT_EQ(engine_.Detokenize(request.prompt)->rfind("system:You can call", 0), 0u);
  EXPECT_TRUE(request.spell_control);
  EXPECT_EQ(request.constraint, nullptr);
  engine_.Say(1, "Well <tool");
  engine_.Say(1, "_call>\n{\"name\": \"f\",");
  std::vector<std::string> events = Events(&reply, false);
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(Choice(events[1]).at("delta").at("content"), "Well");
  engine_.Say(1, " \"arguments\": {\"a\"");
  engine_.Say(1, ": 1}}\n</tool_call>");
  engine_.Finish(1, FinishReason::kStop);
  events = Events(&reply, true);
  ASSERT_EQ(events.size(), 4u);
  const json::object first = Choice(events[0]), second = Choice(events[1]);
  const json::object& begun = first.at("delta").at("tool_calls").at(0).as_object();
  EXPECT_EQ(begun.at("function").at("name"), "f");
  EXPECT_EQ(begun.at("id").as_string().size(), 9u);
  EXPECT_EQ(begun.at("index"), 0);
  EXPECT_EQ(begun.at("function").at("arguments"), "{\"a\"");
  const json::object& more = second.at("delta").at("tool_calls").at(0).as_object();
  EXPECT_EQ(more.at("function").at("arguments"), ": 1}");
  EXPECT_FALSE(more.contains("id"));
  EXPECT_EQ(Choice(events[2]).at("finish_reason"), "tool_calls");
}

TEST_F(ServiceTest, RequiredCallsAreBoundByAGrammar) {
  engine_.model().context_tokens = 4096;
  engine_.tokenizer().chat_template = "{{ tools }} [TOOL_CALLS]";
  HttpReply reply = Post("/v1/chat/completions",
                         std::string("{\"tool_choice\": \"required\", ") + kToolsAsked + "}");
  ASSERT_EQ(engine_.grammars.size(), 1u);
  EXPECT_EQ(engine_.grammars[0].first, GrammarKind::kLark);
  EXPECT_NE(engine_.grammars[0].second.find("%json {"), std::string::npos);
  const Request& request = engine_.submitted.at(1).request;
  const std::string prompt = *engine_.Detokenize(request.prompt);
  EXPECT_TRUE(prompt.ends_with("assistant:[TOOL_CALLS]")) << prompt;
  EXPECT_NE(prompt.find("\"tools\": [{"), std::string::npos);
  engine_.Say(1, "[{\"name\": \"f\", \"arguments\": {\"a\": 2}}]");
  engine_.Finish(1, FinishReason::kStop);
  const json::object whole = Whole(&reply);
  const json::object& choice = whole.at("choices").at(0).as_object();
  EXPECT_EQ(choice.at("finish_reason"), "tool_calls");
  EXPECT_TRUE(choice.at("message").at("content").is_null());
  const json::object& call = choice.at("message").at("tool_calls").at(0).as_object();
  EXPECT_EQ(call.at("function").at("arguments"), "{\"a\": 2}");
  EXPECT_FALSE(call.contains("index"));
}

TEST_F(ServiceTest, ResultsOfCallsGoBack) {
  engine_.model().context_tokens = 4096;
  engine_.tokenizer().chat_template = "{{ tools }}";
  const HttpReply reply = Post("/v1/chat/completions", R"({"messages": [
      {"role": "user", "content": "q"},
      {"role": "assistant", "content": null, "tool_calls": [
        {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
      {"role": "tool", "tool_call_id": "c", "name": "f", "content": "7"}]})");
  ASSERT_NE(reply.work, nullptr) << reply.body;
  const std::string prompt = *engine_.Detokenize(engine_.submitted.at(1).request.prompt);
  EXPECT_NE(prompt.find("\"arguments\":{\"a\":1}"), std::string::npos) << prompt;
  EXPECT_NE(prompt.find("tool:7;"), std::string::npos) << prompt;
}

TEST_F(ServiceTest, ToolsThatMayNotBeCalledAreNotTold) {
  Post("/v1/chat/completions", std::string("{\"tool_choice\": \"none\", ") + kToolsAsked + "}");
  EXPECT_EQ(*engine_.Detokenize(engine_.submitted.at(1).request.prompt), "user:q;assistant:");
}

TEST_F(ServiceTest, ReasoningIsApartFromTheAnswer) {
  engine_.tokenizer().chat_template = "<think></think>";
  engine_.prompt_end = "<think>\n";
  HttpReply reply = Post("/v1/chat/completions", R"({"messages": [{"role": "user", "content": "q"}],
      "chat_template_kwargs": {"enable_thinking": true}})");
  const std::string prompt = *engine_.Detokenize(engine_.submitted.at(1).request.prompt);
  EXPECT_NE(prompt.find("{\"enable_thinking\": true}"), std::string::npos) << prompt;
  engine_.Say(1, "Hm.\n</think>\n\nYes.");
  engine_.Finish(1, FinishReason::kStop);
  const json::object whole = Whole(&reply);
  const json::object& message = whole.at("choices").at(0).at("message").as_object();
  EXPECT_EQ(message.at("reasoning_content"), "Hm.");
  EXPECT_EQ(message.at("content"), "Yes.");
}

TEST_F(ServiceTest, ContinuousUsageIsInEveryChunk) {
  HttpReply reply = Post("/v1/completions", R"({"prompt": "a", "stream": true, "echo": true,
      "stream_options": {"include_usage": true, "continuous_usage_stats": true}})");
  engine_.Say(1, "b");
  const std::vector<std::string> events = Events(&reply, false);
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(Choice(events[0]).at("text"), "a");
  EXPECT_EQ(json::parse(events[1]).at("usage").at("completion_tokens"), 1);
  EXPECT_EQ(json::parse(events[1]).at("usage").at("prompt_tokens"), 2);
}

TEST_F(ServiceTest, WhatIsLeftBehindIsCancelled) {
  HttpReply reply = Post("/v1/completions", R"({"prompt": ["a", "b"], "stream": true})");
  engine_.Finish(1, FinishReason::kStop);
  reply.work.reset();
  EXPECT_FALSE(engine_.submitted.at(1).cancelled);
  EXPECT_TRUE(engine_.submitted.at(2).cancelled);
  engine_.Say(2, "late");  // the engine may still be in the middle of a step
  engine_.Finish(2, FinishReason::kCancelled);
}

TEST_F(ServiceTest, ASlowReaderIsCancelledAndToldSo) {
  HttpReply reply =
      Post("/v1/completions", R"({"prompt": "a", "stream": true, "max_tokens": 120, "n": 1})");
  int woken = 0;
  reply.work->SetWake([&](News) { ++woken; });
  for (int i = 0; i < 2000; ++i) engine_.Say(1, "x");
  EXPECT_TRUE(engine_.submitted.at(1).cancelled);
  EXPECT_EQ(woken, 2);  // for the first event, and for giving up
  const std::vector<std::string> events = Events(&reply, true);
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(json::parse(events[0]).at("error").at("code"), "slow_reader");
}

TEST_F(ServiceTest, EngineErrorsBecomeReplies) {
  HttpReply reply = Post("/v1/completions", R"({"prompt": "a"})");
  engine_.Say(1, "x");
  engine_.Finish(1, FinishReason::kError, Status(Code::kCorrupt, "logits are not finite"));
  std::string none;
  EXPECT_TRUE(reply.work->Advance(&none));
  EXPECT_EQ(reply.work->Whole().status, 500);
  HttpReply stream = Post("/v1/completions", R"({"prompt": "a", "stream": true})");
  engine_.Finish(2, FinishReason::kError, Status(Code::kCorrupt, "logits are not finite"));
  const std::vector<std::string> events = Events(&stream, true);
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(json::parse(events[0]).at("error").at("message"), "logits are not finite");
  HttpReply stopped = Post("/v1/completions", R"({"prompt": "a"})");
  engine_.Finish(3, FinishReason::kCancelled);
  EXPECT_TRUE(stopped.work->Advance(&none));
  EXPECT_EQ(stopped.work->Whole().status, 503);
}

TEST_F(ServiceTest, WhatTakesLongerThanItsDeadlineIsAnError) {
  const std::string own = R"("tinyserve": {"deadline_ms": 1500})";
  HttpReply reply = Post("/v1/completions", R"({"prompt": "a", )" + own + "}");
  EXPECT_EQ(engine_.submitted[1].request.deadline_ms, 1500u);
  engine_.Say(1, "x");
  engine_.Finish(1, FinishReason::kDeadline);
  std::string none;
  EXPECT_TRUE(reply.work->Advance(&none));
  const HttpReply late = reply.work->Whole();
  EXPECT_EQ(late.status, 504);
  EXPECT_EQ(json::parse(late.body).at("error").at("code"), "deadline_exceeded");
  HttpReply stream =
      Post("/v1/chat/completions", R"({"messages": [{"role": "user", "content": "a"}],
                                                     "stream": true, )" +
                                       own + "}");
  engine_.Say(2, "x");
  engine_.Finish(2, FinishReason::kDeadline);
  const std::vector<std::string> events = Events(&stream, true);
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(Choice(events[1]).at("delta").at("content"), "x");
  EXPECT_EQ(json::parse(events[2]).at("error").at("code"), "deadline_exceeded");
  HttpReply vectors = Post("/v1/embeddings", R"({"input": ["a", "b"], )" + own + "}");
  EXPECT_LE(engine_.submitted[4].request.deadline_ms, 1500u);
  EXPECT_GT(engine_.submitted[4].request.deadline_ms, 0u);
  engine_.Finish(3, FinishReason::kDeadline);
  EXPECT_TRUE(vectors.work->Advance(&none));
  EXPECT_EQ(vectors.work->Whole().status, 504);
  const std::string text = Ask("GET", "/metrics").body;
  EXPECT_NE(text.find("{engine=\"0\",finished_reason=\"abort\",model_name=\"fake\"} 3\n"),
            std::string::npos);
}

TEST_F(ServiceTest, EveryAnswerHasAStateOfTheGrammarOfItsOwn) {
  const struct {
    const char* fields;
    GrammarKind kind;
    const char* text;
  } cases[] = {
      {R"("response_format": {"type": "json_object"})", GrammarKind::kJsonSchema,
       R"({"type": "object"})"},
      {R"("response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": true,
          "schema": {"type": "integer"}}})",
       GrammarKind::kJsonSchema, R"({"type": "integer"})"},
      {R"("guided_json": "{}")", GrammarKind::kJsonSchema, "{}"},
      {R"("guided_regex": "a+")", GrammarKind::kRegex, "a+"},
      {R"("guided_choice": ["a", "\"b"])", GrammarKind::kLark, R"(start: "a" | "\"b")"},
      {R"("structured_outputs": {"grammar": "start: A"})", GrammarKind::kLark, "start: A"},
      {R"("structured_outputs": {"json_object": true})", GrammarKind::kJsonSchema,
       R"({"type": "object"})"}};
  for (const auto& c : cases) {
    engine_.submitted.clear();
    engine_.grammars.clear();
    const HttpReply reply =
        Post("/v1/completions", std::string(R"({"prompt": "a", "n": 2, )") + c.fields + "}");
    ASSERT_NE(reply.work, nullptr) << c.fields << reply.body;
    ASSERT_EQ(engine_.grammars.size(), 1u);
    EXPECT_EQ(engine_.grammars[0].first, c.kind);
    EXPECT_EQ(engine_.grammars[0].second, c.text);
    EXPECT_NE(engine_.submitted.at(1).request.constraint, nullptr);
    EXPECT_NE(engine_.submitted.at(1).request.constraint,
              engine_.submitted.at(2).request.constraint);
  }
  const HttpReply refused = Post("/v1/completions", R"({"prompt": "a", "guided_regex": "refuse"})");
  EXPECT_EQ(refused.status, 400);
  EXPECT_EQ(json::parse(refused.body).at("error").at("param"), "guided_regex");
}

TEST_F(ServiceTest, EmbeddingsComeInTheOrderOfTheirInputs) {
  HttpReply reply = Post("/v1/embeddings", R"({"model": "alias", "input": ["a", "bc"],
      "tinyserve": {"pooling": "last"}, "user": "u", "dimensions": 2})");
  ASSERT_EQ(engine_.submitted.size(), 2u) << reply.body;
  EXPECT_EQ(engine_.submitted[2].request.prompt, (std::vector<int32_t>{'^', 'b', 'c'}));
  EXPECT_EQ(engine_.submitted[1].request.pooling, Pooling::kLast);
  EXPECT_EQ(engine_.submitted[1].request.max_tokens, 0u);
  engine_.Finish(2, FinishReason::kLength);
  std::string none;
  EXPECT_FALSE(reply.work->Advance(&none));
  engine_.Finish(1, FinishReason::kLength);
  json::object whole = Whole(&reply);
  EXPECT_EQ(whole.at("object"), "list");
  EXPECT_EQ(whole.at("model"), "fake");
  EXPECT_EQ(whole.at("usage").at("prompt_tokens"), 5);
  EXPECT_EQ(whole.at("usage").at("total_tokens"), 5);
  EXPECT_EQ(whole.at("data").at(0).at("embedding"), (json::array{0.5, 97}));
  EXPECT_EQ(whole.at("data").at(1).at("index"), 1);
  EXPECT_EQ(whole.at("data").at(1).at("embedding"), (json::array{0.5, 99}));
  HttpReply coded = Post("/v1/embeddings", R"({"input": [97, 98], "encoding_format": "base64"})");
  EXPECT_EQ(engine_.submitted[3].request.pooling, Pooling::kMean);
  engine_.Finish(3, FinishReason::kLength);
  EXPECT_EQ(Whole(&coded).at("data").at(0).at("embedding"), "AAAAPwAAxEI=");
}

TEST_F(ServiceTest, EmbeddingsOfManyInputsAreAskedForInTurn) {
  const std::string many = [] {
    std::string list = "[[1]";
    for (int i = 1; i < 100; ++i) list += ",[1]";
    return list + "]";
  }();
  HttpReply reply = Post("/v1/embeddings", R"({"input": )" + many + "}");
  EXPECT_EQ(engine_.submitted.size(), 32u);
  std::string none;
  for (RequestId id = 1; id <= 40; ++id) {
    engine_.submissions_max = id < 20 ? 40 : 1000;  // others fill the queue for a while
    engine_.Finish(id, FinishReason::kLength);
    EXPECT_FALSE(reply.work->Advance(&none));
  }
  EXPECT_EQ(engine_.submitted.size(), 72u);
  reply.work.reset();
  for (RequestId id = 1; id <= 72; ++id)
    EXPECT_EQ(engine_.submitted.at(id).cancelled, id > 40) << id;
}

TEST_F(ServiceTest, EmbeddingsRefuseByName) {
  const struct {
    const char *body, *param;
  } cases[] = {{R"({})", "input"},
               {R"({"input": []})", "input"},
               {R"({"input": ""})", "input"},
               {R"({"input": ["a", 5]})", "input"},
               {R"({"input": [[1], "a"]})", "input"},
               {R"({"input": [256]})", "input"},
               {R"({"input": "a", "dimensions": 1})", "dimensions"},
               {R"({"input": "a", "encoding_format": "int8"})", "encoding_format"},
               {R"({"input": "a", "tinyserve": {"pooling": "max"}})", "tinyserve.pooling"},
               {R"({"input": "a", "tinyserve": {"selector": "full"}})", "tinyserve.selector"},
               {R"({"input": "a", "stream": true})", "stream"}};
  for (const auto& c : cases) {
    std::string body = c.body;
    if (body == R"({"input": ""})") body.insert(1, R"("add_special_tokens": false, )");
    const HttpReply reply = Post("/v1/embeddings", body);
    EXPECT_EQ(reply.status, 400) << body;
    EXPECT_EQ(json::parse(reply.body).at("error").at("param"), c.param) << body;
  }
  const HttpReply reply = Post("/v1/embeddings", R"({"input": ")" + std::string(128, 'a') + "\"}");
  EXPECT_EQ(json::parse(reply.body).at("error").at("code"), "context_length_exceeded");
  EXPECT_TRUE(engine_.submitted.empty());
  engine_.submissions_max = 0;
  EXPECT_EQ(Post("/v1/embeddings", R"({"input": "a"})").status, 429);
}

TEST_F(ServiceTest, AFullQueueGivesA429AndCancelsTheRest) {
  engine_.submissions_max = 1;
  const HttpReply reply = Post("/v1/completions", R"({"prompt": "a", "n": 2})");
  EXPECT_EQ(reply.status, 429);
  EXPECT_EQ(reply.headers, (HeaderList{{"Retry-After", "1"}}));
  EXPECT_TRUE(engine_.submitted.at(1).cancelled);
  engine_.submissions_max = 9;
  engine_.refusal = Status(Code::kInvalidArgument, "selector 'boxes': there is no such selector");
  const HttpReply refused = Post("/v1/completions", R"({"prompt": "a"})");
  EXPECT_EQ(refused.status, 400);
  EXPECT_EQ(json::parse(refused.body).at("error").at("param"), "tinyserve.selector");
  engine_.refusal = Status(Code::kInvalidArgument, "step_plugins 'x': there is no step plugin 'x'");
  const HttpReply other = Post("/v1/completions", R"({"prompt": "a"})");
  EXPECT_EQ(json::parse(other.body).at("error").at("param"), "tinyserve.step_plugins");
}

TEST_F(ServiceTest, WhatDoesNotFitTheContextIsRefused) {
  const std::string text(140, 'a');
  HttpReply reply = Post("/v1/completions", R"({"prompt": ")" + text + R"("})");
  EXPECT_EQ(reply.status, 400);
  EXPECT_EQ(json::parse(reply.body).at("error").at("code"), "context_length_exceeded");
  reply = Post("/v1/chat/completions",
               R"({"messages": [{"role": "user", "content": ")" + text + R"("}]})");
  EXPECT_EQ(json::parse(reply.body).at("error").at("code"), "context_length_exceeded");
  EXPECT_EQ(json::parse(reply.body).at("error").at("param"), "messages");
  EXPECT_TRUE(engine_.submitted.empty());
}

TEST_F(ServiceTest, HealthTellsWhatTheDeviceFailsWith) {
  engine_.device_error = "the device is lost";
  const HttpReply reply = Ask("GET", "/health");
  EXPECT_EQ(reply.status, 503);
  EXPECT_EQ(json::parse(reply.body).at("error"), "the device is lost");
}

TEST_F(ServiceTest, EveryRouteButHealthAndThePageNeedsAKey) {
  keys_.Set({"good", "other"});
  for (const char* path : {"/", "/health"}) EXPECT_EQ(Ask("GET", path).status, 200) << path;
  for (const char* path : {"/v1/models", "/metrics", "/ready", "/version", "/config",
                           "/tokenizer_info", "/dashboard/state", "/nothing"}) {
    EXPECT_EQ(Ask("GET", path).status, 401) << path;
    EXPECT_EQ(Ask("GET", path, "", {{"authorization", "Bearer bad"}}).status, 401) << path;
  }
  EXPECT_EQ(Post("/v1/completions", R"({"prompt": "a"})").status, 401);
  EXPECT_EQ(Ask("GET", "/v1/models", "", {{"authorization", "Bearer good"}}).status, 200);
  EXPECT_EQ(Ask("GET", "/nothing", "", {{"authorization", "Bearer good"}}).status, 404);
  for (const char* key : {"Bearer good", "Bearer other", "Bearer good"})
    Ask("POST", "/v1/completions", R"({"prompt": "a"})", {{"authorization", key}});
  ASSERT_EQ(engine_.submitted.size(), 3u);
  EXPECT_NE(engine_.submitted[1].request.salt, engine_.submitted[2].request.salt);
  EXPECT_EQ(engine_.submitted[1].request.salt, engine_.submitted[3].request.salt);
}

TEST_F(ServiceTest, RequestsHaveTheirClientAndTheirSalt) {
  Post("/v1/completions", R"({"prompt": "a", "cache_salt": "x"})");
  EXPECT_EQ(engine_.submitted[1].request.salt, "/x");
  EXPECT_EQ(engine_.submitted[1].request.client, "");
  keys_.Set({"good", "other"});
  const HeaderList good = {{"authorization", "Bearer good"}};
  Ask("POST", "/v1/completions", R"({"prompt": "a", "cache_salt": "x"})", good);
  Ask("POST", "/v1/embeddings", R"({"input": "a", "cache_salt": "y"})", good);
  const Request &first = engine_.submitted[2].request, &second = engine_.submitted[3].request;
  EXPECT_EQ(first.client.size(), 16u);
  EXPECT_EQ(first.client, second.client);
  EXPECT_EQ(first.salt, first.client + "/x");
  EXPECT_EQ(second.salt, first.client + "/y");
}

TEST_F(ServiceTest, SessionsAreListedAndDeletedByTheirOwner) {
  json::object list = GetJson("/v1/sessions");
  ASSERT_EQ(list.at("data").as_array().size(), 1u);
  const json::object& session = list.at("data").at(0).as_object();
  EXPECT_EQ(session.at("id"), "s/1");
  EXPECT_EQ(session.at("last_activity_at").as_int64() - session.at("created_at").as_int64(), 50);
  EXPECT_EQ(session.at("requests"), 3);
  EXPECT_EQ(Ask("DELETE", "/v1/sessions/s%2F1").status, 200);
  EXPECT_EQ(Ask("DELETE", "/v1/sessions/other").status, 404);
  keys_.Set({"good", "other"});
  EXPECT_EQ(Ask("DELETE", "/v1/sessions/s/1", "", {{"authorization", "Bearer good"}}).status, 404);
}

TEST_F(ServiceTest, HostsAndOriginsAreChecked) {
  HttpRequest rebound{.method = "GET", .path = "/health", .headers = {{"host", "evil.example"}}};
  EXPECT_EQ(service_->Refuse(&rebound)->status, 403);
  EXPECT_EQ(Ask("GET", "/health", "", {{"origin", "https://evil.example"}}).status, 403);
  EXPECT_EQ(Ask("GET", "/health", "", {{"origin", "http://localhost:8080"}}).status, 200);
  const HttpReply preflight =
      Ask("OPTIONS", "/v1/chat/completions", "", {{"origin", "https://a.example"}});
  EXPECT_EQ(preflight.status, 204);
  const auto allowed_headers = [&](const char* asked) -> std::string {
    const HttpReply reply =
        Ask("OPTIONS", "/v1/models", "",
            {{"origin", "https://a.example"}, {"access-control-request-headers", asked}});
    for (const auto& [name, value] : reply.headers) {
      if (name == "Access-Control-Allow-Headers") return value;
    }
    return "";
  };
  // OpenAI's client in a browser names a dozen of its own.
  EXPECT_EQ(allowed_headers("authorization,x-stainless-os"), "authorization,x-stainless-os");
  EXPECT_EQ(allowed_headers("x\"y").find("Authorization"), 0u);
  HttpRequest request{.method = "GET", .path = "/", .headers = {{"origin", "https://a.example"}}};
  bool allowed = false, dated = false;
  for (const auto& [name, value] : service_->CommonHeaders(request)) {
    allowed |= name == "Access-Control-Allow-Origin" && value == "https://a.example";
    dated |= name == "Date" && value.ends_with(" GMT");
  }
  EXPECT_TRUE(allowed && dated);
}

TEST_F(ServiceTest, UnknownPathsAndMethods) {
  EXPECT_EQ(Ask("GET", "/v2/models").status, 404);
  const HttpReply wrong = Ask("DELETE", "/v1/models");
  EXPECT_EQ(wrong.status, 405);
  EXPECT_EQ(wrong.headers, (HeaderList{{"Allow", "GET, HEAD"}}));
  EXPECT_EQ(Ask("HEAD", "/health").status, 200);
}

TEST_F(ServiceTest, SmallRoutes) {
  EXPECT_EQ(GetJson("/v1/models").at("data").as_array().size(), 2u);
  EXPECT_EQ(GetJson("/v1/models/alias").at("max_model_len"), 128);
  EXPECT_EQ(Ask("GET", "/v1/models/nope").status, 404);
  EXPECT_EQ(GetJson("/version").at("version"), "9.9");
  EXPECT_EQ(GetJson("/config").at("port"), 1);
  EXPECT_EQ(GetJson("/ready").at("status"), "ready");
  const json::object state = GetJson("/dashboard/state");
  EXPECT_EQ(state.at("kv_blocks_used"), 5);
  EXPECT_EQ(state.at("prefix_hits"), 4);
  EXPECT_EQ(state.at("selectors"), (json::array{"full", "box"}));
  EXPECT_EQ(state.at("token_gaps"), 0);
  EXPECT_NE(Ask("GET", "/").body.find("<html"), std::string::npos);
  const json::object info = GetJson("/tokenizer_info");
  EXPECT_EQ(info.at("bos_token"), "<s>");
  EXPECT_TRUE(info.at("eos_token").is_null());
  EXPECT_EQ(info.at("chat_template"), "{{ messages }}");
  service_->SetStopping();
  EXPECT_EQ(Ask("GET", "/ready").status, 503);
}

TEST_F(ServiceTest, TheDashboardSeesPagesOfARequest) {
  json::object pages = GetJson("/dashboard/pages");
  EXPECT_EQ(pages.at("request"), 4);
  EXPECT_EQ(pages.at("pages"), 3);
  EXPECT_EQ(pages.at("rows"), (json::array{"BQ==", "Bw=="}));
  EXPECT_EQ(pages.at("running").at(0).at("prompt_tokens"), 30);
  pages = GetJson("/dashboard/pages?request=9");
  EXPECT_EQ(pages.at("request"), 0);
  EXPECT_FALSE(pages.contains("rows"));
  for (const char* wrong : {"?request=x", "?request=-1", "?other=1"})
    EXPECT_EQ(Ask("GET", std::string("/dashboard/pages") + wrong).status, 400) << wrong;
}

TEST_F(ServiceTest, TokenizeAndBack) {
  json::object reply =
      json::parse(Post("/tokenize", R"({"prompt": "ab", "return_token_strs": true})").body)
          .as_object();
  EXPECT_EQ(reply.at("tokens"), (json::array{'^', 'a', 'b'}));
  EXPECT_EQ(reply.at("token_strs"), (json::array{"^", "a", "b"}));
  EXPECT_EQ(reply.at("count"), 3);
  EXPECT_EQ(reply.at("max_model_len"), 128);
  reply = json::parse(Post("/tokenize", R"({"messages": [{"role": "user", "content": "q"}],
                                           "add_generation_prompt": false})")
                          .body)
              .as_object();
  EXPECT_EQ(reply.at("count"), 7);
  EXPECT_EQ(Post("/detokenize", R"({"tokens": [104, 105]})").body, R"({"prompt": "hi"})");
  EXPECT_EQ(Post("/detokenize", R"({"tokens": "hi"})").status, 400);
  EXPECT_EQ(Post("/detokenize", R"({"tokens": [256]})").status, 400);
  EXPECT_EQ(Post("/tokenize", R"({"prompt": "a", "x": 1})").status, 400);
}

TEST_F(ServiceTest, MetricsHaveVllmsNames) {
  HttpReply reply = Post("/v1/completions", R"({"prompt": "a"})");
  engine_.Say(1, "x");
  engine_.Say(1, "y");
  engine_.Finish(1, FinishReason::kStop);
  Whole(&reply);
  Post("/v1/completions", R"({"prompt": "a"})");  // and its client has left
  const std::string text = Ask("GET", "/metrics").body;
  for (const char* line :
       {"vllm:num_requests_running{engine=\"0\",model_name=\"fake\"} 2\n",
        "vllm:num_requests_waiting{engine=\"0\",model_name=\"fake\"} 3\n",
        "vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"fake\"} 0.5\n",
        "vllm:prompt_tokens_total{engine=\"0\",model_name=\"fake\"} 7\n",
        "vllm:prefix_cache_queries_total{engine=\"0\",model_name=\"fake\"} 9\n",
        "vllm:prefix_cache_hits_total{engine=\"0\",model_name=\"fake\"} 4\n",
        "vllm:time_to_first_token_seconds_count{engine=\"0\",model_name=\"fake\"} 1\n",
        "vllm:inter_token_latency_seconds_count{engine=\"0\",model_name=\"fake\"} 1\n",
        "vllm:e2e_request_latency_seconds_count{engine=\"0\",model_name=\"fake\"} 1\n",
        "vllm:time_per_output_token_seconds_count{engine=\"0\",model_name=\"fake\"} 1\n",
        "vllm:request_time_per_output_token_seconds_count{engine=\"0\",model_name=\"fake\"} 1\n",
        "vllm:request_inference_time_seconds_count{engine=\"0\",model_name=\"fake\"} 1\n",
        "vllm:request_max_num_generation_tokens_sum{engine=\"0\",model_name=\"fake\"} 2\n",
        "vllm:gpu_cache_usage_perc{engine=\"0\",model_name=\"fake\"} 0.5\n",
        "vllm:gpu_prefix_cache_hits_total{engine=\"0\",model_name=\"fake\"} 4\n",
        "tinyserve:kv_avoided_bytes_total{engine=\"0\",model_name=\"fake\"} 600\n",
        "vllm:request_queue_time_seconds_sum{engine=\"0\",model_name=\"fake\"} 0.25\n",
        "tinyserve:shadow_checks{engine=\"0\",model_name=\"fake\",selector=\"s\"} 4\n",
        "tinyserve:missed_mass{engine=\"0\",model_name=\"fake\",of=\"mean\",selector=\"s\"} 0.25\n",
        "tinyserve:output_error{engine=\"0\",model_name=\"fake\",of=\"max\",selector=\"s\"} 2\n",
        "{engine=\"0\",finished_reason=\"stop\",model_name=\"fake\"} 1\n",
        "{engine=\"0\",finished_reason=\"abort\",model_name=\"fake\"} 1\n"})
    EXPECT_NE(text.find(line), std::string::npos) << line << text;
  const json::object state = GetJson("/dashboard/state");
  EXPECT_EQ(state.at("first_tokens"), 1);
  EXPECT_EQ(state.at("token_gaps"), 1);
  EXPECT_GT(state.at("token_gap_seconds").to_number<double>(), 0);
  // Totals are followed, not added again.
  EXPECT_NE(
      Ask("GET", "/metrics").body.find("prompt_tokens_total{engine=\"0\",model_name=\"fake\"} 7\n"),
      std::string::npos);
}

TEST_F(ServiceTest, WhileTheModelLoadsRoutesSaySo) {
  Service loading(service_->options(), &keys_, metrics_.get());
  loading.SetLoading(0.5);
  const auto ask = [&](const char* method, const char* path) {
    return loading.Handle({.method = method, .path = path, .headers = {}, .body = "{}", .id = ""});
  };
  EXPECT_EQ(ask("GET", "/health").status, 200);
  EXPECT_EQ(ask("GET", "/ready").status, 503);
  EXPECT_EQ(json::parse(ask("GET", "/ready").body).at("progress"), 0.5);
  for (const char* path :
       {"/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize", "/v1/embeddings"})
    EXPECT_EQ(ask("POST", path).status, 503) << path;
  EXPECT_EQ(ask("GET", "/metrics").status, 200);
  EXPECT_EQ(ask("GET", "/dashboard/state").status, 200);
}

}  // namespace
}  // namespace tinyserve
