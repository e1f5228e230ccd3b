#include "attend/attention.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace tinyserve {
namespace {

// Regions with less work than this many rows run on the caller alone: waking others would cost
// more.
constexpr uint32_t kSerialRows = 4;
// Queries that select are given to threads whole, choosing and attending in one go, where there are
// at least so many for each thread; fewer are cut into splits, whose lists are kept meanwhile. The
// arithmetic is the same.
constexpr uint32_t kListsPerThread = 4;

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
    // What is not coded, and means of what is not read, have a split more each at most.
    const uint64_t splits = SplitsOf(cache->sequence_tokens_max()) + (cache->coded(g) ? 2 : 1);
    const uint64_t items = static_cast<uint64_t>(options.rows_max) * shape.kv_heads * splits;
    for (GroupPlan* plan : {&a->groups_[g].all, &a->groups_[g].others})
      plan->merges.reserve(static_cast<size_t>(options.rows_max) * shape.kv_heads);
    partials = std::max(partials, items);
    partial_floats = std::max<uint64_t>(partial_floats, a->QueryGroup(g) * (shape.head_dim + 2ull));
    const uint32_t group = a->QueryGroup(g);
    uint64_t scratch = 0;
    for (const KvShape& read : {shape, cache->open_shape(g)}) {
      scratch = std::max({scratch, kernels->decode_scratch_bytes(&read, group, kSplitTokens),
                          kernels->prompt_scratch_bytes(&read, group, kPromptRows)});
    }
    if (shape.type == KvType::kPlanes) {
      const uint32_t pages_max = cache->sequence_tokens_max() / shape.page_tokens;
      scratch = std::max(scratch, kernels->cascade_scratch_bytes(&shape, group, pages_max));
    }
    a->scratch_stride_ = std::max(a->scratch_stride_, (scratch + 4095) / 4096 * 4096);
  }
  TS_ASSIGN_OR_RETURN(a->partials_, Buffer::Allocate(partials * partial_floats * sizeof(float)));
  TS_ASSIGN_OR_RETURN(a->partial_views_, Buffer::Allocate(partials * sizeof(Partial)));
  TS_ASSIGN_OR_RETURN(a->scratch_, Buffer::Allocate(a->scratch_stride_ * threads->threads()));
  TS_ASSIGN_OR_RETURN(
      a->chooser_,
      PageChooser::Create(cache, kernels, static_cast<uint32_t>(options.group_of_layer.size()),
                          options.heads, options.scale, threads->threads()));
  TS_ASSIGN_OR_RETURN(a->summaries_, PageSummaries::Create(cache, kernels, threads->threads()));
  TS_ASSIGN_OR_RETURN(a->rest_, RestMeans::Create(cache, kernels, options.heads, options.scale,
                                                  threads->threads()));
  TS_ASSIGN_OR_RETURN(a->shadow_, ShadowCheck::Create(cache, kernels, options.heads, options.scale,
                                                      threads->threads()));
  TS_ASSIGN_OR_RETURN(
      a->mass_, UnitMass::Create(cache, kernels, options.heads, options.scale, threads->threads()));
  const uint32_t lists = kListsPerThread * threads->threads();
  a->list_pages_ = cache->sequence_tokens_max() / cache->page_tokens() + 1;
  TS_ASSIGN_OR_RETURN(a->lists_,
                      Buffer::Allocate(uint64_t{lists} * a->list_pages_ * sizeof(uint32_t)));
  a->list_counts_.resize(lists);
  a->first_split_.resize(lists + 1);
  return a;
}

void Attention::AddSelector(const Selector* selector) {
  selectors_.push_back(selector);
  summaries_->Add(selector);
}

void Attention::ResetSelectionCounts() {
  counts_before_ = {};
  chooser_->ResetCounts();
}

