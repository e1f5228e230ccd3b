// POST /v1/embeddings.
#include <fmt/format.h>

#include <bit>
#include <chrono>
#include <memory>
#include <utility>

#include "base/check.h"
#include "server/base64.h"
#include "server/event_queue.h"
#include "server/generation_reply.h"
#include "server/openai_request.h"
#include "server/routes.h"
#include "text/json_text.h"

namespace tinyserve {
namespace {

using Clock = std::chrono::steady_clock;

// Inputs of one request that the engine has at a time: more would only fill its queue.
constexpr size_t kInFlightMax = 32;

static_assert(std::endian::native == std::endian::little);  // as the API's base64 has it

std::string VectorJson(std::span<const float> vector, bool base64) {
  if (base64) {
    return fmt::format("\"{}\"", Base64({reinterpret_cast<const uint8_t*>(vector.data()),
                                         vector.size() * sizeof(float)}));
  }
  std::string text = "[";
  for (const float x : vector) {
    if (text.size() > 1) text += ',';
    fmt::format_to(std::back_inserter(text), "{}", x);
  }
  return text + "]";
}

// Gives the engine inputs one after another, and keeps each vector as the text that it becomes.
class EmbeddingWork : public ReplyWork {
 public:
  // `request`: all but the prompt.
  EmbeddingWork(const Service& service, Request request, std::vector<std::vector<int32_t>> inputs,
                bool base64)
      : engine_(service.engine()),
        metrics_(service.metrics()),
        model_(service.options().models.front()),
        request_(std::move(request)),
        deadline_ms_(request_.deadline_ms),
        base64_(base64),
        inputs_(std::move(inputs)),
        ids_(inputs_.size()),
        submitted_at_(inputs_.size()),
        vectors_(inputs_.size()),
        queue_(std::make_shared<EventQueue>(inputs_.size())) {
    for (const auto& input : inputs_) tokens_ += input.size();
  }
  ~EmbeddingWork() override {
    queue_->SetWake({});
    for (const Arrival& arrival : queue_->Take()) Observe(arrival);
    for (size_t i = 0; i < next_; ++i) {
      if (ids_[i] == 0) continue;
      engine_->Cancel(ids_[i]);
      metrics_->ObserveAbort();
    }
  }
  EmbeddingWork(const EmbeddingWork&) = delete;
  EmbeddingWork& operator=(const EmbeddingWork&) = delete;

  // Gives the engine what it has room for.
  void SubmitMore() {
    while (!error_ && next_ < inputs_.size() && live_ < kInFlightMax) {
      if (!TakeTime()) {
        error_ = DeadlineError();
        return;
      }
      request_.prompt = inputs_[next_];
      const auto choice = static_cast<uint32_t>(next_);
      const Result<RequestId> id =
          engine_->Submit(request_, [queue = queue_, choice](const TokenEvent& event) {
            TS_CHECK(queue->Push(choice, event));  // one event an input is kept
          });
      if (!id.ok()) {
        // A full queue has room again once one of ours is done.
        if (id.status().code() == Code::kResourceExhausted && live_ > 0) return;
        error_ = ErrorOf(id.status());
        return;
      }
      ids_[next_] = *id;
      submitted_at_[next_] = Clock::now();
      ++live_;
      ++next_;
    }
  }
  const std::optional<ApiError>& error() const { return error_; }

  void SetWake(Wake wake) override { queue_->SetWake(std::move(wake)); }
  bool Advance(std::string*) override {
    for (const Arrival& arrival : queue_->Take()) {
      Observe(arrival);
      Keep(arrival);
    }
    SubmitMore();
    return error_ || (live_ == 0 && next_ == inputs_.size());
  }
  HttpReply Whole() override {
    if (error_) return ErrorReply(*error_);
    HttpReply reply;
    reply.body = R"({"object":"list","data":[)";
    for (size_t i = 0; i < vectors_.size(); ++i) {
      if (i > 0) reply.body += ',';
      reply.body += fmt::format(R"({{"object":"embedding","index":{},"embedding":)", i);
      reply.body += vectors_[i];
      reply.body += '}';
    }
    reply.body += fmt::format(R"(],"model":{},"usage":{{"prompt_tokens":{},"total_tokens":{}}}}})",
                              ToJson(boost::json::value(model_)), tokens_, tokens_);
    return reply;
  }

