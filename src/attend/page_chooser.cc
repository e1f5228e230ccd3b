#include "attend/page_chooser.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/check.h"
#include "page/planes.h"

namespace tinyserve {
namespace {

uint64_t RoundUp16(uint64_t floats) { return (floats + 15) / 16 * 16; }

}  // namespace

Result<std::unique_ptr<PageChooser>> PageChooser::Create(const KvCache* cache,
                                                         const Kernels* kernels, uint32_t layers,
                                                         uint32_t heads, float scale,
                                                         uint32_t threads) {
  std::unique_ptr<PageChooser> c(new PageChooser);
  c->cache_ = cache;
  c->kernels_ = kernels;
  c->heads_ = heads;
  c->scale_ = scale;
  uint64_t decode_bytes = 0;
  for (uint32_t g = 0; g < cache->groups(); ++g) {
    const KvShape shape = cache->shape(g);
    const uint32_t group = heads / shape.kv_heads;
    c->kv_heads_max_ = std::max(c->kv_heads_max_, shape.kv_heads);
    const uint32_t pages = cache->sequence_tokens_max() / shape.page_tokens + 1;
    c->q_floats_ = std::max(c->q_floats_, RoundUp16(uint64_t{group} * shape.head_dim));
    c->partial_floats_ = std::max(c->partial_floats_, RoundUp16(group * (shape.head_dim + 2ull)));
    c->select_floats_ = std::max(c->select_floats_, RoundUp16(SelectScratchFloats(group, pages)));
    decode_bytes =
        std::max(decode_bytes, kernels->decode_scratch_bytes(&shape, group, shape.page_tokens));
  }
  const uint64_t floats = c->q_floats_ + c->partial_floats_ + c->select_floats_;
  // A page apart: threads do not share lines.
  c->stride_ = (floats * sizeof(float) + decode_bytes + 4095) / 4096 * 4096;
  TS_ASSIGN_OR_RETURN(c->scratch_, Buffer::Allocate(c->stride_ * threads));
  c->layers_ = layers;
  c->step_counts_.resize(threads);
  c->run_counts_.resize(threads);
  c->strip_counts_.resize(threads);
  for (auto& strips : c->strip_counts_) strips.resize(uint64_t{layers} * c->kv_heads_max_);
  c->last_words_ = 1 + (cache->sequence_tokens_max() / cache->page_tokens() + 64) / 64;
  const uint64_t words =
      uint64_t{cache->sequences_max()} * layers * c->kv_heads_max_ * c->last_words_;
  TS_ASSIGN_OR_RETURN(c->last_, Buffer::Allocate(words * sizeof(uint64_t)));
  return c;
}

PageChooser::Scratch PageChooser::ScratchOf(uint32_t thread) const {
  float* at = reinterpret_cast<float*>(scratch_.data() + thread * stride_);
  return {.q = at,
          .partial = at + q_floats_,
          .select = at + q_floats_ + partial_floats_,
          .decode = at + q_floats_ + partial_floats_ + select_floats_};
}

tinyserve_slab PageChooser::OwnSummaries(const Query& query) const {
  if (!query.selector->has_summaries()) return {};
  const KvSlab all = cache_->summaries(query.group, query.layer_in_group, query.kv_head);
  return {.base = all.base + query.selector->summary_at(),
          .extent_stride = all.extent_stride,
          .extent_shift = all.extent_shift,
          .item_bytes = all.page_bytes};
}

void* PageChooser::StateOf(const Query& query) const {
  if (!query.selector->has_state()) return nullptr;
  SelectorState* state =
      cache_->state(query.slot, query.group, query.layer_in_group, query.kv_head);
  // A prompt, a selector of other options, tokens taken back: each leaves a gap.
  if (state->owner != query.selector || state->next_position != query.position) {
    std::memset(state->bytes(), 0, query.selector->state_bytes());
    state->owner = query.selector;
  }
  state->next_position = query.position + 1ull;
  return state->bytes();
}

bool PageChooser::Observe(const Query& query, void* state, uint32_t held,
                          std::span<const uint32_t> pages) {
  const tinyserve_observe_in in{.struct_size = sizeof in,
                                .position = query.position,
                                .sequence = query.slot,
                                .layer = query.layer,
                                .kv_head = query.kv_head,
                                .pages_held = held,
                                .n_pages = static_cast<uint32_t>(pages.size()),
                                .pages = pages.data(),
                                .state = state};
  return query.selector->Observe(in);
}

PageChooser::Held PageChooser::HeldBy(const Query& query) const {
  const uint32_t tokens = query.position + 1, page_tokens = cache_->page_tokens();
  if (!cache_->coded(query.group))
    return {.pages = cache_->View(query.slot, query.group, tokens), .open = 0, .tokens = tokens};
  const uint32_t raw = cache_->RawBegin(query.position);
  Held held{.pages = {}, .open = (tokens - raw + page_tokens - 1) / page_tokens, .tokens = tokens};
  if (raw > 0) held.pages = cache_->View(query.slot, query.group, raw);
  return held;
}

Selector::Choice PageChooser::Ask(const Query& query, const Held& held, uint32_t thread,
                                  uint32_t* out, uint64_t* score_ns) {
  const KvShape shape = cache_->shape(query.group);
  const uint32_t group = heads_ / shape.kv_heads;
  const Scratch scratch = ScratchOf(thread);
  for (uint32_t i = 0; i < group * shape.head_dim; ++i) scratch.q[i] = query.q[i] * scale_;
  const ItemStorage storage{
      .kernels = kernels_,
      .shape = shape,
      .slab = cache_->slab(query.group, query.layer_in_group, query.kv_head),
      .records = cache_->records(query.group, query.layer_in_group, query.kv_head),
      .layout = cache_->meta_layout(query.group),
      .group = group,
      .decode_scratch = scratch.decode,
      .partial = scratch.partial,
      .score_ns = timed_ ? score_ns : nullptr};
  const tinyserve_select_item item{.q = scratch.q,
                                   .position = query.position,
                                   .sequence = query.slot,
                                   .layer = query.layer,
                                   .kv_head = query.kv_head,
                                   .first_page = 0,
                                   .page_count = 0,
                                   .budget_pages = 0,
                                   .least_pages = 0,
                                   .mass = 0,
                                   .pages = nullptr,
                                   .records = {.base = storage.records.base,
                                               .extent_stride = storage.records.extent_stride,
                                               .extent_shift = storage.records.extent_shift,
                                               .item_bytes = storage.records.page_bytes},
                                   .summaries = OwnSummaries(query),
                                   .state = StateOf(query),
                                   .engine = &storage};
  Selector::Choice choice =
      query.selector->Choose(item, {held.pages.pages, held.pages.count}, held.open,
                             shape.page_tokens, {scratch.select, select_floats_}, out);
  std::iota(out + choice.pages, out + choice.pages + held.open, held.pages.count);
  if (!Observe(query, item.state, held.pages.count + held.open, {out, choice.pages + held.open}))
    choice.failed = true;
  return choice;
}

uint32_t PageChooser::Choose(const Query& query, uint32_t thread, uint32_t* out) {
  const Held held = HeldBy(query);
  const bool dense = query.layer < query.selector->dense_layers();
  const uint64_t start = Start();
  uint64_t score_ns = 0;
  Selector::Choice choice{.pages = held.pages.count, .scored = 0, .failed = false};
  if (dense) {
    std::iota(out, out + held.pages.count + held.open, 0u);
  } else {
    choice = Ask(query, held, thread, out, &score_ns);
  }
  SelectionCounts counts = CountsOf(query, choice, held);
  if (query.alone) Follow(query, {out, choice.pages + held.open}, &counts);
  if (timed_ && !dense) {
    counts.score_ns = score_ns;
    counts.select_ns = NowNs() - start - score_ns;
  }
  CountQuery(query, thread, counts);
  for (uint32_t i = 0; i < choice.pages; ++i) out[i] = held.pages.pages[out[i]];
  return choice.pages;
}

SelectionCounts PageChooser::CountsOf(const Query& query, const Selector::Choice& choice,
                                      const Held& held) const {
  const KvShape shape = cache_->shape(query.group);
  const SelectorSpec& spec = query.selector->spec();
  const uint64_t page_bytes = cache_->PageBytes(query.group);
  const uint64_t open_bytes = held.open * uint64_t{cache_->open_slab(query.group, 0, 0).page_bytes};
  const uint32_t kinds = spec.needs(cache_->meta_layout(query.group).kinds);
  const bool reads_records = kinds != 0 || query.selector->has_summaries();
  const uint64_t record_bytes =
      MetaLayoutOf(kinds, shape.head_dim).record_bytes + uint64_t{query.selector->summary_bytes()};
  const uint64_t read = choice.pages, scored = reads_records ? choice.scored : 0;
  // Pages that are not read are full ones.
  const uint64_t unread = held.pages.count - read;
  const uint64_t tokens = held.tokens - unread * shape.page_tokens;
  const uint64_t means = query.selector->rest_means() ? unread : 0;
  return {
      .queries = 1,
      .pages_held = uint64_t{held.pages.count} + held.open,
      .pages_scored = scored,
      .pages_read = read + held.open,
      .tokens_read = tokens,
      .bytes_read = read * page_bytes + open_bytes + scored * record_bytes +
                    means * PageMeansBytes(shape.head_dim),
      .bytes_held = held.pages.count * page_bytes + open_bytes,
      .multiply_adds = (tokens + scored + means) * 2 * (heads_ / shape.kv_heads) * shape.head_dim,
      .failures = choice.failed ? 1u : 0u};
}

void PageChooser::CountCascade(const Query& query, const CascadeCounts& read,
                               std::span<const uint32_t> candidates, uint32_t thread) {
  const KvShape shape = cache_->shape(query.group);
  const PlanesLayout at = PlanesLayoutOf(shape.head_dim);
  const uint64_t raw_tokens = query.position + 1 - cache_->RawBegin(query.position);
  const uint64_t raw_pages = (raw_tokens + shape.page_tokens - 1) / shape.page_tokens;
  const uint64_t candidate_tokens = uint64_t{read.candidates} * shape.page_tokens;
  const uint64_t record_bytes = MetaLayoutOf(kMetaSpread, shape.head_dim).record_bytes;
  const uint64_t coded_page_bytes = cache_->PageBytes(query.group);
  const uint64_t raw_bytes =
      raw_pages * cache_->open_slab(query.group, query.layer_in_group, query.kv_head).page_bytes;
  SelectionCounts counts{
      .queries = 1,
      .pages_held = read.pages_scored + raw_pages,
      .pages_scored = read.pages_scored,
      .pages_read = read.candidates + raw_pages,
      .tokens_read = read.value_tokens + raw_tokens,
      .bytes_read = read.pages_scored * record_bytes + read.candidates * uint64_t{at.low_at} +
                    read.full_tokens * LineBytes(at.low_bytes) +
                    read.value_tokens * LineBytes(at.channels) + raw_bytes,
      .bytes_held = read.pages_scored * coded_page_bytes + raw_bytes,
      // Scores, approximate and exact logits, values and mean values; raw keys and values.
      .multiply_adds = (2ull * read.pages_scored + candidate_tokens + read.full_tokens +
                        read.value_tokens + read.candidates + 2 * raw_tokens) *
                       (heads_ / shape.kv_heads) * shape.head_dim};
  if (query.alone) Follow(query, candidates, &counts);
  CountQuery(query, thread, counts);
}

void PageChooser::CountQuery(const Query& query, uint32_t thread, const SelectionCounts& counts) {
  Count(query.layer, query.kv_head, thread, counts);
  std::vector<SelectionCounts>& runs = run_counts_[thread];
  TS_CHECK(query.run < runs.size());
  runs[query.run].Add(counts);
}

void PageChooser::Count(uint32_t layer, uint32_t kv_head, uint32_t thread,
                        const SelectionCounts& counts) {
  step_counts_[thread].Add(counts);
  strip_counts_[thread][layer * kv_heads_max_ + kv_head].Add(counts);
}

void PageChooser::AddAttendTime(uint32_t layer, uint32_t kv_head, uint32_t thread, uint64_t start) {
  if (!timed_) return;
  Count(layer, kv_head, thread, {.attend_ns = NowNs() - start});
}

uint64_t* PageChooser::LastOf(SequenceSlot slot, uint32_t layer, uint32_t kv_head) const {
  return last_.as<uint64_t>() +
         ((uint64_t{slot} * layers_ + layer) * kv_heads_max_ + kv_head) * last_words_;
}

std::span<const uint64_t> PageChooser::LastRead(SequenceSlot slot, uint32_t layer, uint32_t kv_head,
                                                uint32_t position) const {
  const uint64_t* last = LastOf(slot, layer, kv_head);
  if (last[0] != position + 1ull) return {};
  return {last + 1, last_words_ - 1};
}

void PageChooser::Forget(SequenceSlot slot) {
  for (uint32_t layer = 0; layer < layers_; ++layer) {
    for (uint32_t head = 0; head < kv_heads_max_; ++head) *LastOf(slot, layer, head) = 0;
  }
}

void PageChooser::Follow(const Query& query, std::span<const uint32_t> pages,
                         SelectionCounts* counts) {
  uint64_t* last = LastOf(query.slot, query.layer, query.kv_head);
  uint64_t* bits = last + 1;
  // Positions are kept plus one, so that memory of zeros follows nothing: a selecting query has
  // tokens before it.
  if (last[0] == query.position) {
    counts->pages_followed += pages.size();
    for (uint32_t page : pages) counts->pages_reused += bits[page / 64] >> page % 64 & 1;
  }
  std::fill(bits, last + last_words_, 0);
  // A word is put together before it is written: pages follow each other.
  uint64_t word = 0;
  uint32_t at = 0;
  for (uint32_t page : pages) {
    if (page / 64 != at) {
      bits[at] |= word;
      word = 0;
      at = page / 64;
    }
    word |= uint64_t{1} << page % 64;
  }
  bits[at] |= word;
  last[0] = query.position + 1ull;
}

SelectionCounts PageChooser::step_counts() const {
  SelectionCounts sum;
  for (const SelectionCounts& c : step_counts_) sum.Add(c);
  return sum;
}

SelectionCounts PageChooser::run_counts(uint32_t run) const {
  SelectionCounts sum;
  for (const auto& runs : run_counts_) sum.Add(runs[run]);
  return sum;
}

std::vector<SelectionCounts> PageChooser::strip_counts() const {
  std::vector<SelectionCounts> sums(uint64_t{layers_} * kv_heads_max_);
  for (const auto& strips : strip_counts_) {
    for (size_t i = 0; i < sums.size(); ++i) sums[i].Add(strips[i]);
  }
  return sums;
}

void PageChooser::BeginStep(size_t runs) {
  std::fill(step_counts_.begin(), step_counts_.end(), SelectionCounts());
  for (auto& of_thread : run_counts_) of_thread.assign(runs, SelectionCounts());
}

void PageChooser::ResetCounts() {
  std::fill(step_counts_.begin(), step_counts_.end(), SelectionCounts());
  for (auto& strips : strip_counts_) std::fill(strips.begin(), strips.end(), SelectionCounts());
}

}  // namespace tinyserve