void Attention::Append(uint32_t layer, const float* k, const float* v, uint64_t stride) {
  if (trace_ != nullptr) layer_begin_ns_ = NowNs();
  const uint32_t group = options_.group_of_layer[layer];
  const KvShape shape = cache_->open_shape(group);
  const uint32_t last_row = runs_.back().first_row + runs_.back().rows;
  const auto append = [&](uint32_t item, uint32_t thread) {
    const SequenceRun& run = runs_[item / shape.kv_heads];
    const uint32_t head = item % shape.kv_heads;
    const uint64_t offset = run.first_row * stride + static_cast<uint64_t>(head) * shape.head_dim;
    const uint32_t first = cache_->open_first(run.slot), end = run.first_position + run.rows;
    const AppendArgs args{.shape = shape,
                          .slab = cache_->open_slab(group, layer_in_group_[layer], head),
                          .pages = cache_->OpenView(run.slot, group, first, end).pages,
                          .first_slot = run.first_position - first,
                          .tokens = run.rows,
                          .k = k + offset,
                          .v = v + offset,
                          .stride = stride};
    kernels_->append(&args);
    if (cache_->coded(group)) SealWindows(layer, run, head);
    Summarise(layer, run, head, thread);
  };
  const uint32_t items = static_cast<uint32_t>(runs_.size()) * shape.kv_heads;
  if (last_row <= kSerialRows) {
    for (uint32_t i = 0; i < items; ++i) append(i, 0);
  } else {
    threads_->ForAlike(items, append);
  }
}

void Attention::SealWindows(uint32_t layer, const SequenceRun& run, uint32_t kv_head) {
  const uint32_t group = options_.group_of_layer[layer], in_group = layer_in_group_[layer];
  const uint32_t page_tokens = cache_->page_tokens();
  const uint32_t begin = cache_->codec().WindowBegin(run.first_position);
  const uint32_t end = cache_->codec().WindowBegin(run.first_position + run.rows);
  if (begin == end) return;
  const PageView open = cache_->OpenView(run.slot, group, begin, end);
  const PageView coded = cache_->View(run.slot, group, end);
  SealArgs args{.open = cache_->open_shape(group),
                .open_slab = cache_->open_slab(group, in_group, kv_head),
                .open_page = 0,
                .shape = cache_->shape(group),
                .slab = cache_->slab(group, in_group, kv_head),
                .records = cache_->records(group, in_group, kv_head),
                .layout = cache_->meta_layout(group),
                .page = 0};
  for (uint32_t page = 0; page < open.count; ++page) {
    args.open_page = open.pages[page];
    args.page = coded.pages[begin / page_tokens + page];
    kernels_->seal_page(&args);
  }
}

void Attention::Summarise(uint32_t layer, const SequenceRun& run, uint32_t kv_head,
                          uint32_t thread) {
  const uint32_t group = options_.group_of_layer[layer], page_tokens = cache_->page_tokens();
  const Codec& codec = cache_->codec();
  // Where nothing is coded, windows are tokens.
  const uint32_t begin = codec.WindowBegin(run.first_position) / page_tokens;
  const uint32_t end = codec.WindowBegin(run.first_position + run.rows) / page_tokens;
  if (begin == end) return;
  summaries_->Make({.group = group,
                    .layer = layer,
                    .layer_in_group = layer_in_group_[layer],
                    .kv_head = kv_head},
                   cache_->View(run.slot, group, end * page_tokens).pages, begin, end, thread);
}

void Attention::Run(uint32_t layer, const float* q, uint64_t q_stride, float* out,
                    uint64_t out_stride) {
  const LayerIo io{
      .layer = layer, .q = q, .q_stride = q_stride, .out = out, .out_stride = out_stride};
  const Group& group = groups_[options_.group_of_layer[layer]];
  next_layer_ = layer + 1;
  if (layer < first_sparse_layer_) {
    RunItems(group.all, {}, io);
  } else {
    RunItems(group.others, group.fused, io);
    if (!group.sparse.empty()) RunSparse(group, io);
    RunShadow(io);
  }
  RunMass(io);
  if (trace_ != nullptr) {
    trace_->Add(TraceSpan{.kind = TraceKind::kAttention,
                          .label = nullptr,
                          .begin_ns = layer_begin_ns_,
                          .end_ns = NowNs(),
                          .args = {layer}});
  }
}

