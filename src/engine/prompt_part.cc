#include "engine/prompt_part.h"

#include "base/check.h"
#include "base/clock.h"

namespace tinyserve {

Result<std::unique_ptr<PromptPart>> PromptPart::Create(const Model* model, const Kernels* kernels,
                                                       ThreadPool* threads, Attention* attention,
                                                       Trace* trace, uint32_t tokens_max) {
  std::unique_ptr<PromptPart> p(new PromptPart);
  p->model_ = model;
  p->attention_ = attention;
  p->trace_ = trace;
  // Its logits are made of the states where they have joined those of other rows.
  TS_ASSIGN_OR_RETURN(p->step_,
                      Step::Create(model->Sizes(tokens_max, /*logits_max=*/0), kernels, threads));
  return p;
}

void PromptPart::Run(const SequenceRun& run, std::span<const int32_t> tokens,
                     std::span<const uint32_t> positions, LayerRange layers, uint64_t until_ns) {
  const uint64_t begin_ns = NowNs();
  const uint32_t all = model_->config().layers;
  TS_CHECK(run.token_class == TokenClass::kPrompt && run.rows <= tokens_max());
  TS_CHECK(layers.begin < layers.end && layers.end <= all);
  const bool follows = run.slot == run_.slot && run.first_position == run_.first_position &&
                       run.rows == run_.rows && layers.begin == next_layer_;
  TS_CHECK(layers.begin == 0 || follows);
  run_ = run;
  run_.first_row = 0;
  next_layer_ = layers.begin;
  seconds_ = ran_share_ = 0;
  // Held up, the streams wait for no layer as well; twice in a row, the prompt does not wait.
  left_out_ = until_ns != 0 && begin_ns >= until_ns && !left_out_;
  if (left_out_) return;
  attention_->Plan({&run_, 1});
  step_->Begin(tokens, positions, attention_);
  model_->Prepare(step_.get(), layers.begin);
  for (bool goes_on = true; goes_on && next_layer_ < layers.end;) {
    model_->ForwardLayer(next_layer_++, step_.get());
    const uint64_t now_ns = NowNs(), mean_ns = (now_ns - begin_ns) / (next_layer_ - layers.begin);
    goes_on = until_ns == 0 || now_ns + mean_ns <= until_ns;
  }
  const uint64_t end_ns = NowNs();
  seconds_ = static_cast<double>(end_ns - begin_ns) * 1e-9;
  if (trace_ != nullptr) {
    trace_->Add(TraceSpan{.kind = TraceKind::kPart,
                          .label = nullptr,
                          .begin_ns = begin_ns,
                          .end_ns = end_ns,
                          .args = {run.rows, layers.begin, next_layer_}});
  }
  ran_share_ = static_cast<double>(next_layer_ - layers.begin) / all;
  kv_bytes_ = attention_->kv_bytes();
  multiply_adds_ = attention_->multiply_adds(TokenClass::kPrompt);
}

std::span<const float> PromptPart::states() const {
  return {step_->x(), uint64_t{run_.rows} * model_->config().dim};
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
