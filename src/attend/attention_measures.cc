// What is measured beside a step's attention: how far selection is from dense attention, and how
// much attention units of tokens get.
#include <algorithm>

#include "attend/attention.h"

namespace tinyserve {

void Attention::RunShadow(const LayerIo& io) {
  const std::span<const ShadowCheck::Pick> picks = shadow_->picks();
  const auto here = [&](uint32_t i) {
    return picks[i].layer == io.layer && !HasLeft(runs_[picks[i].run].first_row + picks[i].row);
  };
  const auto n = static_cast<uint32_t>(picks.size());
  const uint32_t group = options_.group_of_layer[io.layer];
  const uint32_t columns = QueryGroup(group) * cache_->shape(group).head_dim;
  const auto measure = [&](uint32_t i, uint32_t thread) {
    if (!here(i)) return;
    const ShadowCheck::Pick& pick = picks[i];
    const SequenceRun& run = runs_[pick.run];
    const uint64_t row = run.first_row + uint64_t{pick.row};
    const uint64_t column = uint64_t{pick.kv_head} * columns;
    shadow_->Measure(i,
                     {.group = group,
                      .layer_in_group = layer_in_group_[io.layer],
                      .slot = run.slot,
                      .position = run.first_position + pick.row,
                      .q = io.q + row * io.q_stride + column,
                      .out = io.out + row * io.out_stride + column},
                     thread);
  };
  uint32_t found = 0;
  for (uint32_t i = 0; i < n; ++i) found += here(i) ? 1 : 0;
  if (found > 1) {
    threads_->For(n, measure);
  } else if (found == 1) {
    for (uint32_t i = 0; i < n; ++i) measure(i, 0);
  }
  for (uint32_t i = 0; i < n; ++i) {
    if (here(i)) shadow_->Count(i);
  }
}

void Attention::PlanMass(const SequenceRun& run) {
  if (run.measure_every == 0) return;
  if (run.first_position == 0) mass_->Begin(run.slot);
  for (uint32_t row = 0; row < run.rows; ++row) {
    SequenceRun one = run;
    one.first_position += row;
    if ((one.first_position + 1) % run.measure_every != 0) continue;
    mass_->Pick({.row = run.first_row + row, .slot = run.slot, .position = one.first_position});
    // In the arithmetic of generated tokens, whatever the row's own.
    uint64_t* adds = &planned_multiply_adds_[static_cast<uint32_t>(TokenClass::kGenerated)];
    for (const uint32_t group : options_.group_of_layer)
      CountRows(group, one, 1, 1, &planned_kv_bytes_, adds);
  }
}

void Attention::RunMass(const LayerIo& io) {
  const std::span<const UnitMass::Query> queries = mass_->queries();
  if (queries.empty()) return;
  const uint32_t group = options_.group_of_layer[io.layer];
  const KvShape shape = cache_->shape(group);
  const uint64_t columns = uint64_t{QueryGroup(group)} * shape.head_dim;
  const auto count = static_cast<uint32_t>(queries.size());
  for (uint32_t first = 0; first < count; first += UnitMass::kTogether) {
    const uint32_t end = std::min(first + UnitMass::kTogether, count);
    threads_->For((end - first) * shape.kv_heads, [&](uint32_t item, uint32_t thread) {
      const uint32_t query = first + item / shape.kv_heads, head = item % shape.kv_heads;
      const uint64_t row = queries[query].row;
      if (HasLeft(row)) return;
      mass_->Measure(query, group, layer_in_group_[io.layer], head,
                     io.q + row * io.q_stride + head * columns, thread);
    });
    for (uint32_t query = first; query < end; ++query) {
      if (!HasLeft(queries[query].row)) mass_->AddLayer(query, shape.kv_heads);
    }
  }
}

}  // namespace tinyserve
