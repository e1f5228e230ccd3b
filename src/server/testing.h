// An engine that says what a test tells it to: a token is a byte, and nothing runs by itself.
#ifndef TINYSERVE_SERVER_TESTING_H_
#define TINYSERVE_SERVER_TESTING_H_

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tinyserve/engine.h"

namespace tinyserve {

class AnyGrammar : public Grammar {
 public:
  class Any : public TokenConstraint {
    Status Mask(std::span<uint32_t> bits) override {
      for (uint32_t& word : bits) word = ~uint32_t{0};
      return Status();
    }
    Status Accept(int32_t) override { return Status(); }
  };
  Result<std::shared_ptr<TokenConstraint>> Start() const override {
    return std::shared_ptr<TokenConstraint>(std::make_shared<Any>());
  }
};

class FakeEngine : public Engine {
 public:
  struct Submitted {
    Request request;
    EventSink sink;
    uint32_t tokens = 0;
    bool cancelled = false;
    bool finished = false;
  };

  FakeEngine() {
    info_.name = "fake";
    info_.vocab = 256;
    info_.dim = 2;
    info_.context_tokens = 128;
    info_.has_chat_template = true;
    tokenizer_.bos_token = "<s>";
    tokenizer_.end_tokens = {0};
    tokenizer_.chat_template = "{{ messages }}";
  }

  Result<RequestId> Submit(const Request& request, EventSink sink) override {
    if (!refusal.ok()) return refusal;
    if (submitted.size() >= submissions_max) {
      return Status(Code::kResourceExhausted, "1 requests wait already: try again later");
    }
    const RequestId id = submitted.size() + 1;
    submitted[id] = {.request = request, .sink = std::move(sink)};
    return id;
  }
  bool Cancel(RequestId id) override {
    submitted.at(id).cancelled = true;
    return true;
  }
  void Wait(RequestId) override {}
  // add_special puts a "^" in front.
  Result<std::vector<int32_t>> Tokenize(std::string_view text, bool add_special,
                                        bool) const override {
    std::vector<int32_t> tokens;
    if (add_special) tokens.push_back('^');
    for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
    return tokens;
  }
  Result<std::string> Detokenize(const std::vector<int32_t>& tokens) const override {
    std::string text;
    for (const int32_t token : tokens) text += static_cast<char>(token);
    return text;
  }
  Result<std::string> TokenBytes(int32_t token) const override {
    return std::string(1, static_cast<char>(token));
  }
  Result<std::string> RenderChat(const std::vector<Message>& messages,
                                 bool add_generation_prompt) const override {
    std::string text;
    for (const Message& m : messages) text += m.role + ":" + m.content + ";";
    return add_generation_prompt ? text + "assistant:" : text;
  }
  // "role:content;" of each message, calls and variables as JSON.
  Result<std::string> RenderConversation(std::string_view messages_json, bool add_generation_prompt,
                                         std::string_view variables_json) const override {
    std::string text;
    const boost::json::value messages = boost::json::parse(std::string(messages_json));
    for (const boost::json::value& m : messages.as_array()) {
      text += std::string(m.at("role").as_string()) + ":" +
              std::string(m.at("content").as_string()) + ";";
      if (m.as_object().contains("tool_calls"))
        text += boost::json::serialize(m.at("tool_calls")) + ";";
    }
    if (variables_json != "{}") text += std::string(variables_json) + ";";
    return (add_generation_prompt ? text + "assistant:" : text) + prompt_end;
  }
  // A grammar that allows everything; `grammars` has what was asked for.
  Result<std::shared_ptr<const Grammar>> CompileGrammar(GrammarKind kind,
                                                        std::string_view text) const override {
    if (text.find("refuse") != std::string_view::npos) {
      return Status(Code::kInvalidArgument, "it asks to be refused");
    }
    grammars.emplace_back(kind, text);
    return std::shared_ptr<const Grammar>(std::make_shared<AnyGrammar>());
  }
  const ModelInfo& info() const override { return info_; }
  const TokenizerInfo& tokenizer_info() const override { return tokenizer_; }
  EngineStats stats() const override {
    return {.prompt_tokens = 7,
            .running = 2,
            .waiting = 3,
            .blocks_total = 10,
            .blocks_used = 5,
            .prefix_queries = 9,
            .prefix_hits = 4,
            .selection = {.bytes_read = 200, .bytes_held = 800},
            .shadow = {{.selector = "s",
                        .checks = 4,
                        .missed_mass = {.mean = 0.25, .p99 = 0.5, .max = 0.5},
                        .output_error = {.mean = 0.125, .p99 = 1, .max = 2}}},
            .device_error = device_error};
  }
  std::string device_error;