void Attention::RunItems(const GroupPlan& plan, std::span<const SparseItem> fused,
                         const LayerIo& io) {
  const uint32_t group = options_.group_of_layer[io.layer];
  const auto items = static_cast<uint32_t>(plan.items.size());
  threads_->For(items + static_cast<uint32_t>(fused.size()), [&](uint32_t i, uint32_t thread) {
    if (i >= items) {
      RunFused(fused[i - items], io, thread);
    } else if (i < plan.prompt_items) {
      RunPrompt(plan.items[i], io, thread);
    } else if (!HasLeft(runs_[plan.items[i].run].first_row + plan.items[i].first_row)) {
      // Items are taken in order, so this thread's next one is about as many ahead as there are
      // threads.
      const uint64_t next = uint64_t{i} + threads_->threads();
      RunDecode(plan.items[i], next < plan.items.size() ? &plan.items[next] : nullptr, io, thread);
    }
  });
  const uint32_t g = QueryGroup(group), head_dim = cache_->shape(group).head_dim;
  const auto merge = [&](uint32_t i, uint32_t) {
    const Merge& m = plan.merges[i];
    if (HasLeft(m.row)) return;
    kernels_->merge_partials(
        partial_views_.as<Partial>() + m.first_partial, m.partials, g, head_dim,
        io.out + m.row * io.out_stride + static_cast<uint64_t>(m.kv_head) * g * head_dim);
  };
  const uint32_t merges = static_cast<uint32_t>(plan.merges.size());
  if (merges <= kSerialRows * cache_->shape(group).kv_heads) {
    for (uint32_t i = 0; i < merges; ++i) merge(i, 0);
  } else {
    threads_->ForAlike(merges, merge);
  }
}

void Attention::RunPrompt(const Item& item, const LayerIo& io, uint32_t thread) {
  const uint32_t group = options_.group_of_layer[io.layer], in_group = layer_in_group_[io.layer];
  const SequenceRun& run = runs_[item.run];
  const KvShape shape = cache_->open_shape(group);
  const uint32_t g = QueryGroup(group), first_position = run.first_position + item.first_row;
  const uint64_t row = run.first_row + item.first_row,
                 column = static_cast<uint64_t>(item.kv_head) * g * shape.head_dim;
  const uint32_t raw = cache_->RawBegin(first_position);
  SealedKeys sealed{.shape = cache_->shape(group),
                    .slab = cache_->slab(group, in_group, item.kv_head),
                    .records = cache_->records(group, in_group, item.kv_head),
                    .layout = cache_->meta_layout(group),
                    .view = {}};
  if (raw > 0) sealed.view = cache_->View(run.slot, group, raw);
  const PromptArgs args{.sealed = sealed,
                        .shape = shape,
                        .slab = cache_->open_slab(group, in_group, item.kv_head),
                        .view = cache_->OpenView(run.slot, group, raw, first_position + item.rows),
                        .group = g,
                        .scale = options_.scale,
                        .first_position = first_position,
                        .rows = item.rows,
                        .q = io.q + row * io.q_stride + column,
                        .q_stride = io.q_stride,
                        .out = io.out + row * io.out_stride + column,
                        .out_stride = io.out_stride,
                        .scratch = scratch_.data() + thread * scratch_stride_,
                        .compute = options_.compute};
  kernels_->attend_prompt(&args);
}

Attention::SplitKeys Attention::KeysOf(const Item& item, uint32_t layer) const {
  const uint32_t group = options_.group_of_layer[layer], in_group = layer_in_group_[layer];
  const SequenceRun& run = runs_[item.run];
  const uint32_t tokens = run.first_position + item.first_row + 1;
  const uint32_t raw = cache_->RawBegin(tokens - 1), decoded_splits = SplitsOf(raw);
  const auto split = [](uint32_t index, uint32_t end) {
    return std::min(end, index * kSplitTokens);
  };
  if (item.split >= decoded_splits) {
    const uint32_t index = item.split - decoded_splits;
    return {.shape = cache_->open_shape(group),
            .slab = cache_->open_slab(group, in_group, item.kv_head),
            .view = cache_->OpenView(run.slot, group, raw + index * kSplitTokens,
                                     raw + split(index + 1, tokens - raw))};
  }
  PageView view = cache_->View(run.slot, group, split(item.split + 1, raw));
  const uint32_t before = item.split * kSplitTokens / cache_->page_tokens();
  view.pages += before;
  view.count -= before;
  return {.shape = cache_->shape(group),
          .slab = cache_->slab(group, in_group, item.kv_head),
          .view = view};
}

