#include "attend/attention.h"

#include <algorithm>
#include <tuple>

#include "base/check.h"

namespace tinyserve {
namespace {

// A generated token's keys are read in splits at fixed absolute positions, merged in order: the
// result does not depend on how many threads or other sequences there are. 256 tokens: 64 KiB of
// f16 K and V at head size 64.
constexpr uint32_t kSplitTokens = 256;
// Prompt rows that share one pass over the keys.
constexpr uint32_t kPromptRows = 64;
// Regions with less work than this many rows run on the caller alone: waking others would cost
// more.
constexpr uint32_t kSerialRows = 4;

uint32_t SplitsOf(uint32_t tokens) { return (tokens + kSplitTokens - 1) / kSplitTokens; }

}  // namespace

Result<std::unique_ptr<Attention>> Attention::Create(const AttentionOptions& options,
                                                     KvCache* cache, const Kernels* kernels,
                                                     ThreadPool* threads) {
  std::unique_ptr<Attention> a(new Attention);
  a->options_ = options;
  a->cache_ = cache;
  a->kernels_ = kernels;
  a->threads_ = threads;
  std::vector<uint32_t> seen(cache->groups(), 0);
  for (uint32_t group : options.group_of_layer) {
    TS_CHECK(group < cache->groups());
    a->layer_in_group_.push_back(seen[group]++);
  }
  a->runs_.reserve(options.rows_max);
  a->groups_.resize(cache->groups());
  uint64_t partials = 0, partial_floats = 0;
  for (uint32_t g = 0; g < cache->groups(); ++g) {
    const KvShape shape = cache->shape(g);
    TS_CHECK(options.heads % shape.kv_heads == 0);
    const uint64_t items = static_cast<uint64_t>(options.rows_max) * shape.kv_heads *
                           SplitsOf(cache->sequence_tokens_max());
    a->groups_[g].merges.reserve(static_cast<size_t>(options.rows_max) * shape.kv_heads);
    partials = std::max(partials, items);
    partial_floats = std::max<uint64_t>(partial_floats, a->QueryGroup(g) * (shape.head_dim + 2ull));
    const uint64_t scratch =
        std::max(kernels->decode_scratch_bytes(&shape, a->QueryGroup(g), kSplitTokens),
                 kernels->prompt_scratch_bytes(&shape, a->QueryGroup(g), kPromptRows));
    a->scratch_stride_ = std::max(a->scratch_stride_, (scratch + 4095) / 4096 * 4096);
  }
  TS_ASSIGN_OR_RETURN(a->partials_, Buffer::Allocate(partials * partial_floats * sizeof(float)));
  TS_ASSIGN_OR_RETURN(a->partial_views_, Buffer::Allocate(partials * sizeof(Partial)));
  TS_ASSIGN_OR_RETURN(a->scratch_, Buffer::Allocate(a->scratch_stride_ * threads->threads()));
  return a;
}

void Attention::Plan(std::span<const SequenceRun> runs) {
  runs_.assign(runs.begin(), runs.end());
  planned_kv_bytes_ = 0;
  planned_multiply_adds_[0] = planned_multiply_adds_[1] = 0;
  for (uint32_t g = 0; g < groups_.size(); ++g) {
    PlanGroup(g);
    CountWork(g);
  }
}

void Attention::PlanGroup(uint32_t group) {
  GroupPlan& plan = groups_[group];
  plan.items.clear();
  plan.merges.clear();
  const uint32_t kv_heads = cache_->shape(group).kv_heads;
  for (uint32_t r = 0; r < runs_.size(); ++r) {
    const SequenceRun& run = runs_[r];
    if (run.token_class != TokenClass::kPrompt) continue;
    for (uint32_t head = 0; head < kv_heads; ++head) {
      for (uint32_t row = 0; row < run.rows; row += kPromptRows) {
        plan.items.push_back({.run = r,
                              .kv_head = head,
                              .first_row = row,
                              .rows = std::min(kPromptRows, run.rows - row),
                              .split = 0,
                              .partial = 0});
      }
    }
  }
  plan.prompt_items = static_cast<uint32_t>(plan.items.size());
  // Threads take items in order: the ones that see the most keys first, so that none is left alone
  // with a long one.
  const auto keys = [this](const Item& i) { return runs_[i.run].first_position + i.first_row; };
  std::sort(plan.items.begin(), plan.items.end(), [&](const Item& a, const Item& b) {
    return keys(a) != keys(b) ? keys(a) > keys(b)
                              : std::tie(a.run, a.kv_head) < std::tie(b.run, b.kv_head);
  });
  uint32_t partials = 0;
  for (uint32_t r = 0; r < runs_.size(); ++r) {
    const SequenceRun& run = runs_[r];
    if (run.token_class != TokenClass::kGenerated) continue;
    for (uint32_t row = 0; row < run.rows; ++row) {
      const uint32_t splits = SplitsOf(run.first_position + row + 1);
      for (uint32_t head = 0; head < kv_heads; ++head) {
        plan.merges.push_back({.row = run.first_row + row,
                               .kv_head = head,
                               .first_partial = partials,
                               .partials = splits});
        for (uint32_t split = 0; split < splits; ++split) {
          plan.items.push_back({.run = r,
                                .kv_head = head,
                                .first_row = row,
                                .rows = 1,
                                .split = split,
                                .partial = partials++});
        }
      }
    }
  }
  for (uint32_t p = 0; p < partials; ++p) partial_views_.as<Partial>()[p] = PartialAt(group, p);
}

void Attention::CountWork(uint32_t group) {
  const KvShape shape = cache_->shape(group);
  const KvSlab slab = cache_->slab(group, 0, 0);
  uint64_t layers =
      std::count(options_.group_of_layer.begin(), options_.group_of_layer.end(), group);
  for (const SequenceRun& run : runs_) {
    const uint64_t end = run.first_position + run.rows;
    planned_kv_bytes_ += layers * shape.kv_heads * slab.page_bytes *
                         ((end + shape.page_tokens - 1) / shape.page_tokens);
    // Row i sees first_position + i + 1 keys.
    const uint64_t keys = run.rows * (run.first_position + 1ull) + run.rows * (run.rows - 1ull) / 2;
    planned_multiply_adds_[static_cast<uint32_t>(run.token_class)] +=
        layers * options_.heads * shape.head_dim * 2 * keys;
  }
}

void Attention::Append(uint32_t layer, const float* k, const float* v, uint64_t stride) {
  const uint32_t group = options_.group_of_layer[layer];
  const KvShape shape = cache_->shape(group);
  const uint32_t last_row = runs_.back().first_row + runs_.back().rows;
  const auto append = [&](uint32_t item, uint32_t) {
    const SequenceRun& run = runs_[item / shape.kv_heads];
    const uint32_t head = item % shape.kv_heads;
    const uint64_t offset = run.first_row * stride + static_cast<uint64_t>(head) * shape.head_dim;
    const AppendArgs args{
        .shape = shape,
        .slab = cache_->slab(group, layer_in_group_[layer], head),
        .pages = cache_->View(run.slot, group, run.first_position + run.rows).pages,
        .first_slot = run.first_position,
        .tokens = run.rows,
        .k = k + offset,
        .v = v + offset,
        .stride = stride};
    kernels_->append(&args);
  };
  const uint32_t items = static_cast<uint32_t>(runs_.size()) * shape.kv_heads;
  if (last_row <= kSerialRows) {
    for (uint32_t i = 0; i < items; ++i) append(i, 0);
  } else {
    threads_->For(items, append);
  }
}

void Attention::Run(uint32_t layer, const float* q, uint64_t q_stride, float* out,
                    uint64_t out_stride) {
  const uint32_t group = options_.group_of_layer[layer];
  const GroupPlan& plan = groups_[group];
  threads_->For(static_cast<uint32_t>(plan.items.size()), [&](uint32_t i, uint32_t thread) {
    if (i < plan.prompt_items) {
      RunPrompt(plan.items[i], layer, q, q_stride, out, out_stride, thread);
    } else {
      // Items are taken in order, so this thread's next one is about as many ahead as there are
      // threads.
      const uint64_t next = uint64_t{i} + threads_->threads();
      RunDecode(plan.items[i], next < plan.items.size() ? &plan.items[next] : nullptr, layer, q,
                q_stride, thread);
    }
  });
  const uint32_t g = QueryGroup(group), head_dim = cache_->shape(group).head_dim;
  const auto merge = [&](uint32_t i, uint32_t) {
    const Merge& m = plan.merges[i];
    kernels_->merge_partials(
        partial_views_.as<Partial>() + m.first_partial, m.partials, g, head_dim,
        out + m.row * out_stride + static_cast<uint64_t>(m.kv_head) * g * head_dim);
  };
  const uint32_t merges = static_cast<uint32_t>(plan.merges.size());
  if (merges <= kSerialRows * cache_->shape(group).kv_heads) {
    for (uint32_t i = 0; i < merges; ++i) merge(i, 0);
  } else {
    threads_->For(merges, merge);
  }
}

void Attention::RunPrompt(const Item& item, uint32_t layer, const float* q, uint64_t q_stride,
                          float* out, uint64_t out_stride, uint32_t thread) {
  const uint32_t group = options_.group_of_layer[layer];
  const SequenceRun& run = runs_[item.run];
  const KvShape shape = cache_->shape(group);
  const uint32_t g = QueryGroup(group), first_position = run.first_position + item.first_row;
  const uint64_t row = run.first_row + item.first_row,
                 column = static_cast<uint64_t>(item.kv_head) * g * shape.head_dim;
  const PromptArgs args{.shape = shape,
                        .slab = cache_->slab(group, layer_in_group_[layer], item.kv_head),
                        .view = cache_->View(run.slot, group, first_position + item.rows),
                        .group = g,
                        .scale = options_.scale,
                        .first_position = first_position,
                        .rows = item.rows,
                        .q = q + row * q_stride + column,
                        .q_stride = q_stride,
                        .out = out + row * out_stride + column,
                        .out_stride = out_stride,
                        .scratch = scratch_.data() + thread * scratch_stride_,
                        .compute = options_.compute};
  kernels_->attend_prompt(&args);
}

PageView Attention::SplitPages(const Item& item, uint32_t group) const {
  const SequenceRun& run = runs_[item.run];
  const uint32_t page_tokens = cache_->shape(group).page_tokens;
  const uint32_t tokens = run.first_position + item.first_row + 1;
  const uint32_t begin = item.split * kSplitTokens, end = std::min(tokens, begin + kSplitTokens);
  PageView view = cache_->View(run.slot, group, end);
  view.pages += begin / page_tokens;
  view.count -= begin / page_tokens;
  return view;
}

void Attention::RunDecode(const Item& item, const Item* next, uint32_t layer, const float* q,
                          uint64_t q_stride, uint32_t thread) {
  const uint32_t group = options_.group_of_layer[layer], in_group = layer_in_group_[layer];
  const KvShape shape = cache_->shape(group);
  const uint32_t g = QueryGroup(group);
  const uint64_t row = runs_[item.run].first_row + item.first_row;
  const DecodeArgs args{
      .shape = shape,
      .slab = cache_->slab(group, in_group, item.kv_head),
      .view = SplitPages(item, group),
      .group = g,
      .scale = options_.scale,
      .q = q + row * q_stride + static_cast<uint64_t>(item.kv_head) * g * shape.head_dim,
      .out = PartialAt(group, item.partial),
      .scratch = scratch_.data() + thread * scratch_stride_,
      .next_slab = next != nullptr ? cache_->slab(group, in_group, next->kv_head) : KvSlab(),
      .next_view = next != nullptr ? SplitPages(*next, group) : PageView()};
  kernels_->attend_decode(&args);
}

Partial Attention::PartialAt(uint32_t group, uint32_t index) const {
  const uint64_t g = QueryGroup(group), floats = g * (cache_->shape(group).head_dim + 2ull);
  float* base = partials_.as<float>() + index * floats;
  return {.m = base, .d = base + g, .o = base + 2 * g};
}

}  // namespace tinyserve