 private:
  // Gives the next input what is left of the time of all of them. False: nothing is.
  bool TakeTime() {
    if (deadline_ms_ == 0) return true;
    const auto taken = std::chrono::floor<std::chrono::milliseconds>(Clock::now() - begun_).count();
    if (static_cast<uint64_t>(taken) >= deadline_ms_) return false;
    request_.deadline_ms = deadline_ms_ - static_cast<uint64_t>(taken);
    return true;
  }
  void Observe(const Arrival& arrival) {
    if (arrival.event.kind != TokenEvent::Kind::kFinished) return;
    ids_[arrival.choice] = 0;
    --live_;
    const Clock::duration took = arrival.time - submitted_at_[arrival.choice];
    metrics_->ObserveFinish(arrival.event, std::chrono::duration<double>(took).count());
  }
  void Keep(const Arrival& arrival) {
    const TokenEvent& event = arrival.event;
    if (event.kind != TokenEvent::Kind::kFinished || error_) return;
    if (event.finish != FinishReason::kLength) {
      error_ = ErrorOfFinish(event);
    } else {
      vectors_[arrival.choice] = VectorJson(event.embedding, base64_);
    }
  }

  Engine* const engine_;
  Metrics* const metrics_;
  const std::string model_;
  Request request_;
  const uint64_t deadline_ms_;
  const Clock::time_point begun_ = Clock::now();
  const bool base64_;
  const std::vector<std::vector<int32_t>> inputs_;
  std::vector<RequestId> ids_;  // by input; 0: not submitted, or finished
  std::vector<Clock::time_point> submitted_at_;
  std::vector<std::string> vectors_;  // JSON
  std::shared_ptr<EventQueue> queue_;
  size_t next_ = 0;  // input to submit
  size_t live_ = 0;
  uint64_t tokens_ = 0;
  std::optional<ApiError> error_;
};

std::optional<ApiError> CheckInput(const std::vector<int32_t>& tokens, size_t index,
                                   uint32_t context_tokens) {
  if (tokens.empty()) {
    return BadField("input",
                    fmt::format("'input' {} has no tokens: at least one is needed", index));
  }
  if (tokens.size() <= context_tokens) return std::nullopt;
  ApiError error = BadField("input", fmt::format("'input' {} has {} tokens: the context holds {}",
                                                 index, tokens.size(), context_tokens));
  error.code = "context_length_exceeded";
  return error;
}

}  // namespace

HttpReply Embed(const Service& service, const HttpRequest& http) {
  const Engine* engine = service.engine();
  if (engine == nullptr) return ErrorReply(Unavailable("the model is still loading"));
  std::optional<ApiError> error;
  const std::optional<EmbeddingRequest> asked =
      ParseEmbeddingRequest(http.body, service.limits(), engine->info().dim, &error);
  if (!asked) return ErrorReply(*error);
  std::vector<std::vector<int32_t>> inputs;
  for (const Prompt& input : asked->inputs) {
    if (const auto* text = std::get_if<std::string>(&input)) {
      Result<std::vector<int32_t>> tokens =
          engine->Tokenize(*text, asked->add_special, /*parse_special=*/true);
      if (!tokens.ok()) return ErrorReply(ErrorOf(tokens.status()));
      inputs.push_back(*std::move(tokens));
    } else {
      inputs.push_back(std::get<std::vector<int32_t>>(input));
    }
    error = CheckInput(inputs.back(), inputs.size() - 1, service.limits().context_tokens);
    if (error) return ErrorReply(*error);
  }
  Request request;
  request.max_tokens = 0;
  request.pooling = asked->pooling;
  request.priority = asked->priority;
  request.deadline_ms = asked->deadline_ms;
  service.SetOwner(http, asked->cache_salt, &request);
  auto work = std::make_unique<EmbeddingWork>(service, std::move(request), std::move(inputs),
                                              asked->base64);
  work->SubmitMore();
  if (work->error()) return ErrorReply(*work->error());
  HttpReply reply;
  reply.work = std::move(work);
  return reply;
}

}  // namespace tinyserve
