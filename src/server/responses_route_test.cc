#include <gtest/gtest.h>

#include <boost/json/serialize.hpp>
#include <chrono>
#include <thread>

#include "server/service_testing.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

class ResponsesTest : public ServiceTest {
 protected:
  ResponsesTest() { engine_.model().context_tokens = 4096; }

  // A response that says `text`.
  json::object Said(const std::string& body, const std::string& text) {
    HttpReply reply = Post("/v1/responses", body);
    EXPECT_NE(reply.work, nullptr) << reply.body;
    const RequestId id = engine_.submitted.size();
    engine_.Say(id, text);
    engine_.Finish(id, FinishReason::kStop);
    return Whole(&reply);
  }
  std::string Prompt() const {
    return *engine_.Detokenize(engine_.submitted.at(engine_.submitted.size()).request.prompt);
  }
  static std::string IdOf(const json::object& response) {
    return std::string(std::string_view(response.at("id").as_string()));
  }
  // Events that have come, by their types; each must carry the next sequence number.
  std::vector<json::object> Typed(HttpReply* reply, bool done) {
    std::string text;
    EXPECT_EQ(reply->work->Advance(&text), done);
    std::vector<json::object> events;
    while (!text.empty()) {
      const size_t line = text.find('\n'), end = text.find("\n\n");
      EXPECT_EQ(text.substr(0, 7), "event: ");
      EXPECT_EQ(text.substr(line + 1, 6), "data: ");
      json::object event = json::parse(text.substr(line + 7, end - line - 7)).as_object();
      EXPECT_EQ(event.at("type").as_string(), text.substr(7, line - 7));
      EXPECT_EQ(event.at("sequence_number"), sequence_++);
      events.push_back(std::move(event));
      text.erase(0, end + 2);
    }
    return events;
  }
  static std::vector<std::string> Names(const std::vector<json::object>& events) {
    std::vector<std::string> names;
    for (const json::object& event : events)
      names.push_back(std::string(std::string_view(event.at("type").as_string()).substr(9)));
    return names;
  }

  int64_t sequence_ = 0;
};

TEST_F(ResponsesTest, ATextIsAnsweredAndTheRequestRepeated) {
  const json::object response =
      Said(R"({"model": "alias", "input": "q", "instructions": "be kind", "max_output_tokens": 9,
              "temperature": 0.5, "metadata": {"a": "b"}, "user": "u"})",
           "Yes.");
  EXPECT_EQ(Prompt(), "system:be kind;user:q;assistant:");
  EXPECT_EQ(engine_.submitted[1].request.max_tokens, 9u);
  EXPECT_EQ(response.at("object"), "response");
  EXPECT_EQ(response.at("status"), "completed");
  EXPECT_EQ(response.at("model"), "fake");
  EXPECT_TRUE(IdOf(response).starts_with("resp_"));
  const json::object& message = response.at("output").at(0).as_object();
  EXPECT_EQ(message.at("type"), "message");
  EXPECT_EQ(message.at("role"), "assistant");
  EXPECT_EQ(message.at("content").at(0).at("type"), "output_text");
  EXPECT_EQ(message.at("content").at(0).at("text"), "Yes.");
  EXPECT_EQ(response.at("instructions"), "be kind");
  EXPECT_EQ(response.at("metadata"), (json::object{{"a", "b"}}));
  EXPECT_EQ(response.at("temperature"), 0.5);
  EXPECT_EQ(response.at("max_output_tokens"), 9);
  EXPECT_EQ(response.at("text").at("format").at("type"), "text");
  EXPECT_EQ(response.at("usage").at("input_tokens"), 32);
  EXPECT_EQ(response.at("usage").at("input_tokens_details").at("cached_tokens"), 1);
  EXPECT_EQ(response.at("usage").at("output_tokens"), 1);
}

TEST_F(ResponsesTest, AResponseGoesOnFromAnotherWithoutItsInstructions) {
  const json::object first = Said(R"({"input": "one", "instructions": "be kind"})", "1");
  const json::object second =
      Said(R"({"input": "two", "previous_response_id": ")" + IdOf(first) + "\"}", "2");
  EXPECT_EQ(Prompt(), "user:one;assistant:1;user:two;assistant:");
  Said(R"({"input": "three", "previous_response_id": ")" + IdOf(second) + "\"}", "3");
  EXPECT_EQ(Prompt(), "user:one;assistant:1;user:two;assistant:2;user:three;assistant:");
  const HttpReply none =
      Post("/v1/responses", R"({"input": "x", "previous_response_id": "resp_0"})");
  EXPECT_EQ(none.status, 404);
  EXPECT_EQ(json::parse(none.body).at("error").at("param"), "previous_response_id");
}

