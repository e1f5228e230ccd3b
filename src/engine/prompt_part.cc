#include "engine/prompt_part.h"

#include <cstring>

#include "base/check.h"
#include "base/clock.h"

namespace tinyserve {

Result<std::unique_ptr<PromptPart>> PromptPart::Create(const Model* model, Step* step,
                                                       Attention* attention, Trace* trace,
                                                       uint32_t tokens_max) {
  std::unique_ptr<PromptPart> p(new PromptPart);
  p->model_ = model;
  p->step_ = step;
  p->attention_ = attention;
  p->trace_ = trace;
  p->tokens_max_ = tokens_max;
  const uint64_t floats = uint64_t{tokens_max} * model->config().dim;
  TS_ASSIGN_OR_RETURN(p->states_, Buffer::Allocate(floats * sizeof(float)));
  return p;
}

void PromptPart::Run(const SequenceRun& run, std::span<const int32_t> tokens,
                     std::span<const uint32_t> positions, LayerRange layers, uint64_t until_ns) {
  const TraceScope scope(trace_, TraceKind::kPart, run.rows, layers.begin, layers.end);
  const uint32_t all = model_->config().layers;
  TS_CHECK(run.token_class == TokenClass::kPrompt && run.rows <= tokens_max_);
  TS_CHECK(layers.begin < layers.end && layers.end <= all);
  const bool follows = run.slot == run_.slot && run.first_position == run_.first_position &&
                       run.rows == run_.rows && layers.begin == next_layer_;
  TS_CHECK(layers.begin == 0 || follows);
  run_ = run;
  run_.first_row = 0;
  attention_->Plan({&run_, 1});
  if (layers.begin > 0) std::memcpy(step_->x(), states_.data(), states().size_bytes());
  step_->Begin(tokens, positions, attention_);
  model_->Prepare(step_, layers.begin);
  const bool may_end = until_ns != 0 && layers.end < all;
  next_layer_ = layers.begin;
  do {
    model_->ForwardLayer(next_layer_++, step_);
  } while (next_layer_ < layers.end && !(may_end && NowNs() > until_ns));
  std::memcpy(states_.data(), step_->x(), states().size_bytes());
  ran_share_ = static_cast<double>(next_layer_ - layers.begin) / all;
  kv_bytes_ = attention_->kv_bytes();
  multiply_adds_ = attention_->multiply_adds(TokenClass::kPrompt);
}

std::span<const float> PromptPart::states() const {
  return {states_.as<float>(), uint64_t{run_.rows} * model_->config().dim};
}

StepCost PromptPart::cost(DotKind attention_dot) const {
  const auto ran = [this](uint64_t all) {
    return static_cast<uint64_t>(ran_share_ * static_cast<double>(all));
  };
  const ProductCost products = model_->CostOf(run_.rows, 0);
  StepCost cost{.weight_bytes = ran(products.weight_bytes), .kv_bytes = ran(kv_bytes_)};
  for (uint32_t kind = 0; kind < kDotKinds; ++kind)
    cost.multiply_adds[kind] = ran(products.multiply_adds[kind]);
  cost.multiply_adds[static_cast<uint32_t>(attention_dot)] += ran(multiply_adds_);
  return cost;
}

}  // namespace tinyserve
