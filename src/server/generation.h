// The engine's requests behind one reply: several where a body has several prompts or n > 1.
#ifndef TINYSERVE_SERVER_GENERATION_H_
#define TINYSERVE_SERVER_GENERATION_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "server/api_error.h"
#include "server/event_queue.h"
#include "server/metrics.h"
#include "server/openai_request.h"
#include "tinyserve/engine.h"

namespace tinyserve {

// Its end cancels what still runs. One thread at a time.
class Generation {
 public:
  // Submits `options` for each prompt, n times; choice p * n + i answers prompt p. All or none. The
  // engine and the metrics must outlive it. Nothing: `*error` says why.
  static std::unique_ptr<Generation> Start(Engine* engine, Metrics* metrics,
                                           const GenerationOptions& options,
                                           const std::vector<std::vector<int32_t>>& prompts,
                                           std::optional<ApiError>* error);
  ~Generation();
  Generation(const Generation&) = delete;
  Generation& operator=(const Generation&) = delete;

  uint32_t choices() const { return static_cast<uint32_t>(ids_.size()); }
  void SetWake(ReplyWork::Wake wake) { queue_->SetWake(std::move(wake)); }
  // Cancels what still runs, from any thread, as long as the engine lives.
  std::function<void()> canceller() const;
  // Events since the last call.
  std::vector<Arrival> Take();
  // Every request has finished, or this one was given up because its events were not taken in time.
  bool done() const { return live_ == 0 || overflowed_; }
  bool overflowed() const { return overflowed_; }

 private:
  Generation(Engine* engine, Metrics* metrics, size_t events_max);
  void Observe(const Arrival& arrival);

  Engine* engine_;
  Metrics* metrics_;
  std::shared_ptr<EventQueue> queue_;  // shared with the engine's thread
  std::vector<RequestId> ids_;         // by choice
  std::vector<bool> finished_;         // by choice
  std::vector<std::chrono::steady_clock::time_point> last_token_;  // by choice; zero: none yet
  std::chrono::steady_clock::time_point submitted_;
  uint32_t live_ = 0;
  bool overflowed_ = false;
};

// Refuses prompts that leave no room in the context, and says how many tokens each answer may have:
// what was asked for, or what is left. Nothing: `*error` says why.
std::optional<std::vector<uint32_t>> AnswerRoom(const std::vector<std::vector<int32_t>>& prompts,
                                                std::optional<uint32_t> max_tokens,
                                                uint32_t context_tokens,
                                                std::optional<ApiError>* error);

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_GENERATION_H_