TEST_F(ResponsesTest, OneIsFoundDeletedAndListed) {
  const json::object response = Said(R"({"input": [{"role": "user", "content": "one"},
      {"role": "assistant", "content": [{"type": "output_text", "text": "1", "annotations": []}]},
      {"role": "user", "content": [{"type": "input_text", "text": "two"}], "id": "msg_mine"}]})",
                                     "2");
  EXPECT_EQ(Prompt(), "user:one;assistant:1;user:two;assistant:");
  const std::string path = "/v1/responses/" + IdOf(response);
  EXPECT_EQ(GetJson(path), response);
  json::object items = GetJson(path + "/input_items?limit=2");
  EXPECT_EQ(items.at("data").as_array().size(), 2u);
  EXPECT_EQ(items.at("first_id"), "msg_mine");  // the newest first
  EXPECT_EQ(items.at("has_more"), true);
  items = GetJson(path + "/input_items?order=asc&after=msg_mine");
  EXPECT_TRUE(items.at("data").as_array().empty());
  EXPECT_EQ(items.at("has_more"), false);
  for (const char* wrong : {"limit=0", "limit=x", "order=up", "after=nope", "include=all"})
    EXPECT_EQ(Ask("GET", path + "/input_items?" + wrong).status, 400) << wrong;
  EXPECT_EQ(Ask("POST", path + "/cancel").status, 400);
  EXPECT_EQ(Ask("GET", path + "?stream=true").status, 400);
  EXPECT_EQ(Ask("GET", path + "/cancel").status, 404);
  EXPECT_EQ(json::parse(Ask("DELETE", path).body),
            (json::object{{"id", IdOf(response)}, {"object", "response"}, {"deleted", true}}));
  for (const char* rest : {"", "/input_items"}) EXPECT_EQ(Ask("GET", path + rest).status, 404);
  EXPECT_EQ(Ask("DELETE", path).status, 404);
  EXPECT_EQ(Ask("POST", path + "/cancel").status, 404);
  const json::object unkept = Said(R"({"input": "q", "store": false})", "a");
  EXPECT_EQ(unkept.at("store"), false);
  EXPECT_EQ(Ask("GET", "/v1/responses/" + IdOf(unkept)).status, 404);
}

TEST_F(ResponsesTest, OnlyTheKeyThatAskedFindsOne) {
  keys_.Set({"good", "other"});
  const HeaderList good = {{"authorization", "Bearer good"}};
  const HeaderList other = {{"authorization", "Bearer other"}};
  HttpReply reply = Ask("POST", "/v1/responses", R"({"input": "q"})", good);
  engine_.Finish(1, FinishReason::kStop);
  const std::string id = IdOf(Whole(&reply));
  EXPECT_EQ(Ask("GET", "/v1/responses/" + id, "", other).status, 404);
  EXPECT_EQ(Ask("DELETE", "/v1/responses/" + id, "", other).status, 404);
  const std::string next = R"({"input": "q", "previous_response_id": ")" + id + "\"}";
  EXPECT_EQ(Ask("POST", "/v1/responses", next, other).status, 404);
  EXPECT_EQ(Ask("GET", "/v1/responses/" + id, "", good).status, 200);
}

TEST_F(ResponsesTest, AStreamTellsEveryStep) {
  HttpReply reply = Post("/v1/responses", R"({"input": "q", "stream": true})");
  ASSERT_TRUE(reply.streams);
  EXPECT_EQ(Names(Typed(&reply, false)), (std::vector<std::string>{"created", "in_progress"}));
  engine_.Say(1, "He");
  std::vector<json::object> events = Typed(&reply, false);
  EXPECT_EQ(Names(events), (std::vector<std::string>{"output_item.added", "content_part.added",
                                                     "output_text.delta"}));
  const json::value item = events[0].at("item").at("id");
  EXPECT_EQ(events[2].at("item_id"), item);
  EXPECT_EQ(events[2].at("delta"), "He");
  engine_.Say(1, "y");
  EXPECT_EQ(Names(Typed(&reply, false)), (std::vector<std::string>{"output_text.delta"}));
  engine_.Finish(1, FinishReason::kLength);
  events = Typed(&reply, true);
  EXPECT_EQ(Names(events), (std::vector<std::string>{"output_text.done", "content_part.done",
                                                     "output_item.done", "incomplete"}));
  EXPECT_EQ(events[0].at("text"), "Hey");
  EXPECT_EQ(events[2].at("item").at("status"), "incomplete");
  const json::object& response = events[3].at("response").as_object();
  EXPECT_EQ(response.at("incomplete_details").at("reason"), "max_output_tokens");
  EXPECT_EQ(response.at("output").at(0).at("id"), item);
  EXPECT_EQ(GetJson("/v1/responses/" + IdOf(response)), response);
}