void Attention::RunDecode(const Item& item, const Item* next, const LayerIo& io, uint32_t thread) {
  const uint32_t group = options_.group_of_layer[io.layer], in_group = layer_in_group_[io.layer];
  const SplitKeys keys = KeysOf(item, io.layer);
  SplitKeys ahead{};
  if (next != nullptr) ahead = KeysOf(*next, io.layer);
  if (ahead.shape.type != keys.shape.type) ahead = {};
  const uint32_t g = QueryGroup(group);
  const uint64_t row = runs_[item.run].first_row + item.first_row;
  const DecodeArgs args{
      .shape = keys.shape,
      .slab = keys.slab,
      .records = cache_->records(group, in_group, item.kv_head),
      .layout = cache_->meta_layout(group),
      .view = keys.view,
      .group = g,
      .scale = options_.scale,
      .q = io.q + row * io.q_stride + static_cast<uint64_t>(item.kv_head) * g * keys.shape.head_dim,
      .out = PartialAt(group, item.partial),
      .scratch = scratch_.data() + thread * scratch_stride_,
      .next_slab = ahead.slab,
      .next_view = ahead.view};
  kernels_->attend_decode(&args);
}

// ---- rows that select ---------------------------------------------------------------------------

void Attention::RunSparse(const Group& plan, const LayerIo& io) {
  const uint32_t group = options_.group_of_layer[io.layer];
  const uint32_t items = static_cast<uint32_t>(plan.sparse.size());
  const uint32_t chains = static_cast<uint32_t>(plan.chains.size());
  const auto list = [this](uint32_t i) {
    return lists_.as<uint32_t>() + uint64_t{i} * list_pages_;
  };
  if (items > list_counts_.size()) {
    threads_->For(chains, [&](uint32_t chain, uint32_t thread) {
      for (uint32_t i = plan.chains[chain].first; i < plan.chains[chain].end; ++i) {
        const SparseItem& item = plan.sparse[i];
        if (HasLeft(RowOf(item))) continue;
        const uint32_t n = ChoosePages(item, io, thread, list(thread));
        const uint64_t start = chooser_->Start();
        for (uint32_t split = 0; split < SparseSplits(item, group, n); ++split)
          AttendSplit(item, io, {list(thread), n}, split, thread);
        MergeSparse(item, io, n);
        chooser_->AddAttendTime(io.layer, item.kv_head, thread, start);
      }
    });
    return;
  }
  threads_->For(chains, [&](uint32_t chain, uint32_t thread) {
    for (uint32_t i = plan.chains[chain].first; i < plan.chains[chain].end; ++i) {
      if (!HasLeft(RowOf(plan.sparse[i])))
        list_counts_[i] = ChoosePages(plan.sparse[i], io, thread, list(i));
    }
  });
  first_split_[0] = 0;
  for (uint32_t i = 0; i < items; ++i) {
    const SparseItem& item = plan.sparse[i];
    const bool left = HasLeft(RowOf(item));
    first_split_[i + 1] = first_split_[i] + (left ? 0 : SparseSplits(item, group, list_counts_[i]));
  }
  threads_->For(first_split_[items], [&](uint32_t s, uint32_t thread) {
    uint32_t i = 0;
    while (s >= first_split_[i + 1]) ++i;
    const uint64_t start = chooser_->Start();
    AttendSplit(plan.sparse[i], io, {list(i), list_counts_[i]}, s - first_split_[i], thread);
    chooser_->AddAttendTime(io.layer, plan.sparse[i].kv_head, thread, start);
  });
  for (uint32_t i = 0; i < items; ++i) {
    if (!HasLeft(RowOf(plan.sparse[i]))) MergeSparse(plan.sparse[i], io, list_counts_[i]);
  }
}

void Attention::RunFused(const SparseItem& item, const LayerIo& io, uint32_t thread) {
  if (HasLeft(RowOf(item))) return;
  const uint32_t group = options_.group_of_layer[io.layer];
  const uint32_t g = QueryGroup(group), head_dim = cache_->shape(group).head_dim;
  const uint64_t start = chooser_->Start();
  AttendRaw(item, io, item.first_partial, thread);
  const bool coded = cache_->RawBegin(runs_[item.run].first_position + item.row) > 0;
  if (coded) AttendCascade(item, io, thread);
  kernels_->merge_partials(
      partial_views_.as<Partial>() + item.first_partial, coded ? 2 : 1, g, head_dim,
      io.out + RowOf(item) * io.out_stride + static_cast<uint64_t>(item.kv_head) * g * head_dim);
  chooser_->AddAttendTime(io.layer, item.kv_head, thread, start);
}

