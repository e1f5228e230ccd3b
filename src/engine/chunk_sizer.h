// How much of a prompt a step may hold beside tokens of generation.
#ifndef TINYSERVE_ENGINE_CHUNK_SIZER_H_
#define TINYSERVE_ENGINE_CHUNK_SIZER_H_

#include <cstdint>

#include "model/sublayer_range.h"

namespace tinyserve {

// What a chunk of a prompt costs, in the cost of a prompt's first token (a unit). Pure.
struct PromptCost {
  static constexpr uint32_t kWindowsMax = 16;

  // What each earlier position adds to a token: its attention, over the products of one token.
  double slope = 0;
  // Every chunk reads and converts all that came before it, for as much as the attention of so many
  // more tokens.
  double read_tokens = 0;
  // Where keys are coded in windows of so many positions, it does so once for each window that it
  // touches.
  uint32_t window = UINT32_MAX;
  // Of a token's products, those beside attention: of queries, keys, values and its output.
  double attention_products = 0.25;

  // Of a chunk of `tokens` tokens after `depth` others.
  double Of(uint32_t tokens, uint32_t depth) const;
  // Of some sublayers of such a chunk, of a model of so many layers.
  double OfPart(uint32_t tokens, uint32_t depth, SublayerRange part, uint32_t layers) const;
  // Tokens after `depth` others that cost at most so much, over kWindowsMax windows at most; may be
  // none.
  uint32_t Fitting(double units, uint32_t depth) const;
  double ReadOf(uint32_t depth) const { return read_tokens * slope * depth; }
  // Positions from `depth` to the end of its window.
  uint32_t LeftOfWindow(uint32_t depth) const { return window - depth % window; }
};

// Chunks that go through the layers by and by, some in each step (Executor::part_tokens_max).
struct ChunkParts {
  uint32_t layers = 0;      // of the model; 0: every chunk goes through all in one step
  uint32_t tokens_max = 0;  // 0: none begins
};

// What a step was of, and what it took.
struct StepTimes {
  uint32_t generated = 0;  // tokens
  double units = 0;        // that its prompts cost, 0 to all of a chunk's
  uint32_t depth = 0;      // of the first prompt
  double seconds = 0;
  double part_seconds = 0;  // of these: a chunk's that goes by layers, all that prompts took; or 0
};

// What the prompts of one step may cost, and have.
class PromptBudget {
 public:
  // The first prompt's chunk, where the budget is not empty: prompts go on however deep they are.
  // Of fewer tokens, most of a deep chunk's time would be its reading of what came before: with 4,
  // a prompt of 6000 tokens beside streams that select took 4 times as long as alone.
  static constexpr uint32_t kLeast = 8;

  PromptBudget(const PromptCost& cost, double units, uint32_t tokens_max = UINT32_MAX,
               ChunkParts parts = {})
      : cost_(cost), units_(units), tokens_(tokens_max), parts_(parts) {}

  // Tokens for a prompt of which `depth` have been computed and `wanted` have not, at least 1; what
  // they cost is taken off.
  uint32_t Take(uint32_t depth, uint32_t wanted);
  // The same for a chunk that is to go through the layers by and by: as many as make the most
  // tokens a step. 0: as many go through all layers in one step, or none may.
  uint32_t TokensByLayers(uint32_t depth, uint32_t wanted) const;
  uint32_t sublayers() const { return kSublayers * parts_.layers; }
  double units() const { return units_; }  // left
  // How many of the sublayers `left` that such a chunk has not gone through it goes through in this
  // step; they are taken off. 0: the budget is empty.
  uint32_t TakeSublayers(uint32_t depth, uint32_t tokens, SublayerRange left);

 private:
  // A chunk that goes through the layers by and by.
  struct Chunk {
    uint32_t depth, tokens;
  };
  double CostOf(const Chunk& chunk, SublayerRange part) const;
  // Sublayers of what is left that the budget has room for, 1 at least.
  uint32_t Fitting(const Chunk& chunk, SublayerRange left) const;
  // Steps of such budgets that what is left takes.
  uint32_t StepsOf(const Chunk& chunk, SublayerRange left) const;

  PromptCost cost_;
  double units_;  // left
  uint32_t tokens_;
  ChunkParts parts_;
  bool taken_ = false;
};

// A prompt that arrives makes the steps of running streams longer. Chunks are kept so small that a
// step with one takes a fixed multiple of the time that steps took before it came, by the times
// that steps took: streams that become longer meanwhile, and with them their steps, leave prompts
// less. Times come in; pure.
//
// With the share s of a step's time that prompts may take beside it, streams' steps become 1 + s
// times as long, and a prompt needs e * (1 + 1 / s) times its time alone, where e is what small
// chunks cost more than large ones. To hold 3 and 2.5, with single steps a seventh longer than
// most: s <= 1.6, and e <= 1.5 then. A chunk's reading of what came before
// (PromptCost::read_tokens) is what makes e: 1.2 to 1.45 over a prompt of 6000 tokens, as measured.
// With s = 1.2 and chunks of 4 tokens e is 1.5 to 2.2: fewer tokens for each reading. Where chunks
// go through the layers by and by they are large ones: e is smaller, and s may be. But
// whole sublayers seldom fill it, and streams take more of it as they grow.
class ChunkSizer {
 public:
  static constexpr double kPromptShare = 1.6, kPartShare = 1.3;
  // Of such a share of a step's time as it is now, this much is left to prompts at least.
  static constexpr double kLeastOfShare = 0.5;
  // Steps with a prompt, after which one goes without, so that its time stays known.
  static constexpr uint32_t kStale = 64;

  explicit ChunkSizer(const PromptCost& cost, ChunkParts parts = {}) : cost_(cost), parts_(parts) {}

  const PromptCost& cost() const { return cost_; }
  const ChunkParts& parts() const { return parts_; }
  void Observe(const StepTimes& step);
  // For a step that generates so many tokens and goes on with a prompt at `depth`, `spent` seconds
  // after the one before ended. Empty where the time of such a step is not known: it will be, by
  // this one.
  PromptBudget BudgetBeside(uint32_t generating, uint32_t depth, uint32_t tokens_max,
                            double spent = 0) const;
  // How long a step takes that uses up such a budget.
  double SecondsWith(const PromptBudget& budget, uint32_t depth) const {
    return generated_seconds_ + budget.units() * UnitSeconds(depth);
  }

 private:
  // The costs' form is known only roughly: units are timed by ranges of depth.
  static constexpr uint32_t kRanges = 5;
  bool Knows(uint32_t generating) const;
  uint32_t RangeOf(uint32_t depth) const;
  double UnitSeconds(uint32_t depth) const;  // 0: not known

  const PromptCost cost_;
  const ChunkParts parts_;
  // Of a step that only generates; 0: none was seen.
  double generated_seconds_ = 0;
  double before_seconds_ = 0;  // the median of such steps while no prompt was there
  bool beside_ = false;        // the last step that generated held one
  uint32_t generated_ = 0;     // tokens of it
  uint32_t age_ = 0;           // steps with prompts since
  // Of a unit; 0: none was seen. Small chunks beside generation and large ones alone differ.
  double beside_seconds_[kRanges] = {}, alone_seconds_ = 0;
};

}  // namespace tinyserve

#endif  // TINYSERVE_ENGINE_CHUNK_SIZER_H_
