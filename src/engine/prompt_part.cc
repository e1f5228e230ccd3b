#include "engine/prompt_part.h"

#include <algorithm>

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
                     std::span<const uint32_t> positions, SublayerRange part, uint64_t until_ns) {
  const uint64_t begin_ns = NowNs();
  const uint32_t all = kSublayers * model_->config().layers;
  TS_CHECK(run.token_class == TokenClass::kPrompt && run.rows <= tokens_max());
  TS_CHECK(part.begin < part.end && part.end <= all);
  const bool follows = run.slot == run_.slot && run.first_position == run_.first_position &&
                       run.rows == run_.rows && part.begin == next_;
  TS_CHECK(part.begin == 0 || follows);
  if (!follows) std::fill_n(took_ns_, kSublayers, uint64_t{0});
  run_ = run;
  run_.first_row = 0;
  next_ = part.begin;
  ran_ = {part.begin, part.begin};
  seconds_ = 0;
  // Held up, the streams wait for no sublayer as well; twice in a row, the prompt does not wait.
  left_out_ = until_ns != 0 && begin_ns >= until_ns && !left_out_;
  if (left_out_) return;
  attention_->Plan({&run_, 1});
  step_->Begin(tokens, positions, attention_);
  model_->Prepare(step_.get(), part.begin);
  uint64_t now_ns = begin_ns;
  for (bool goes_on = true; goes_on && next_ < part.end;) {
    model_->ForwardSublayer(next_, step_.get());
    took_ns_[next_ % kSublayers] = NowNs() - now_ns;
    now_ns += took_ns_[next_ % kSublayers];
    ++next_;
    goes_on = until_ns == 0 || now_ns + took_ns_[next_ % kSublayers] <= until_ns;
  }
  ran_.end = next_;
  seconds_ = static_cast<double>(now_ns - begin_ns) * 1e-9;
  if (trace_ != nullptr) {
    trace_->Add(TraceSpan{.kind = TraceKind::kPart,
                          .label = nullptr,
                          .begin_ns = begin_ns,
                          .end_ns = now_ns,
                          .args = {run.rows, ran_.begin, ran_.end}});
  }
  kv_bytes_ = attention_->kv_bytes();
  multiply_adds_ = attention_->multiply_adds(TokenClass::kPrompt);
}

std::span<const float> PromptPart::states() const {
  return {step_->x(), uint64_t{run_.rows} * model_->config().dim};
}

StepCost PromptPart::cost(DotKind attention_dot) const {
  const uint32_t layers = model_->config().layers;
  const ProductCost products = model_->CostOfPart(run_.rows, ran_);
  StepCost cost{.weight_bytes = products.weight_bytes,
                .kv_bytes = kv_bytes_ * ran_.attentions() / layers};
  std::copy_n(products.multiply_adds, kDotKinds, cost.multiply_adds);
  cost.multiply_adds[static_cast<uint32_t>(attention_dot)] +=
      multiply_adds_ * ran_.attentions() / layers;
  return cost;
}

}  // namespace tinyserve