void Attention::AttendRaw(const SparseItem& item, const LayerIo& io, uint32_t partial,
                          uint32_t thread) {
  const uint32_t group = options_.group_of_layer[io.layer], in_group = layer_in_group_[io.layer];
  const SequenceRun& run = runs_[item.run];
  const uint32_t tokens = run.first_position + item.row + 1;
  const DecodeArgs args{
      .shape = cache_->open_shape(group),
      .slab = cache_->open_slab(group, in_group, item.kv_head),
      .records = {},
      .layout = {},
      .view = cache_->OpenView(run.slot, group, cache_->RawBegin(tokens - 1), tokens),
      .group = QueryGroup(group),
      .scale = options_.scale,
      .q = QueryOf(item, io),
      .out = PartialAt(group, partial),
      .scratch = scratch_.data() + thread * scratch_stride_,
      .next_slab = {},
      .next_view = {}};
  kernels_->attend_decode(&args);
}

void Attention::AttendCascade(const SparseItem& item, const LayerIo& io, uint32_t thread) {
  const uint32_t group = options_.group_of_layer[io.layer], in_group = layer_in_group_[io.layer];
  const SequenceRun& run = runs_[item.run];
  const uint32_t position = run.first_position + item.row, raw = cache_->RawBegin(position);
  const uint32_t page_tokens = cache_->page_tokens();
  const Selector& selector = *selectors_[run.selector - 1];
  const tinyserve_cascade& cascade = *selector.cascade();
  const SelectorBudget& budget = selector.spec().budget;
  const PageView pages = cache_->View(run.slot, group, raw);
  // Attention in the first layers is spread widest.
  const uint32_t wide = io.layer < cascade.wide_layers ? 2 : 1;
  const auto share = [raw, wide](double ratio, uint32_t least) {
    const auto wanted = static_cast<uint32_t>(std::lround(ratio * raw));
    return std::min(wide * std::max(wanted, least), raw);
  };
  // The newest pages are raw ones first.
  const uint32_t raw_pages = (position - raw) / page_tokens + 1;
  const uint32_t sink = std::min(budget.sink, pages.count);
  const uint32_t recent = budget.recent > raw_pages ? budget.recent - raw_pages : 0;
  uint32_t* chosen = lists_.as<uint32_t>() + uint64_t{thread} * list_pages_;
  const CascadeArgs args{
      .shape = cache_->shape(group),
      .slab = cache_->slab(group, in_group, item.kv_head),
      .records = cache_->records(group, in_group, item.kv_head),
      .layout = cache_->meta_layout(group),
      .pages = pages.pages,
      .count = pages.count,
      .sink = sink,
      .recent = std::min(recent, pages.count - sink),
      .candidates = std::min(wide * budget.PagesOf(pages.count, page_tokens), pages.count),
      .full_tokens = share(cascade.full, cascade.min_full),
      .value_tokens = share(cascade.values, cascade.min_values),
      .least_share = cascade.least_share,
      .alpha = cascade.alpha,
      .group = QueryGroup(group),
      .scale = options_.scale,
      .q = QueryOf(item, io),
      .open = PartialAt(group, item.first_partial),
      .out = PartialAt(group, item.first_partial + 1),
      .scratch = scratch_.data() + thread * scratch_stride_,
      .chosen = chosen};
  const CascadeCounts counts = kernels_->attend_cascade(&args);
  chooser_->CountCascade({.selector = &selector,
                          .group = group,
                          .layer = io.layer,
                          .layer_in_group = in_group,
                          .kv_head = item.kv_head,
                          .run = item.run,
                          .slot = run.slot,
                          .position = position,
                          .alone = run.rows == 1,
                          .q = args.q},
                         counts, {chosen, counts.candidates}, thread);
  for (uint32_t i = 0; i < counts.candidates; ++i) chosen[i] = pages.pages[chosen[i]];
  shadow_->Keep(item.run, item.row, io.layer, item.kv_head, {chosen, counts.candidates});
}

const float* Attention::QueryOf(const SparseItem& item, const LayerIo& io) const {
  const uint32_t group = options_.group_of_layer[io.layer];
  return io.q + (runs_[item.run].first_row + uint64_t{item.row}) * io.q_stride +
         static_cast<uint64_t>(item.kv_head) * QueryGroup(group) * cache_->shape(group).head_dim;
}

