// What a step's attention is divided into, planned on the batch's page tables.
#include <algorithm>
#include <tuple>

#include "attend/attention.h"
#include "base/check.h"

namespace tinyserve {
namespace {

// An item whose rows are shared among threads leaves each at least so many, for each makes the
// conversions of the keys for itself.
constexpr uint32_t kSharedRows = 4;
// With so many items for each thread, the last ones are too small a part to be shared.
constexpr uint32_t kManyItems = 8;

}  // namespace

bool Attention::Selects(const SequenceRun& run, uint32_t row) const {
  return run.token_class == TokenClass::kGenerated && run.selector != 0 &&
         !selectors_[run.selector - 1]->ReadsAll(run.first_position + row + 1);
}

void Attention::Plan(std::span<const SequenceRun> runs) {
  const TraceScope scope(trace_, TraceKind::kPlan);
  runs_.assign(runs.begin(), runs.end());
  planned_kv_bytes_ = 0;
  planned_multiply_adds_[0] = planned_multiply_adds_[1] = 0;
  counts_before_.Add(chooser_->step_counts());
  chooser_->BeginStep(runs_.size());
  shadow_->BeginStep();
  first_sparse_layer_ = UINT32_MAX;
  next_layer_ = 0;
  any_left_ = false;
  for (const SequenceRun& run : runs_) {
    TS_CHECK(run.selector <= selectors_.size());
    // A slot that holds another sequence now begins with a prompt, and states are those of a run
    // of generated tokens.
    if (run.token_class == TokenClass::kPrompt) {
      chooser_->Forget(run.slot);
      cache_->ForgetStates(run.slot);
    }
    if (run.rows > 0 && Selects(run, run.rows - 1)) {
      first_sparse_layer_ =
          std::min(first_sparse_layer_, selectors_[run.selector - 1]->dense_layers());
    }
  }
  for (uint32_t g = 0; g < groups_.size(); ++g) {
    PlanGroup(g);
    CountWork(g);
  }
  mass_->Settle();
  for (const SequenceRun& run : runs_) PlanMass(run);
  for (uint32_t r = 0; r < runs_.size(); ++r) {
    for (uint32_t row = 0; row < runs_[r].rows; ++row) {
      if (!Selects(runs_[r], row)) continue;
      shadow_->Offer(runs_[r].selector, r, row, selectors_[runs_[r].selector - 1]->dense_layers(),
                     static_cast<uint32_t>(layer_in_group_.size()), cache_->shape(0).kv_heads);
    }
  }
}

void Attention::PlanGroup(uint32_t group) {
  Group& plan = groups_[group];
  plan.sparse.clear();
  plan.chains.clear();
  plan.fused.clear();
  PlanRows(group, /*all=*/true, &plan.all);
  uint32_t partials = plan.all.partials, rests = 0;
  if (first_sparse_layer_ != UINT32_MAX) {
    PlanRows(group, /*all=*/false, &plan.others);
    partials = plan.others.partials;
    for (uint32_t r = 0; r < runs_.size(); ++r) {
      for (uint32_t head = 0; head < cache_->shape(group).kv_heads; ++head) {
        for (uint32_t row = 0; row < runs_[r].rows; ++row) {
          if (!Selects(runs_[r], row)) continue;
          const Selector& selector = *selectors_[runs_[r].selector - 1];
          const SparseItem item{.run = r, .row = row, .kv_head = head, .first_partial = partials};
          // Pages and means that take their place fill one split more at most.
          const uint32_t rest = selector.rest_means() ? 1 : 0;
          partials += SplitsAt(runs_[r].first_position + row) + rest;
          rests += rest;
          if (selector.cascade() != nullptr) {
            plan.fused.push_back(item);
            continue;
          }
          const auto at = static_cast<uint32_t>(plan.sparse.size());
          plan.sparse.push_back(item);
          const bool follows = at > 0 && plan.sparse[at - 1].run == r &&
                               plan.sparse[at - 1].kv_head == head && selector.has_state();
          if (!follows) plan.chains.push_back({.first = at, .end = at});
          ++plan.chains.back().end;
        }
      }
    }
    TS_CHECK(partials == plan.all.partials + rests);  // the same rows, in another order
  }
  for (uint32_t p = 0; p < partials; ++p) partial_views_.as<Partial>()[p] = PartialAt(group, p);
}

uint32_t Attention::SplitsAt(uint32_t position) const {
  const uint32_t raw = cache_->RawBegin(position);
  return SplitsOf(raw) + SplitsOf(position + 1 - raw);
}

void Attention::PlanPromptRows(uint32_t r, uint32_t kv_heads, GroupPlan* plan) {
  const SequenceRun& run = runs_[r];
  const bool many = run.rows / kPromptRows * kv_heads >= 2 * threads_->threads();
  const uint32_t block = many ? kPromptRows : kPromptRows / 2;
  for (uint32_t row = 0, rows; row < run.rows; row += rows) {
    const uint32_t first = run.first_position + row, rows_max = std::min(block, run.rows - row);
    // Rows of an item see the same tokens raw.
    for (rows = 1; rows < rows_max;) {
      if (cache_->RawBegin(first + rows) != cache_->RawBegin(first)) break;
      ++rows;
    }
    for (uint32_t head = 0; head < kv_heads; ++head) {
      plan->items.push_back(
          {.run = r, .kv_head = head, .first_row = row, .rows = rows, .split = 0, .partial = 0});
    }
  }
}

void Attention::ShareLastItems(std::vector<Item>* items) const {
  const uint32_t threads = threads_->threads(), count = static_cast<uint32_t>(items->size());
  const uint32_t left = count % threads;
  if (left == 0 || count >= kManyItems * threads) return;
  const uint32_t parts = threads / left;
  for (uint32_t i = count - left; i < count; ++i) {
    const Item whole = (*items)[i];
    const uint32_t rows = std::max(kSharedRows, (whole.rows + parts - 1) / parts);
    (*items)[i].rows = std::min(rows, whole.rows);
    for (uint32_t row = rows; row < whole.rows; row += rows) {
      Item part = whole;
      part.first_row += row;
      part.rows = std::min(rows, whole.rows - row);
      items->push_back(part);
    }
  }
}

void Attention::PlanRows(uint32_t group, bool all, GroupPlan* plan) {
  plan->items.clear();
  plan->merges.clear();
  const uint32_t kv_heads = cache_->shape(group).kv_heads;
  for (uint32_t r = 0; r < runs_.size(); ++r) {
    if (runs_[r].token_class == TokenClass::kPrompt) PlanPromptRows(r, kv_heads, plan);
  }
  // Threads take items in order: the ones that see the most keys first, so that none is left alone
  // with a long one.
  const auto keys = [this](const Item& i) { return runs_[i.run].first_position + i.first_row; };
  std::sort(plan->items.begin(), plan->items.end(), [&](const Item& a, const Item& b) {
    return keys(a) != keys(b) ? keys(a) > keys(b)
                              : std::tie(a.run, a.kv_head) < std::tie(b.run, b.kv_head);
  });
  // Where others generate, their items fill the gap.
  const bool alone = std::all_of(runs_.begin(), runs_.end(), [](const SequenceRun& run) {
    return run.token_class == TokenClass::kPrompt;
  });
  if (alone) ShareLastItems(&plan->items);
  plan->prompt_items = static_cast<uint32_t>(plan->items.size());
  uint32_t partials = 0;
  for (uint32_t r = 0; r < runs_.size(); ++r) {
    const SequenceRun& run = runs_[r];
    if (run.token_class != TokenClass::kGenerated) continue;
    for (uint32_t row = 0; row < run.rows; ++row) {
      if (!all && Selects(run, row)) continue;
      const uint32_t splits = SplitsAt(run.first_position + row);
      for (uint32_t head = 0; head < kv_heads; ++head) {
        plan->merges.push_back({.row = run.first_row + row,
                                .kv_head = head,
                                .first_partial = partials,
                                .partials = splits});
        for (uint32_t split = 0; split < splits; ++split) {
          plan->items.push_back({.run = r,
                                 .kv_head = head,
                                 .first_row = row,
                                 .rows = 1,
                                 .split = split,
                                 .partial = partials++});
        }
      }
    }
  }
  plan->partials = partials;
}

void Attention::CountWork(uint32_t group) {
  uint64_t layers = 0, layers_before = 0;  // before: those in which every row reads everything
  for (uint32_t l = 0; l < options_.group_of_layer.size(); ++l) {
    if (options_.group_of_layer[l] != group) continue;
    ++layers;
    if (l < first_sparse_layer_) ++layers_before;
  }
  for (const SequenceRun& run : runs_) {
    // Rows that select come after those that do not: a row's context grows.
    uint32_t plain = run.rows;
    while (plain > 0 && Selects(run, plain - 1)) --plain;
    uint64_t* adds = &planned_multiply_adds_[static_cast<uint32_t>(run.token_class)];
    CountRows(group, run, layers_before, run.rows, &planned_kv_bytes_, adds);
    CountRows(group, run, layers - layers_before, plain, &planned_kv_bytes_, adds);
  }
}

void Attention::CountRows(uint32_t group, const SequenceRun& run, uint64_t layers, uint64_t rows,
                          uint64_t* kv_bytes, uint64_t* multiply_adds) const {
  if (rows == 0) return;
  const KvShape shape = cache_->shape(group);
  const uint64_t raw_bytes = cache_->open_slab(group, 0, 0).page_bytes;
  const uint64_t coded_bytes = cache_->PageBytes(group);
  const uint64_t end = run.first_position + rows;
  // Rows see the run's own windows raw, and decoded all but the last row's.
  const uint64_t raw_pages =
      (end - cache_->RawBegin(run.first_position) + shape.page_tokens - 1) / shape.page_tokens;
  const uint64_t coded_pages = cache_->RawBegin(static_cast<uint32_t>(end - 1)) / shape.page_tokens;
  *kv_bytes += layers * shape.kv_heads * (raw_pages * raw_bytes + coded_pages * coded_bytes);
  // Row i sees first_position + i + 1 keys.
  const uint64_t keys = rows * (run.first_position + 1ull) + rows * (rows - 1ull) / 2;
  *multiply_adds += layers * options_.heads * shape.head_dim * 2 * keys;
}

void Attention::Leave(std::span<const uint32_t> rows) {
  if (!any_left_) left_after_.assign(runs_.back().first_row + runs_.back().rows, UINT32_MAX);
  any_left_ = true;
  for (const uint32_t row : rows) {
    left_after_[row] = next_layer_;
    const auto run = std::find_if(runs_.begin(), runs_.end(), [row](const SequenceRun& r) {
      return row < r.first_row + r.rows;
    });
    TS_CHECK(run->token_class == TokenClass::kGenerated);
    if (run->rows > 1) continue;
    uint64_t bytes = 0, adds = 0;
    for (uint32_t l = next_layer_; l < options_.group_of_layer.size(); ++l) {
      if (l < first_sparse_layer_ || !Selects(*run, 0))
        CountRows(options_.group_of_layer[l], *run, 1, 1, &bytes, &adds);
    }
    planned_kv_bytes_ -= bytes;
    planned_multiply_adds_[static_cast<uint32_t>(TokenClass::kGenerated)] -= adds;
  }
}

}  // namespace tinyserve
