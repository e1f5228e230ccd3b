#include "server/generation_reply.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <ctime>
#include <utility>

#include "base/check.h"
#include "server/reply_id.h"
#include "server/sse.h"
#include "text/json_text.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

json::object TokenCounts(uint64_t prompt, uint64_t completion) {
  return {{"prompt_tokens", prompt},
          {"completion_tokens", completion},
          {"total_tokens", prompt + completion}};
}

// Of it what OwnUsageJson tells.
void AddReads(const SelectionStats& from, SelectionStats* to) {
  to->pages_held += from.pages_held;
  to->pages_read += from.pages_read;
  to->bytes_read += from.bytes_read;
  to->bytes_held += from.bytes_held;
  to->pages_reused += from.pages_reused;
  to->pages_followed += from.pages_followed;
}

}  // namespace

json::object OwnUsageJson(const Usage& usage) {
  const SelectionStats& reads = usage.reads;
  const auto share = [](uint64_t part, uint64_t whole) -> json::value {
    if (whole == 0) return nullptr;
    return static_cast<double>(part) / static_cast<double>(whole);
  };
  return {{"queue_seconds", usage.queue_seconds},
          {"prefill_seconds", usage.prefill_seconds},
          {"decode_seconds", usage.decode_seconds},
          {"first_token_seconds", usage.first_token_seconds},
          {"pages_held", reads.pages_held},
          {"pages_read", reads.pages_read},
          {"kv_bytes_read", reads.bytes_read},
          {"kv_fraction_read", share(reads.bytes_read, reads.bytes_held)},
          {"hit_rate", share(reads.pages_reused, reads.pages_followed)}};
}

bool IsAnswer(FinishReason reason) {
  return reason == FinishReason::kStop || reason == FinishReason::kLength;
}

ApiError ErrorOfFinish(const TokenEvent& event) {
  if (event.finish == FinishReason::kError) return ErrorOf(event.status);
  if (event.finish == FinishReason::kDeadline) return DeadlineError();
  return Unavailable("the request was cancelled: the server is stopping");
}

ApiError DeadlineError() {
  return {.status = 504,
          .message = "the request's time was over before its answer was whole",
          .type = "server_error",
          .param = "tinyserve.deadline_ms",
          .code = "deadline_exceeded"};
}

ApiError SlowReaderError() {
  return {.status = 503,
          .message = "the stream was read too slowly, so the request was cancelled",
          .type = "server_error",
          .param = "",
          .code = "slow_reader"};
}

json::value FinishJson(FinishReason reason) {
  if (reason == FinishReason::kNone) return nullptr;
  return reason == FinishReason::kStop ? "stop" : "length";
}

HttpReply GenerationHttpReply(std::unique_ptr<ReplyWork> work, bool stream) {
  HttpReply reply;
  reply.work = std::move(work);
  reply.streams = stream;
  if (stream) reply.content_type = kEventStream;
  return reply;
}

GenerationReply::GenerationReply(std::unique_ptr<Generation> generation,
                                 std::unique_ptr<ReplyForm> form, const GenerationOptions& options,
                                 std::vector<uint32_t> prompt_tokens, std::string model)
    : generation_(std::move(generation)),
      form_(std::move(form)),
      stream_(options.stream),
      include_usage_(options.include_usage),
      continuous_usage_(options.continuous_usage),
      scored_(options.engine.top_logprobs >= 0),
      n_(options.n),
      id_(NewReplyId(form_->id_prefix())),
      model_(std::move(model)),
      created_(std::time(nullptr)) {
  TS_CHECK(prompt_tokens.size() == generation_->choices());
  for (uint32_t i = 0; i < prompt_tokens.size(); ++i)
    choices_.push_back({.index = i, .prompt_tokens = prompt_tokens[i]});
}

json::object GenerationReply::Head(bool chunk) const {
  return {{"id", id_}, {"object", form_->object(chunk)}, {"created", created_}, {"model", model_}};
}