  std::vector<SessionInfo> sessions(std::string_view client) const override {
    if (client != sessions_client) return {};
    return {{.session = "s/1", .age_seconds = 60, .idle_seconds = 10, .requests = 3}};
  }
  bool EndSession(std::string_view client, std::string_view session) override {
    return client == sessions_client && session == "s/1";
  }
  PageReads WatchPages(std::string_view, RequestId request) override {
    PageReads reads;
    reads.running = {{.id = 4, .prompt_tokens = 30, .generated_tokens = 3}};
    if (request != 0 && request != 4) return reads;
    reads.request = 4;
    reads.tokens = 33;
    reads.page_tokens = 16;
    reads.layers = 2;
    reads.kv_heads = 1;
    reads.selector = "s";
    reads.bits = {5, 7};
    return reads;
  }
  Result<TraceCounts> EndTrace() override { return TraceCounts(); }
  std::vector<LayerSelection> layer_selection() const override { return {}; }

  // One token event of a request.
  void Say(RequestId id, const std::string& text, float logprob = 0,
           std::vector<TokenLogprob> top = {}) {
    Submitted& s = submitted.at(id);
    ++s.tokens;
    TokenEvent event;
    event.kind = TokenEvent::Kind::kToken;
    event.request = id;
    event.token = text.empty() ? 0xc3 : static_cast<unsigned char>(text[0]);
    event.text = text;
    event.logprob = logprob;
    event.top = std::move(top);
    s.sink(event);
  }
  void Finish(RequestId id, FinishReason reason, Status status = Status(),
              const std::string& held_back = "") {
    Submitted& s = submitted.at(id);
    s.finished = true;
    TokenEvent event;
    event.kind = TokenEvent::Kind::kFinished;
    event.request = id;
    event.text = held_back;
    event.finish = reason;
    event.status = std::move(status);
    event.usage = {.prompt_tokens = static_cast<uint32_t>(s.request.prompt.size()),
                   .cached_tokens = 1,
                   .completion_tokens = s.tokens,
                   .queue_seconds = 0.25,
                   .reads = {.pages_held = 8,
                             .pages_read = 2,
                             .pages_followed = 4,
                             .pages_reused = 3,
                             .bytes_read = 100,
                             .bytes_held = 400}};
    if (s.request.prompt_logprobs) {
      for (size_t i = 1; i < s.request.prompt.size(); ++i) {
        event.prompt_logprobs.push_back(-static_cast<float>(i));
        event.prompt_top.push_back({{s.request.prompt[i], -static_cast<float>(i)}});
      }
    }
    if (s.request.pooling != Pooling::kNone)
      event.embedding = {0.5f, static_cast<float>(s.request.prompt.back())};
    s.sink(event);
  }

  std::map<RequestId, Submitted> submitted;
  size_t submissions_max = 1000;
  std::string sessions_client;  // whose session there is
  Status refusal;
  mutable std::vector<std::pair<GrammarKind, std::string>> grammars;
  std::string prompt_end;  // what the chat template writes last
  TokenizerInfo& tokenizer() { return tokenizer_; }
  ModelInfo& model() { return info_; }

 private:
  ModelInfo info_;
  TokenizerInfo tokenizer_;
};

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_TESTING_H_
