#include "engine/chunk_sizer.h"

#include <algorithm>
#include <cmath>

namespace tinyserve {
namespace {

// Of a new time. The costs' form is known only roughly, so that times drift with depth, which is to
// be followed; single steps are disturbed, which is not.
constexpr double kNew = 0.3;
// A step may be held up, but none is too fast: of generation, whose time is seldom seen while
// prompts run, what took longer counts less, and nothing counts as more than twice as long.
constexpr double kLonger = 0.1, kHeldUp = 2;
// Towards a new time, so that as many are above as below: few are to tell what steps took before.
constexpr double kNudge = 1.015;
// Cheaper chunks that all layers took say nothing of a unit's time.
constexpr double kFewUnits = 4;
// Before the first chunk beside generation: a unit there may take so much longer than one alone.
constexpr double kCaution = 1.5;
// A step that generates this share of tokens more or less takes about as long.
constexpr double kAlike = 0.25;

void Follow(double seconds, double weight, double* mean) {
  if (*mean == 0) *mean = seconds;
  *mean += weight * (std::min(seconds, kHeldUp * *mean) - *mean);
}

bool Alike(uint32_t a, uint32_t b) {
  return std::abs(static_cast<double>(a) - b) <= kAlike * std::min(a, b);
}

}  // namespace

double PromptCost::Of(uint32_t tokens, uint32_t depth) const {
  const uint32_t left = LeftOfWindow(depth);
  const uint32_t windows = tokens <= left ? 1 : 2 + (tokens - left - 1) / window;
  // Token i of the chunk sees depth + i others.
  return tokens * (1 + slope * (depth + tokens / 2.0)) + windows * ReadOf(depth);
}

double PromptCost::OfPart(uint32_t tokens, uint32_t depth, SublayerRange part,
                          uint32_t layers) const {
  const double feed_forward = tokens * (1 - attention_products);
  const double attention = Of(tokens, depth) - feed_forward;
  return (part.attentions() * attention + part.feed_forwards() * feed_forward) / layers;
}

uint32_t PromptCost::Fitting(double units, uint32_t depth) const {
  const double first = 1 + slope * depth;
  double fitting = 0, end = LeftOfWindow(depth);
  for (uint32_t windows = 1; windows <= kWindowsMax; ++windows, end += window) {
    const double left = units - windows * ReadOf(depth);
    if (left <= 0) break;
    // The root of Of(tokens) = units.
    const double tokens = 2 * left / (first + std::sqrt(first * first + 2 * slope * left));
    fitting = std::max(fitting, std::min(tokens, end));
    if (tokens <= end) break;
  }
  return fitting >= UINT32_MAX ? UINT32_MAX : static_cast<uint32_t>(fitting);
}

uint32_t PromptBudget::Take(uint32_t depth, uint32_t wanted) {
  if (units_ <= 0) return 0;
  const uint32_t fitting = cost_.Fitting(units_, depth);
  const uint32_t least = taken_ ? 0 : std::min(kLeast, cost_.LeftOfWindow(depth));
  const uint32_t tokens = std::min({std::max(fitting, least), wanted, tokens_});
  if (tokens == 0) return 0;
  taken_ = true;
  tokens_ -= tokens;
  units_ -= cost_.Of(tokens, depth);
  return tokens;
}

double PromptBudget::CostOf(const Chunk& chunk, SublayerRange part) const {
  return cost_.OfPart(chunk.tokens, chunk.depth, part, parts_.layers);
}

uint32_t PromptBudget::Fitting(const Chunk& chunk, SublayerRange left) const {
  SublayerRange part{left.begin, left.begin + 1};
  while (part.end < left.end && CostOf(chunk, {part.begin, part.end + 1}) <= units_) ++part.end;
  return part.count();
}

uint32_t PromptBudget::StepsOf(const Chunk& chunk, SublayerRange left) const {
  uint32_t steps = 0;
  for (; !left.empty(); ++steps) left.begin += Fitting(chunk, left);
  return steps;
}

uint32_t PromptBudget::TokensByLayers(uint32_t depth, uint32_t wanted) const {
  constexpr uint32_t kStride = 8;
  if (parts_.tokens_max == 0 || units_ <= 0) return 0;
  const uint32_t most = std::min({wanted, tokens_, parts_.tokens_max, cost_.LeftOfWindow(depth)});
  double best = std::min({cost_.Fitting(units_, depth), wanted, tokens_});  // all layers at once
  uint32_t best_tokens = best > 0 ? 0 : std::min(most, kLeast);
  // Whole sublayers seldom fill a step: those of somewhat fewer tokens may do so better.
  for (uint32_t tokens = most; tokens >= std::min(most, kLeast); tokens -= kStride) {
    const double a_step = static_cast<double>(tokens) / StepsOf({depth, tokens}, {0, sublayers()});
    const bool fits =
        CostOf({depth, tokens}, {0, 1}) <= units_ && CostOf({depth, tokens}, {1, 2}) <= units_;
    if (fits && a_step > best) {
      best = a_step;
      best_tokens = tokens;
    }
    if (tokens < kStride) break;
  }
  return best_tokens;
}

uint32_t PromptBudget::TakeSublayers(uint32_t depth, uint32_t tokens, SublayerRange left) {
  if (units_ <= 0) return 0;
  const Chunk chunk{depth, tokens};
  const uint32_t fitting = Fitting(chunk, left), steps = StepsOf(chunk, left);
  // Alike in each of the steps that it takes, and in no more of them.
  const double share = CostOf(chunk, left) / steps;
  SublayerRange part{left.begin, left.begin + 1};
  while (part.count() < fitting &&
         (CostOf(chunk, part) < share || StepsOf(chunk, {part.end, left.end}) >= steps)) {
    ++part.end;
  }
  taken_ = true;
  tokens_ -= std::min(tokens_, tokens);
  units_ -= CostOf(chunk, part);
  return part.count();
}

bool ChunkSizer::Knows(uint32_t generating) const {
  return generated_ != 0 && age_ < kStale && Alike(generating, generated_);
}

uint32_t ChunkSizer::RangeOf(uint32_t depth) const {
  constexpr double kPerRange = 0.3;  // of a token's products, its attention
  return std::min(kRanges - 1, static_cast<uint32_t>(cost_.slope * depth / kPerRange));
}

double ChunkSizer::UnitSeconds(uint32_t depth) const {
  for (uint32_t range = RangeOf(depth) + 1; range > 0; --range) {
    if (beside_seconds_[range - 1] != 0) return beside_seconds_[range - 1];
  }
  return kCaution * alone_seconds_;
}

void ChunkSizer::Observe(const StepTimes& step) {
  const bool known = generated_ != 0 && Alike(step.generated, generated_);
  if (step.units == 0) {
    if (step.generated == 0) return;
    if (!known) generated_seconds_ = 0;
    Follow(step.seconds, step.seconds > generated_seconds_ ? kLonger : kNew, &generated_seconds_);
    // One step between others that hold prompts tells what streams have come to; not what they
    // were.
    if (!known) {
      before_seconds_ = step.seconds;
    } else if (!beside_) {
      before_seconds_ *= step.seconds > before_seconds_ ? kNudge : 1 / kNudge;
    }
    beside_ = false;
    generated_ = step.generated;
    age_ = 0;
    return;
  }
  if (step.generated > 0) {
    ++age_;
    beside_ = true;
  }
  double* beside = &beside_seconds_[RangeOf(step.depth)];
  // Timed by itself: one layer of few tokens tells, or else who once took its time for too long
  // would never learn better, for no step would have more.
  if (step.part_seconds > 0) return Follow(step.part_seconds / step.units, kNew, beside);
  if (step.units < kFewUnits) return;
  if (step.generated == 0) return Follow(step.seconds / step.units, kNew, &alone_seconds_);
  // Less than generation alone took says nothing.
  if (!known || step.seconds <= generated_seconds_) return;
  Follow((step.seconds - generated_seconds_) / step.units, kNew, beside);
}

PromptBudget ChunkSizer::BudgetBeside(uint32_t generating, uint32_t depth, uint32_t tokens_max,
                                      double spent) const {
  if (!Knows(generating)) return {cost_, 0, tokens_max, parts_};
  const double unit = UnitSeconds(depth);
  // A chunk of the least size will tell, by all layers.
  if (unit == 0) return {cost_, 1, tokens_max, {.layers = parts_.layers, .tokens_max = 0}};
  const double share = parts_.layers == 0 ? kPromptShare : kPartShare;
  const double room = std::max((1 + share) * before_seconds_ - generated_seconds_,
                               kLeastOfShare * share * generated_seconds_);
  return {cost_, (room - spent) / unit, tokens_max, parts_};
}

}  // namespace tinyserve