TEST_F(ResponsesTest, FunctionsAreCalledAndTheirOutputsComeBack) {
  const std::string tools = R"("tools": [{"type": "function", "name": "f", "parameters":
      {"type": "object", "properties": {"a": {"type": "integer"}}}}])";
  HttpReply reply = Post("/v1/responses", R"({"input": "q", "stream": true, )" + tools + "}");
  EXPECT_NE(Prompt().find("\"name\": \"f\""), std::string::npos) << Prompt();
  Typed(&reply, false);
  engine_.Say(1, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\"");
  engine_.Say(1, ": 1}}\n</tool_call>");
  engine_.Finish(1, FinishReason::kStop);
  const std::vector<json::object> events = Typed(&reply, true);
  EXPECT_EQ(Names(events), (std::vector<std::string>{
                               "output_item.added", "function_call_arguments.delta",
                               "function_call_arguments.delta", "function_call_arguments.done",
                               "output_item.done", "completed"}));
  EXPECT_EQ(events[3].at("arguments"), "{\"a\": 1}");
  const json::object& response = events[5].at("response").as_object();
  const json::object& call = response.at("output").at(0).as_object();
  EXPECT_EQ(call.at("type"), "function_call");
  EXPECT_EQ(call.at("name"), "f");
  EXPECT_EQ(response.at("tools").at(0).at("name"), "f");
  // By the response's id, and by the items themselves.
  const std::string output = json::serialize(json::object{
      {"type", "function_call_output"}, {"call_id", call.at("call_id")}, {"output", "7"}});
  Said(R"({"previous_response_id": ")" + IdOf(response) + R"(", "input": [)" + output + "], " +
           tools + "}",
       "It is 7.");
  const std::string by_id = Prompt();
  EXPECT_NE(by_id.find("\"a\""), std::string::npos) << by_id;
  EXPECT_NE(by_id.find("7"), std::string::npos);
  Said(R"({"input": [{"role": "user", "content": "q"}, )" + json::serialize(call) + ", " + output +
           "], " + tools + "}",
       "It is 7.");
  EXPECT_EQ(Prompt(), by_id);
}

TEST_F(ResponsesTest, ReasoningIsAnItemOfItsOwn) {
  engine_.tokenizer().chat_template = "<think></think>";
  engine_.prompt_end = "<think>\n";
  HttpReply reply = Post("/v1/responses", R"({"input": "q", "stream": true})");
  Typed(&reply, false);
  engine_.Say(1, "Hm.\n");
  engine_.Say(1, "</think>\n\nYes.");
  engine_.Finish(1, FinishReason::kStop);
  const std::vector<json::object> events = Typed(&reply, true);
  EXPECT_EQ(Names(events)[2], "reasoning_text.delta");
  const json::object& response = events.back().at("response").as_object();
  ASSERT_EQ(response.at("output").as_array().size(), 2u);
  EXPECT_EQ(response.at("output").at(0).at("content").at(0).at("text"), "Hm.");
  EXPECT_EQ(response.at("output").at(1).at("content").at(0).at("text"), "Yes.");
  EXPECT_EQ(response.at("usage").at("output_tokens_details").at("reasoning_tokens"), 1);
  // Both go back as they came.
  Said(R"({"input": )" + json::serialize(response.at("output")) + "}", "ok");
  EXPECT_NE(Prompt().find("assistant:Yes.;"), std::string::npos) << Prompt();
}

