// A request from submission to its last event.
#ifndef TINYSERVE_ENGINE_JOB_H_
#define TINYSERVE_ENGINE_JOB_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "attend/selection_counts.h"
#include "base/trace.h"
#include "engine/answer_text.h"
#include "engine/pooled_state.h"
#include "engine/sampler.h"
#include "kv/kv_cache.h"
#include "tinyserve/engine.h"

namespace tinyserve {

// Owned by the engine thread once it left the inbox.
struct Job {
  RequestId id;
  Request request;  // its prompt is in `tokens`
  EventSink sink;
  std::vector<int32_t> tokens;  // the prompt, then what was generated
  uint32_t prompt_tokens = 0;
  uint32_t cached_tokens = 0;  // of the prompt, adopted from the cache
  double submitted = 0, started = 0, first_token = 0,
         last_token = 0;  // seconds, steady clock; 0: not yet
  SequenceSlot slot = 0;
  uint32_t selector = 0;             // of the executor
  uint32_t steps = 0;                // step plugins: of the executor
  std::vector<uint64_t> step_state;  // of those that end answers
  bool running = false;              // it has the slot
  bool planned = false;              // the scheduler has started it
  // While it waits to adopt what another request computes: that one, and how many tokens.
  RequestId follows = 0;
  uint32_t followed_tokens = 0;
  uint32_t done = 0;  // tokens that are committed
  std::unique_ptr<Sampler> sampler;
  std::unique_ptr<AnswerText> answer;
  std::vector<float> prompt_logprobs;
  std::vector<std::vector<TokenLogprob>> prompt_top;
  PooledState pooled;
  SelectionCounts reads;  // by its generated tokens

  uint32_t generated() const { return static_cast<uint32_t>(tokens.size()) - prompt_tokens; }
  // Something is wanted of every token of its prompt, so that none can come from the cache.
  bool computes_whole_prompt() const {
    return request.prompt_logprobs || request.pooling == Pooling::kMean;
  }
  std::span<const int32_t> prompt() const { return std::span(tokens).first(prompt_tokens); }
};

// What a trace tells of a job that ends now.
TraceRequest LifeOf(const Job& job, FinishReason reason, uint64_t now_ns);

}  // namespace tinyserve

#endif  // TINYSERVE_ENGINE_JOB_H_
