// Events of a generation made a reply: one JSON object, or a stream of server-sent events.
#ifndef TINYSERVE_SERVER_GENERATION_REPLY_H_
#define TINYSERVE_SERVER_GENERATION_REPLY_H_

#include <boost/json/object.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "server/generation.h"
#include "server/http_types.h"
#include "server/logprobs_json.h"
#include "server/openai_request.h"

namespace tinyserve {

// "stop" or "length", OpenAI's words, of a finished answer; null while there is more to come.
boost::json::value FinishJson(FinishReason reason);

// One answer as far as it has come.
struct AnswerChoice {
  uint32_t index = 0;
  uint32_t prompt_tokens = 0;
  std::string text;                 // what was not sent yet
  std::vector<ScoredToken> scored;  // tokens that were not sent yet, where log-probabilities are
                                    // wanted
  uint64_t text_offset = 0;         // characters before `scored`
  bool begun = false;               // a stream has sent its first chunk
  uint32_t tokens = 0;              // generated
  FinishReason finish = FinishReason::kNone;
  Usage usage;
  std::vector<float> prompt_logprobs;  // as TokenEvent has them
  std::vector<std::vector<TokenLogprob>> prompt_top;
};

// What the two completion APIs do differently.
class ReplyForm {
 public:
  virtual ~ReplyForm() = default;
  virtual const char* id_prefix() const = 0;
  virtual const char* object(bool chunk) const = 0;
  // The chunk that opens an answer's stream, or nothing.
  virtual std::optional<boost::json::object> Opening(AnswerChoice* choice) = 0;
  // A member of `choices`: what is in `text` and `scored`, with why it ended where it has. `chunk`:
  // of a stream; nothing then: `text` was taken and completes nothing yet.
  virtual std::optional<boost::json::object> Choice(AnswerChoice* choice, bool chunk) = 0;
};

class GenerationReply : public ReplyWork {
 public:
  // `prompt_tokens`: of each choice. `model`: its served name.
  GenerationReply(std::unique_ptr<Generation> generation, std::unique_ptr<ReplyForm> form,
                  const GenerationOptions& options, std::vector<uint32_t> prompt_tokens,
                  std::string model);

  void SetWake(Wake wake) override { generation_->SetWake(std::move(wake)); }
  bool Advance(std::string* out) override;
  HttpReply Whole() override;

 private:
  boost::json::object Head(bool chunk) const;
  boost::json::object UsageJson() const;
  boost::json::object ChoiceUsage(const AnswerChoice& choice) const;
  void Take(const Arrival& arrival, std::string* out);
  void Send(boost::json::object choice, const AnswerChoice& state, std::string* out) const;
  void Fail(ApiError error, std::string* out);

  std::unique_ptr<Generation> generation_;
  std::unique_ptr<ReplyForm> form_;
  const bool stream_, include_usage_, continuous_usage_, scored_;
  const uint32_t n_;
  const std::string id_, model_;
  const int64_t created_;  // seconds, Unix time
  std::vector<AnswerChoice> choices_;
  std::optional<ApiError> error_;
};

// What usage says of TinyServe's own: times, and what of the KV cache was read.
boost::json::object OwnUsageJson(const Usage& usage);
// Whether it is the end of a whole answer: of one that said all, or all that it might.
bool IsAnswer(FinishReason reason);
// Of an answer that ended without being one: kError, kDeadline, kCancelled, a slow reader's.
ApiError ErrorOfFinish(const TokenEvent& event);
ApiError DeadlineError();
ApiError SlowReaderError();

// A reply that waits for `work`, as a stream or whole.
HttpReply GenerationHttpReply(std::unique_ptr<ReplyWork> work, bool stream);

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_GENERATION_REPLY_H_
