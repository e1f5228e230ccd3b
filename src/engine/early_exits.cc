#include "engine/early_exits.h"

#include <algorithm>

namespace tinyserve {

void EarlyExits::Begin(Step* step, std::span<const StepPlugins* const> plugins,
                       std::span<const uint32_t> positions) {
  step_ = step;
  plugins_ = plugins;
  positions_ = positions;
  rows_of_layer_.clear();
  asked_count_ = 0;
  any_ = std::any_of(plugins.begin(), plugins.end(), [](const auto* p) { return p != nullptr; });
}

void EarlyExits::AfterLayer(uint32_t layers_done, const OnLeave& on_leave) {
  rows_of_layer_.push_back(static_cast<uint32_t>(step_->active().size()));
  if (layers_done == model_->config().layers) return;
  asked_.clear();
  for (const uint32_t row : step_->active()) {
    if (plugins_[row] != nullptr && plugins_[row]->AsksAfter(layers_done)) asked_.push_back(row);
  }
  asked_count_ += asked_.size();
  leaving_.clear();
  for (size_t i = 0; i < asked_.size(); i += rows_max_) {
    const size_t n = std::min<size_t>(rows_max_, asked_.size() - i);
    Ask(std::span(asked_).subspan(i, n), layers_done, on_leave);
  }
  step_->Leave(leaving_);
}

void EarlyExits::Ask(std::span<const uint32_t> rows, uint32_t layers_done,
                     const OnLeave& on_leave) {
  const uint32_t vocab = model_->config().vocab;
  model_->Logits(step_, rows, scratch_);
  leaves_.assign(rows.size(), 0);
  threads_->For(static_cast<uint32_t>(rows.size()), [&](uint32_t i, uint32_t) {
    const float* logits = scratch_ + uint64_t{i} * vocab;
    const bool leaves = plugins_[rows[i]]->Leaves({.struct_size = 0,
                                                   .layers_done = layers_done,
                                                   .position = positions_[rows[i]],
                                                   .vocab = vocab,
                                                   .logits = logits});
    leaves_[i] = leaves ? 1 : 0;
    if (leaves) on_leave(rows[i], logits);
  });
  for (size_t i = 0; i < rows.size(); ++i) {
    if (leaves_[i] != 0) leaving_.push_back(rows[i]);
  }
}

}  // namespace tinyserve
