#include "device/device_counts.h"

#include <algorithm>

#include "page/planes.h"

namespace tinyserve::cuda {

DeviceCounts::DeviceCounts(const KvCache* cache, uint32_t layers, uint32_t group)
    : cache_(cache), layers_(layers), kv_heads_(cache->shape(0).kv_heads), group_(group) {
  strips_.resize(uint64_t{layers} * kv_heads_);
}

// Of one KV head.
SelectionCounts DeviceCounts::QueryAt(const DeviceSelector* selector, const RowReads& reads,
                                      uint32_t position) const {
  const KvShape shape = cache_->shape(0);
  const uint64_t page_bytes = cache_->PageBytes(0);
  const uint64_t open_bytes = reads.open * uint64_t{cache_->open_slab(0, 0, 0).page_bytes};
  const uint32_t kinds =
      selector == nullptr ? 0 : selector->spec.needs(cache_->meta_layout(0).kinds);
  const uint64_t record_bytes = uint64_t{MetaLayoutOf(kinds, shape.head_dim).record_bytes} +
                                (selector == nullptr ? 0 : selector->SummaryBytes(shape));
  const uint64_t tokens =
      position + 1ull - uint64_t{reads.pages - reads.budget} * shape.page_tokens;
  return {.queries = 1,
          .pages_held = uint64_t{reads.pages} + reads.open,
          .pages_scored = reads.scored,
          .pages_read = uint64_t{reads.budget} + reads.open,
          .tokens_read = tokens,
          .bytes_read = reads.budget * page_bytes + open_bytes + reads.scored * record_bytes,
          .bytes_held = reads.pages * page_bytes + open_bytes,
          .multiply_adds = (tokens + reads.scored) * 2 * group_ * shape.head_dim};
}

// As PageChooser::CountCascade counts.
SelectionCounts DeviceCounts::CascadeAt(const DeviceSelector& selector, const RowReads& reads,
                                        uint32_t position, uint32_t layer) const {
  const KvShape shape = cache_->shape(0);
  const PlanesLayout at = PlanesLayoutOf(shape.head_dim);
  const uint32_t raw = cache_->RawBegin(position), raw_tokens = position + 1 - raw;
  const uint32_t widen = selector.Widen(layer);
  const uint64_t candidates = std::min(widen * reads.budget, reads.pages);
  const uint64_t tokens = candidates * shape.page_tokens;
  const uint64_t full = std::min<uint64_t>(widen * reads.full_tokens, tokens);
  const uint64_t values = std::min<uint64_t>(widen * reads.value_tokens, tokens);
  // Where all go on, none is scored.
  const uint64_t scored = candidates < reads.pages ? reads.scored : 0;
  const uint64_t open_bytes = reads.open * uint64_t{cache_->open_slab(0, 0, 0).page_bytes};
  return {.queries = 1,
          .pages_held = uint64_t{reads.pages} + reads.open,
          .pages_scored = scored,
          .pages_read = candidates + reads.open,
          .tokens_read = values + raw_tokens,
          .bytes_read = scored * cache_->meta_layout(0).record_bytes + candidates * at.low_at +
                        full * LineBytes(at.low_bytes) + values * LineBytes(at.channels) +
                        open_bytes,
          .bytes_held = reads.pages * uint64_t{cache_->PageBytes(0)} + open_bytes,
          .multiply_adds = (2 * scored + tokens + full + values + candidates + 2 * raw_tokens) *
                           group_ * shape.head_dim};
}

void DeviceCounts::Reset() {
  total_ = SelectionCounts();
  std::fill(strips_.begin(), strips_.end(), SelectionCounts());
}

void DeviceCounts::CountWork(const StepRow& row, uint64_t generated_multiply_adds) {
  const auto token_class = static_cast<size_t>(row.token_class);
  work_.tokens[token_class] += row.length;
  const bool one = row.want == Want::kLogits;
  const bool all = row.want == Want::kEveryLogits || row.want == Want::kLogProbs;
  work_.logits += all ? row.length : one ? 1 : 0;
  if (row.token_class == TokenClass::kGenerated) {
    work_.attention[token_class] += generated_multiply_adds;
    return;
  }
  uint64_t seen = 0;  // keys, by all rows
  for (uint32_t i = 0; i < row.length; ++i) seen += row.first_position + i + 1ull;
  work_.attention[token_class] +=
      seen * 2 * group_ * cache_->shape(0).head_dim * kv_heads_ * layers_;
}

void DeviceCounts::CountStep(const StepBatch& batch, const std::vector<DeviceSelector>& selectors,
                             const PlannedRows& planned) {
  rows_.assign(batch.rows.size(), SelectionCounts());
  kv_bytes_ = 0;
  work_ = DeviceWork();
  for (size_t r = 0; r < batch.rows.size(); ++r) {
    const StepRow& row = batch.rows[r];
    const bool generated = row.token_class == TokenClass::kGenerated;
    // A prompt's rows see its keys together, once.
    for (uint32_t i = generated ? 0 : row.length - 1; i < row.length; ++i) {
      const uint32_t position = row.first_position + i;
      const DeviceSelector* selector =
          generated && row.selector != 0 ? &selectors[row.selector - 1] : nullptr;
      const RowReads all = ReadsAt(*cache_, nullptr, position);
      const bool selects = selector != nullptr && !selector->ReadsAll(position + 1);
      for (uint32_t layer = 0; layer < layers_; ++layer) {
        const bool dense = !selects || layer < selector->spec.budget.dense_layers;
        const SelectionCounts query =
            dense               ? QueryAt(nullptr, all, position)
            : selector->cascade ? CascadeAt(*selector, planned.ReadsOf(r, i), position, layer)
                                : QueryAt(selector, planned.ReadsOf(r, i), position);
        for (uint32_t head = 0; head < kv_heads_; ++head) {
          rows_[r].Add(query);
          if (!selects) continue;
          total_.Add(query);
          strips_[uint64_t{layer} * kv_heads_ + head].Add(query);
        }
      }
    }
    kv_bytes_ += rows_[r].bytes_read;
    CountWork(row, rows_[r].multiply_adds);
  }
}

void DeviceCounts::CountFailures(const StepBatch& batch,
                                 const std::vector<DeviceSelector>& selectors,
                                 const PlannedRows& planned, const uint32_t* failed) {
  const KvShape shape = cache_->shape(0);
  for (size_t r = 0; r < batch.rows.size(); ++r) {
    const StepRow& row = batch.rows[r];
    if (row.token_class != TokenClass::kGenerated || row.selector == 0) continue;
    const DeviceSelector& selector = selectors[row.selector - 1];
    if (!selector.scorer) continue;
    for (uint32_t i = 0; i < row.length; ++i) {
      const RowReads& reads = planned.ReadsOf(r, i);
      const uint64_t unread = reads.pages - reads.budget, tokens = unread * shape.page_tokens;
      const SelectionCounts more{.pages_read = unread,
                                 .tokens_read = tokens,
                                 .bytes_read = unread * cache_->PageBytes(0),
                                 .multiply_adds = tokens * 2 * group_ * shape.head_dim,
                                 .failures = 1};
      const uint64_t at = (uint64_t{planned.rows[r].first_row} + i) * layers_ * kv_heads_;
      const uint32_t dense = std::min(selector.spec.budget.dense_layers, layers_);
      for (uint32_t strip = dense * kv_heads_; reads.selects && strip < layers_ * kv_heads_;
           ++strip) {
        if (failed[at + strip] == 0) continue;
        rows_[r].Add(more);
        total_.Add(more);
        strips_[strip].Add(more);
        kv_bytes_ += more.bytes_read;
      }
    }
  }
}

}  // namespace tinyserve::cuda