json::object GenerationReply::ChoiceUsage(const AnswerChoice& choice) const {
  return TokenCounts(choice.prompt_tokens, choice.tokens);
}

// Of all answers. A prompt counts once, however many answers it has; of times, the longest; what
// was read is added up.
json::object GenerationReply::UsageJson() const {
  uint64_t prompt = 0, cached = 0, completion = 0;
  Usage own;
  for (const AnswerChoice& choice : choices_) {
    if (choice.index % n_ == 0) {
      prompt += choice.prompt_tokens;
      cached += choice.usage.cached_tokens;
    }
    completion += choice.tokens;
    const Usage& one = choice.usage;
    own.queue_seconds = std::max(own.queue_seconds, one.queue_seconds);
    own.prefill_seconds = std::max(own.prefill_seconds, one.prefill_seconds);
    own.decode_seconds = std::max(own.decode_seconds, one.decode_seconds);
    own.first_token_seconds = std::max(own.first_token_seconds, one.first_token_seconds);
    AddReads(one.reads, &own.reads);
  }
  json::object usage = TokenCounts(prompt, completion);
  usage["prompt_tokens_details"] = {{"cached_tokens", cached}};
  usage["tinyserve"] = OwnUsageJson(own);
  return usage;
}

void GenerationReply::Send(json::object choice, const AnswerChoice& state, std::string* out) const {
  json::object chunk = Head(true);
  chunk["choices"] = json::array{std::move(choice)};
  if (continuous_usage_) {
    chunk["usage"] = ChoiceUsage(state);
  } else if (include_usage_) {
    chunk["usage"] = nullptr;
  }
  AppendEvent(ToJson(chunk), out);
}

void GenerationReply::Fail(ApiError error, std::string* out) {
  if (error_) return;
  error_ = std::move(error);
  if (stream_) AppendEvent(ErrorJson(*error_), out);
}

void GenerationReply::Take(const Arrival& arrival, std::string* out) {
  const TokenEvent& event = arrival.event;
  AnswerChoice& choice = choices_[arrival.choice];
  choice.text += event.text;
  const bool finished = event.kind == TokenEvent::Kind::kFinished;
  if (finished) {
    choice.finish = event.finish;
    choice.usage = event.usage;
    choice.prompt_logprobs = event.prompt_logprobs;
    choice.prompt_top = event.prompt_top;
    if (!IsAnswer(event.finish)) return Fail(ErrorOfFinish(event), out);
  } else {
    ++choice.tokens;
    if (scored_) choice.scored.push_back({event.token, event.logprob, event.top});
  }
  if (!stream_ || error_) return;
  if (!choice.begun) {
    choice.begun = true;
    std::optional<json::object> opening = form_->Opening(&choice);
    if (opening) Send(*std::move(opening), choice, out);
  }
  // A token that completes no character waits for the one that does.
  if (choice.text.empty() && !finished) return;
  std::optional<json::object> said = form_->Choice(&choice, true);
  choice.text.clear();
  if (!said) return;
  Send(*std::move(said), choice, out);
  choice.scored.clear();
}

bool GenerationReply::Advance(std::string* out) {
  for (const Arrival& arrival : generation_->Take()) Take(arrival, out);
  if (generation_->overflowed()) Fail(SlowReaderError(), out);
  if (!generation_->done() && !error_) return false;
  if (!stream_ || error_) return true;
  if (include_usage_) {
    json::object chunk = Head(true);
    chunk["choices"] = json::array();
    chunk["usage"] = UsageJson();
    AppendEvent(ToJson(chunk), out);
  }
  AppendEvent(kDone, out);
  return true;
}

HttpReply GenerationReply::Whole() {
  if (error_) return ErrorReply(*error_);
  json::array list;
  for (AnswerChoice& choice : choices_) list.push_back(*form_->Choice(&choice, false));
  json::object body = Head(false);
  body["choices"] = std::move(list);
  body["usage"] = UsageJson();
  HttpReply reply;
  reply.body = ToJson(body);
  return reply;
}

}  // namespace tinyserve
