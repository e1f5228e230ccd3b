// What one step runs: rows of many sequences, decodes and prefill chunks mixed. Indices only, never
// pointers, so that it could cross a process.
#ifndef TINYSERVE_ENGINE_STEP_BATCH_H_
#define TINYSERVE_ENGINE_STEP_BATCH_H_

#include <cstdint>
#include <vector>

#include "attend/attention.h"
#include "model/sublayer_range.h"

namespace tinyserve {

// What a row's results are wanted for.
enum class Want : uint8_t {
  kNothing,      // only its keys and values
  kLogits,       // logits after its last token
  kLogProbs,     // log-probability of each next token of the row given the ones before
                 // (teacher-forced), and logits after the last
  kHidden,       // final hidden states of every token
  kEveryLogits,  // logits after every token of the row
};

// One input token: a literal id (>= 0), or what row i of the previous step sampled, written as ~i.
using StepInput = int32_t;

// A logit that is changed before a draw: bias is added (minus infinity rules the token out), then
// the row's penalties for what is known of the token.
struct LogitEdit {
  int32_t token;
  float bias = 0;
  bool seen = false;       // in the prompt or generated
  uint32_t generated = 0;  // so many times
};

// How the token after a row is drawn where an executor may draw it by itself
// (Executor::draw_limits): as the engine's sampler draws it (engine/sampler.h).
struct DrawRule {
  bool on_device = false;
  float temperature = 0, min_p = 0;
  uint64_t seed = 0;
  float top_p = 1;
  uint32_t top_k = 0;
  float repetition = 1, presence = 0, frequency = 0;  // penalties
  uint32_t first_edit = 0, edits = 0;                 // into StepBatch::edits, of different tokens
  int32_t top_logprobs = -1;                          // as Request's

  bool penalises() const { return repetition != 1 || presence != 0 || frequency != 0; }
};

struct StepRow {
  SequenceSlot slot;
  uint32_t first_position;  // absolute position of the row's first token, dropped ones counted
  uint32_t length;          // tokens, at least 1
  uint32_t first_input;     // into StepBatch::inputs
  TokenClass token_class;
  Want want;
  uint32_t top_logprobs = 0;  // kLogProbs: how many of the likeliest tokens to name at each place
  uint32_t selector = 0;  // what generated tokens read: 0 is everything, i is the executor's i-th
  uint32_t steps = 0;  // step plugins of generated tokens: 0 is none, i is the executor's i-th set
  DrawRule draw = {};
  // Of a prompt row that goes through the layers by and by (Executor::part_tokens_max): the
  // sublayers of this step, after the other rows' layers. It has results where the last one has
  // run. Empty: all layers.
  SublayerRange part = {};
  // Of an executor that draws: which of StepBatch::masks says what may come; -1: everything.
  int32_t mask_slot = -1;
};

struct StepBatch {
  std::vector<StepRow> rows;
  std::vector<StepInput> inputs;
  // An edit knows of no input that is written as ~i: it counts for the row's penalties beside them.
  std::vector<LogitEdit> edits;
  std::vector<uint32_t> masks;  // [slots][(vocab + 31) / 32]: bit t % 32 of word t / 32: t may come
  // A row's part (StepRow::part) ends before a sublayer that is likely to end later (NowNs()), but
  // not before its first: that is left out only where the time is over when it would begin, and
  // never by two parts in a row. 0: all of them run.
  uint64_t part_until_ns = 0;

  void Clear() {
    rows.clear();
    inputs.clear();
    edits.clear();
    masks.clear();
    part_until_ns = 0;
  }
};

}  // namespace tinyserve

#endif  // TINYSERVE_ENGINE_STEP_BATCH_H_