TEST_F(ResponsesTest, OneThatRunsIsCancelled) {
  HttpReply reply = Post("/v1/responses", R"({"input": "q", "stream": true})");
  const std::string id = IdOf(Typed(&reply, false)[0].at("response").as_object());
  EXPECT_EQ(GetJson("/v1/responses/" + id).at("status"), "in_progress");
  const HttpReply early =
      Post("/v1/responses", R"({"input": "x", "previous_response_id": ")" + id + "\"}");
  EXPECT_EQ(early.status, 400);
  EXPECT_FALSE(engine_.submitted[1].cancelled);
  EXPECT_EQ(json::parse(Ask("POST", "/v1/responses/" + id + "/cancel").body).at("status"),
            "cancelled");
  EXPECT_TRUE(engine_.submitted[1].cancelled);
  engine_.Say(1, "late");
  engine_.Finish(1, FinishReason::kCancelled);
  const std::vector<json::object> events = Typed(&reply, true);
  EXPECT_EQ(Names(events).back(), "incomplete");
  EXPECT_EQ(GetJson("/v1/responses/" + id).at("status"), "cancelled");
  // And one whose client has left.
  HttpReply left = Post("/v1/responses", R"({"input": "q", "stream": true})");
  sequence_ = 0;
  const std::string other = IdOf(Typed(&left, false)[0].at("response").as_object());
  left.work.reset();
  EXPECT_TRUE(engine_.submitted[2].cancelled);
  EXPECT_EQ(GetJson("/v1/responses/" + other).at("status"), "cancelled");
}

TEST_F(ResponsesTest, EngineErrorsFailIt) {
  HttpReply reply = Post("/v1/responses", R"({"input": "q", "stream": true})");
  engine_.Finish(1, FinishReason::kError, Status(Code::kCorrupt, "logits are not finite"));
  const std::vector<json::object> events = Typed(&reply, true);
  EXPECT_EQ(Names(events).back(), "failed");
  EXPECT_EQ(events.back().at("response").at("error").at("message"), "logits are not finite");
  HttpReply whole = Post("/v1/responses", R"({"input": "q"})");
  engine_.Finish(2, FinishReason::kError, Status(Code::kCorrupt, "logits are not finite"));
  std::string none;
  EXPECT_TRUE(whole.work->Advance(&none));
  EXPECT_EQ(whole.work->Whole().status, 500);
}

TEST_F(ResponsesTest, OneThatIsLateFails) {
  HttpReply reply = Post("/v1/responses", R"({"input": "q", "tinyserve": {"deadline_ms": 5}})");
  EXPECT_EQ(engine_.submitted.at(1).request.deadline_ms, 5u);
  engine_.Finish(1, FinishReason::kDeadline);
  std::string none;
  EXPECT_TRUE(reply.work->Advance(&none));
  EXPECT_EQ(reply.work->Whole().status, 504);
}

TEST_F(ResponsesTest, AFormatBindsTheAnswer) {
  const HttpReply reply = Post("/v1/responses", R"({"input": "q", "text": {"format":
      {"type": "json_schema", "name": "n", "strict": true, "schema": {"type": "integer"}}}})");
  ASSERT_NE(reply.work, nullptr) << reply.body;
  ASSERT_EQ(engine_.grammars.size(), 1u);
  EXPECT_EQ(engine_.grammars[0].second, R"({"type": "integer"})");
  const HttpReply refused = Post("/v1/responses", R"({"input": "q", "text": {"format":
      {"type": "json_schema", "name": "n", "schema": {"const": "refuse"}}}})");
  EXPECT_EQ(json::parse(refused.body).at("error").at("param"), "text.format.schema");
}

