// Which requests run and what each step holds. Pure: it sees counts and ids, never tensors, clocks
// or threads.
#ifndef TINYSERVE_ENGINE_SCHEDULER_H_
#define TINYSERVE_ENGINE_SCHEDULER_H_

#include <cstdint>
#include <deque>
#include <vector>

#include "tinyserve/engine.h"

namespace tinyserve {

struct SchedulerLimits {
  uint32_t step_tokens_max;  // tokens of one step
  uint32_t sequences_max;    // requests that run at once; at most step_tokens_max
  uint32_t blocks;           // of the KV pool
  uint32_t block_tokens;
};

// What a request asks of the scheduler.
struct ScheduledRequest {
  RequestId id;
  uint32_t prompt_tokens;
  uint32_t max_tokens;  // generated at most
  Priority priority;
};

// One sequence's part of a step.
struct ScheduledRow {
  RequestId id;
  uint32_t first_position;
  uint32_t length;
  bool prompt;       // a chunk of the prompt; else one generated token
  bool last_prompt;  // the chunk ends the prompt: a token is sampled after it
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerLimits& limits) : limits_(limits) {}

  // KV blocks that a request can come to need. The last generated token is never fed back.
  uint32_t BlocksFor(const ScheduledRequest& request) const;

  void Submit(const ScheduledRequest& request);
  // A request ended (finished, cancelled, failed), wherever it was. False: unknown.
  bool Remove(RequestId id);

  // Moves waiting requests to the running ones, in order of class and then arrival, while each can
  // be given every block it may come to need: so a running request never waits for memory, and the
  // first in line never starves. Returns who was admitted.
  std::vector<RequestId> Admit();
  // The next step: one token of each sequence that generates, then chunks of prompts in order of
  // admission. Empty: nothing runs. Planned tokens count as done.
  void Plan(std::vector<ScheduledRow>* rows);

  uint32_t running() const { return static_cast<uint32_t>(running_.size()); }
  uint32_t waiting() const;
  uint32_t blocks_promised() const { return blocks_promised_; }

 private:
  struct Running {
    ScheduledRequest request;
    uint32_t blocks;
    uint32_t done;  // tokens planned so far, prompt and generated
  };

  SchedulerLimits limits_;
  std::deque<ScheduledRequest> waiting_[3];  // by priority
  std::vector<Running> running_;             // in order of admission
  uint32_t blocks_promised_ = 0;
};

}  // namespace tinyserve

#endif  // TINYSERVE_ENGINE_SCHEDULER_H_