uint32_t Attention::ChoosePages(const SparseItem& item, const LayerIo& io, uint32_t thread,
                                uint32_t* list) {
  const SequenceRun& run = runs_[item.run];
  const uint32_t n = chooser_->Choose({.selector = selectors_[run.selector - 1],
                                       .group = options_.group_of_layer[io.layer],
                                       .layer = io.layer,
                                       .layer_in_group = layer_in_group_[io.layer],
                                       .kv_head = item.kv_head,
                                       .run = item.run,
                                       .slot = run.slot,
                                       .position = run.first_position + item.row,
                                       .alone = run.rows == 1,
                                       .q = QueryOf(item, io)},
                                      thread, list);
  shadow_->Keep(item.run, item.row, io.layer, item.kv_head, {list, n});
  return n;
}

uint32_t Attention::SparseSplits(const SparseItem& item, uint32_t group, uint32_t pages) const {
  const SequenceRun& run = runs_[item.run];
  const uint32_t read = SplitsOf(pages * cache_->page_tokens()) + (cache_->coded(group) ? 1 : 0);
  if (!selectors_[run.selector - 1]->rest_means()) return read;
  const uint32_t held = rest_->Pages(group, run.first_position + item.row);
  return read + RestMeans::SplitsOf(held - pages);
}

void Attention::AttendSplit(const SparseItem& item, const LayerIo& io,
                            std::span<const uint32_t> list, uint32_t split, uint32_t thread) {
  const uint32_t group = options_.group_of_layer[io.layer], in_group = layer_in_group_[io.layer];
  const KvShape shape = cache_->shape(group);
  const uint32_t split_pages = kSplitTokens / shape.page_tokens;
  const uint32_t partial = item.first_partial + split;
  const uint32_t position = runs_[item.run].first_position + item.row;
  const uint32_t n = static_cast<uint32_t>(list.size());
  const uint32_t rest_from = SplitsOf(n * shape.page_tokens) + (cache_->coded(group) ? 1 : 0);
  if (split >= rest_from) {
    return rest_->Attend({.group = group,
                          .layer_in_group = in_group,
                          .kv_head = item.kv_head,
                          .slot = runs_[item.run].slot,
                          .position = position,
                          .means_at = selectors_[runs_[item.run].selector - 1]->means_at(),
                          .q = QueryOf(item, io)},
                         list, split - rest_from, thread, PartialAt(group, partial));
  }
  if (split * split_pages >= n) return AttendRaw(item, io, partial, thread);
  const KvSlab slab = cache_->slab(group, in_group, item.kv_head);
  // The query's own page is the last one, where nothing is coded; only that may be partly filled.
  const auto view = [&](uint32_t s) {
    const uint32_t first = s * split_pages;
    if (first >= n) return PageView();
    const uint32_t count = std::min(split_pages, n - first);
    const bool last = first + count == n && !cache_->coded(group);
    return PageView{.pages = list.data() + first,
                    .count = count,
                    .last_tokens = last ? position % shape.page_tokens + 1 : shape.page_tokens,
                    .space = MemorySpace::kHost};
  };
  const DecodeArgs args{.shape = shape,
                        .slab = slab,
                        .records = cache_->records(group, in_group, item.kv_head),
                        .layout = cache_->meta_layout(group),
                        .view = view(split),
                        .group = QueryGroup(group),
                        .scale = options_.scale,
                        .q = QueryOf(item, io),
                        .out = PartialAt(group, partial),
                        .scratch = scratch_.data() + thread * scratch_stride_,
                        .next_slab = slab,
                        .next_view = view(split + 1)};
  kernels_->attend_decode(&args);
}

void Attention::MergeSparse(const SparseItem& item, const LayerIo& io, uint32_t pages) {
  const uint32_t group = options_.group_of_layer[io.layer], g = QueryGroup(group);
  const KvShape shape = cache_->shape(group);
  const uint32_t splits = SparseSplits(item, group, pages);
  const uint64_t row = runs_[item.run].first_row + uint64_t{item.row};
  kernels_->merge_partials(
      partial_views_.as<Partial>() + item.first_partial, splits, g, shape.head_dim,
      io.out + row * io.out_stride + static_cast<uint64_t>(item.kv_head) * g * shape.head_dim);
}

Partial Attention::PartialAt(uint32_t group, uint32_t index) const {
  const uint64_t g = QueryGroup(group), floats = g * (cache_->shape(group).head_dim + 2ull);
  float* base = partials_.as<float>() + index * floats;
  return {.m = base, .d = base + g, .o = base + 2 * g};
}

}  // namespace tinyserve