// Nobody waits for the reply of the request: its response is asked for until it has ended.
TEST_F(ResponsesTest, OneInTheBackgroundIsAskedForAndCancelled) {
  const auto begin = [this] {
    const HttpReply reply = Post("/v1/responses", R"({"input": "q", "background": true})");
    EXPECT_EQ(reply.status, 200);
    EXPECT_EQ(reply.work, nullptr);
    json::object begun = json::parse(reply.body).as_object();
    EXPECT_EQ(begun.at("status"), "in_progress");
    EXPECT_EQ(begun.at("background"), true);
    return "/v1/responses/" + IdOf(begun);
  };
  const auto ended = [this](const std::string& path) {
    for (int i = 0; i < 500; ++i) {
      json::object response = GetJson(path);
      if (response.at("status") != "in_progress") return response;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    ADD_FAILURE() << path << " does not end";
    return json::object();
  };
  const std::string path = begin();
  EXPECT_EQ(GetJson(path).at("status"), "in_progress");
  engine_.Say(1, "Yes");
  engine_.Say(1, ".");
  engine_.Finish(1, FinishReason::kStop);
  const json::object response = ended(path);
  EXPECT_EQ(response.at("status"), "completed");
  EXPECT_EQ(response.at("output").at(0).at("content").at(0).at("text"), "Yes.");
  EXPECT_EQ(Ask("POST", path + "/cancel").status, 400);

  const std::string other = begin();
  engine_.Say(2, "Y");
  EXPECT_EQ(json::parse(Ask("POST", other + "/cancel").body).at("status"), "cancelled");
  EXPECT_TRUE(engine_.submitted.at(2).cancelled);
  engine_.Finish(2, FinishReason::kCancelled);
  EXPECT_EQ(ended(other).at("status"), "cancelled");
  EXPECT_EQ(ended(other).at("output").at(0).at("content").at(0).at("text"), "Y");

  // To delete one cancels it.
  EXPECT_EQ(Ask("DELETE", begin()).status, 200);
  EXPECT_TRUE(engine_.submitted.at(3).cancelled);
  engine_.Finish(3, FinishReason::kCancelled);
}

// As the server stops.
TEST_F(ResponsesTest, WhatRunsInTheBackgroundEndsWithTheService) {
  Post("/v1/responses", R"({"input": "q", "background": true})");
  engine_.Say(1, "Y");
  service_.reset();
  EXPECT_TRUE(engine_.submitted.at(1).cancelled);
}

TEST_F(ResponsesTest, WhatIsNotSupportedIsRefusedByName) {
  const struct {
    const char *fields, *param;
  } cases[] = {
      {R"("background": 1)", "background"},
      {R"("background": true, "stream": true)", "background"},
      {R"("background": true, "store": false)", "background"},
      {R"("truncation": "auto")", "truncation"},
      {R"("include": ["x"])", "include"},
      {R"("reasoning": {"effort": "low"})", "reasoning.effort"},
      {R"("conversation": "c")", "conversation"},
      {R"("n": 2)", "n"},
      {R"("messages": [])", "messages"},
      {R"("nonsense": 1)", "nonsense"},
      {R"("max_output_tokens": 0)", "max_output_tokens"},
      {R"("top_logprobs": 1)", "top_logprobs"},
      {R"("metadata": {"a": 1})", "metadata"},
      {R"("text": {"verbosity": "low"})", "text.verbosity"},
      {R"("text": {"format": {"type": "xml"}})", "text.format.type"},
      {R"("tools": [{"type": "web_search"}])", "tools[0].type"},
      {R"("tools": [{"type": "function", "name": "f"}, {"type": "function", "name": "f"}])",
       "tools[1].name"},
      {R"("tool_choice": "required")", "tool_choice"},
      {R"("tool_choice": {"type": "function", "name": "f"})", "tool_choice.name"},
      {R"("input": 5)", "input"},
      {R"("input": [5])", "input[0]"},
      {R"("input": [{"type": "item_reference", "id": "x"}])", "input[0].type"},
      {R"("input": [{"role": "user"}])", "input[0].content"},
      {R"("input": [{"role": "tool", "content": "x"}])", "input[0].role"},
      {R"("input": [{"role": "user", "content": [{"type": "input_image"}]}])",
       "input[0].content[0].type"},
      {R"("input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "["}])",
       "input[0].arguments"},
      {R"("input": [{"type": "function_call_output", "output": "x"}])", "input[0].call_id"},
      {R"("input": [{"type": "reasoning", "encrypted_content": "x"}])",
       "input[0].encrypted_content"}};
  for (const auto& c : cases) {
    std::string body = std::string("{") + c.fields;
    if (body.find("\"input\"") == std::string::npos) body += R"(, "input": "q")";
    const HttpReply reply = Post("/v1/responses", body + "}");
    EXPECT_EQ(reply.status, 400) << body;
    EXPECT_EQ(json::parse(reply.body).at("error").at("param"), c.param) << body;
  }
  EXPECT_EQ(json::parse(Post("/v1/responses", "{}").body).at("error").at("param"), "input");
  const std::string text(5000, 'a');
  const HttpReply reply = Post("/v1/responses", R"({"input": ")" + text + "\"}");
  EXPECT_EQ(json::parse(reply.body).at("error").at("param"), "input");
  EXPECT_TRUE(engine_.submitted.empty());
}

}  // namespace
}  // namespace tinyserve
