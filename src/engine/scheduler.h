// Which requests run and what each step holds. Pure: it sees counts and ids, never tensors, clocks
// or threads.
#ifndef TINYSERVE_ENGINE_SCHEDULER_H_
#define TINYSERVE_ENGINE_SCHEDULER_H_

#include <algorithm>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <vector>

#include "engine/chunk_sizer.h"
#include "model/sublayer_range.h"
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
  uint64_t client = 0;  // whose it is
};

// One sequence's part of a step.
struct ScheduledRow {
  RequestId id;
  uint32_t first_position;
  uint32_t length;
  bool prompt;   // a chunk of the prompt; else generated tokens, more than one where they are
                 // replayed
  bool sampled;  // a token is sampled after it
  // Of a chunk that goes through the layers by and by: the sublayers of this step. Empty: all.
  SublayerRange part = {};
  bool done = true;  // with these it has gone through all
};

struct ScheduledStep {
  // A chunk that goes through the layers by and by comes last.
  std::vector<ScheduledRow> rows;
  // Lost their blocks and wait again, first in their line: what they generated is replayed once
  // they are admitted.
  std::vector<RequestId> preempted;
};

// Every running request is promised blocks for what it has, its whole prompt and the next token;
// all promises together never exceed the pool. When one that generates needs more, the last
// admitted of the lowest class gives way. Since each fits the pool alone, the first of the highest
// class always goes on: nothing deadlocks.
//
// Who waits is chosen by class, then by client, then by arrival. A class is served in proportion to
// its weight (16, 4, 1) while others wait, so none starves; in a class, the client that was served
// the fewest tokens is next, so none crowds others out by asking often. Who is chosen is not
// overtaken by a smaller request.
class Scheduler {
 public:
  explicit Scheduler(const SchedulerLimits& limits)
      : limits_(limits), running_max_(limits.sequences_max) {}

  // Admits while fewer than this run, from now on. REQUIRES: 1 .. sequences_max.
  void SetRunningMax(uint32_t sequences) { running_max_ = sequences; }

  // KV blocks that a request can come to need. The last generated token is never fed back.
  uint32_t BlocksFor(const ScheduledRequest& request) const;

  // REQUIRES: BlocksFor is at most the pool's.
  void Submit(const ScheduledRequest& request);
  // A request ended (finished, cancelled, failed), wherever it was. False: unknown.
  bool Remove(RequestId id);

  // Moves waiting requests to the running ones while they can be promised blocks. Returns who was
  // admitted.
  std::vector<RequestId> Admit();
  // An admitted request may be planned from now on: the first `done` tokens of its prompt, not all,
  // need not be computed. Rows of its generated tokens end at multiples of row_multiple where that
  // is not 0, also where they are replayed. by_layers: chunks of its prompt may go through the
  // layers by and by.
  void Start(RequestId id, uint32_t done, uint32_t row_multiple = 0, bool by_layers = false);
  // Of what a running request has done, so many tokens no longer need blocks, until it is
  // preempted.
  void Drop(RequestId id, uint32_t tokens);
  // The next step: the next token of each sequence that generates and has one left, then what
  // others have to compute, in order of class and admission, of those that have started; beside
  // tokens of generation as much as the budget has. Planned tokens count as done, but those of a
  // chunk that goes through the layers by and by, of which CameTo is to tell. There is one of them
  // at a time; it goes first until it is done or its request has ended or is preempted.
  void Plan(PromptBudget budget, ScheduledStep* step);
  // Whether the next step is certain while tokens of the last one are not known yet: it holds those
  // that generate and have tokens left to generate, if none of them ends before, and nobody has to
  // give way.
  bool OnlyGenerates() const;
  // The planned step's chunk that goes through the layers by and by has come to this sublayer, or
  // has gone through all that there are. Returns whether it has: its tokens are done.
  bool CameTo(uint32_t sublayer);

  uint32_t running() const { return static_cast<uint32_t>(running_.size()); }
  uint32_t generating() const;  // of them, those whose next token the next step generates
  // Tokens that have been computed of the first of those that have others to compute; 0: none has.
  uint32_t prompt_depth() const;
  uint32_t waiting() const { return waiting_count_; }
  uint32_t blocks_promised() const { return blocks_promised_; }

 private:
  // A request, and how many of its tokens are known: the prompt, and what was sampled.
  struct Running {
    ScheduledRequest request;
    uint32_t known;
    uint32_t done = 0;  // tokens planned so far
    bool started = false;
    uint32_t blocks = 0;  // promised
    uint32_t row_multiple = 0;
    bool by_layers = false;
    uint32_t dropped = 0;  // tokens
  };
  // A chunk of a running request's prompt that has gone through some layers, and not all.
  struct Part {
    RequestId id = 0;
    uint32_t tokens = 0;  // 0: there is none
    SublayerRange left = {};
  };
  struct Waiting {
    ScheduledRequest request;
    uint32_t known;
  };
  struct Client {
    uint64_t served = 0;  // tokens, since it or the one that it was measured by began
    uint32_t live = 0;    // its requests that wait or run
  };
  using Lines = std::map<uint64_t, std::deque<Waiting>>;  // by client; none is empty

  uint32_t BlocksOf(uint64_t tokens) const {
    return static_cast<uint32_t>((tokens + limits_.block_tokens - 1) / limits_.block_tokens);
  }
  void Enqueue(const Waiting& waiting, bool first);
  void Forget(uint64_t client);
  // The class and the line of who is next. REQUIRES: somebody waits.
  size_t NextClass() const;
  Lines::iterator NextLine(Lines* lines) const;
  // Promises blocks for `tokens` tokens; false: it had to be preempted itself.
  bool Promise(RequestId id, uint32_t tokens, ScheduledStep* step);
  void Preempt(size_t index, ScheduledStep* step);
  static bool Generates(const Running& r) {
    return r.started && r.done >= r.request.prompt_tokens && r.done + 1 == r.known;
  }
  // It generates, and its last token is sampled by what has been planned.
  static bool Ends(const Running& r) {
    return r.known >= r.request.prompt_tokens + std::max(1u, r.request.max_tokens);
  }
  // Blocks for `tokens` tokens of it, beyond those that it is promised.
  uint32_t MoreBlocks(const Running& r, uint32_t tokens) const {
    const uint32_t blocks = BlocksOf(tokens - r.dropped);
    return blocks - std::min(blocks, r.blocks);
  }
  // What is known of it and not done.
  static uint32_t LeftOf(const Running& r);
  void PlanRow(Running* r, uint32_t length, ScheduledStep* step);
  ScheduledRow RowOf(const Running& r, uint32_t length) const;
  void CountAsDone(const ScheduledRow& row, Running* r);
  // Rows of those that do not generate; beside others as much as the budget has, null: they are
  // alone.
  void PlanPrompts(PromptBudget* budget, ScheduledStep* step);
  // The next sublayers of part_; none where the budget is empty.
  std::optional<ScheduledRow> GoOn(PromptBudget* budget);
  std::vector<Running>::iterator FindRunning(RequestId id);

  SchedulerLimits limits_;
  uint32_t running_max_;
  Lines waiting_[3];  // by class
  uint32_t waiting_count_ = 0;
  uint64_t passes_[3] = {};  // by class: admissions over weight
  uint64_t pass_ = 0;        // of the last admission
  std::map<uint64_t, Client> clients_;
  std::vector<Running> running_;  // by class, then in order of admission
  Part part_;
  uint32_t blocks_promised_ = 0;
};

}  // namespace tinyserve

#endif  // TINYSERVE_ENGINE_SCHEDULER_H_
