// What a step's attention has read, in all and by run.
#include <algorithm>

#include "attend/attention.h"

namespace tinyserve {

uint64_t Attention::kv_bytes() const {
  return planned_kv_bytes_ + chooser_->step_counts().bytes_read;
}

uint64_t Attention::multiply_adds(TokenClass token_class) const {
  const bool generated = token_class == TokenClass::kGenerated;
  return planned_multiply_adds_[static_cast<uint32_t>(token_class)] +
         (generated ? chooser_->step_counts().multiply_adds : 0);
}

SelectionCounts Attention::selection_counts() const {
  SelectionCounts counts = counts_before_;
  counts.Add(chooser_->step_counts());
  return counts;
}

SelectionCounts Attention::ReadsOf(uint32_t run) const {
  SelectionCounts reads = chooser_->run_counts(run);
  const SequenceRun& rows = runs_[run];
  for (uint32_t row = 0; row < rows.rows; ++row) {
    SequenceRun one = rows;
    one.first_position += row;
    const uint32_t layers = std::min(LayersOf(uint64_t{rows.first_row} + row),
                                     static_cast<uint32_t>(options_.group_of_layer.size()));
    const uint32_t dense = Selects(rows, row) ? std::min(layers, first_sparse_layer_) : layers;
    for (uint32_t l = 0; l < dense; ++l) {
      const uint32_t group = options_.group_of_layer[l];
      const KvShape shape = cache_->shape(group);
      const uint32_t raw = cache_->RawBegin(one.first_position), end = one.first_position + 1;
      const uint64_t pages =
          uint64_t{shape.kv_heads} *
          (raw / shape.page_tokens + (end - raw + shape.page_tokens - 1) / shape.page_tokens);
      SelectionCounts all{.queries = shape.kv_heads,
                          .pages_held = pages,
                          .pages_read = pages,
                          .tokens_read = uint64_t{shape.kv_heads} * end};
      CountRows(group, one, 1, 1, &all.bytes_read, &all.multiply_adds);
      all.bytes_held = all.bytes_read;
      reads.Add(all);
    }
  }
  return reads;
}

}  // namespace tinyserve
