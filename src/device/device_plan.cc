#include "device/device_plan.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "base/check.h"
#include "kernels/cuda/append.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/seal.h"

namespace tinyserve::cuda {
namespace {

uint32_t Pages(uint32_t tokens, uint32_t page_tokens) {
  return (tokens + page_tokens - 1) / page_tokens;
}

}  // namespace

RowReads ReadsAt(const KvCache& cache, const DeviceSelector* selector, uint32_t position) {
  const uint32_t page = cache.page_tokens(), tokens = position + 1;
  const uint32_t raw = cache.coded(0) ? cache.RawBegin(position) : tokens;
  RowReads reads{.pages = Pages(raw, page),
                 .open = Pages(tokens - raw, page),
                 .budget = 0,
                 .scored = 0,
                 .selects = selector != nullptr && !selector->ReadsAll(tokens),
                 .full_tokens = 0,
                 .value_tokens = 0};
  reads.budget = reads.pages;
  if (!reads.selects) return reads;
  const SelectorBudget& b = selector->spec.budget;
  if (selector->cascade) {
    const auto share = [raw](double ratio, uint32_t least) {
      return std::max(static_cast<uint32_t>(std::lround(ratio * raw)), least);
    };
    reads.budget = b.PagesOf(reads.pages, page);
    reads.scored = reads.pages;
    reads.full_tokens = share(selector->cascade->full, selector->cascade->min_full);
    reads.value_tokens = share(selector->cascade->values, selector->cascade->min_values);
    return reads;
  }
  // The open pages are among those that are always read.
  const auto of_these = [&](uint32_t n) { return n - std::min(n, reads.open); };
  const uint32_t forced = b.sink + of_these(b.recent);
  reads.budget = std::min(reads.pages, std::max(of_these(b.PagesOf(reads.pages + reads.open, page)),
                                                std::min(forced, reads.pages)));
  if (reads.budget < reads.pages && reads.budget > forced) reads.scored = reads.pages - forced;
  return reads;
}

DevicePlan::DevicePlan(const KvCache* cache, DeviceStep* step,
                       const std::vector<float>& frequencies, float magnitude, uint32_t tokens_max,
                       uint32_t bucket_max)
    : cache_(cache),
      step_(step),
      bucket_max_(bucket_max),
      pairs_(static_cast<uint32_t>(frequencies.size())),
      group_(step->query_group()),
      coded_(cache->coded(0)),
      learned_(step->inputs().learned.host.count > 0),
      choices_(cache->sequences_max()) {
  cos_sin_.reserve(uint64_t{tokens_max} * pairs_ * 2);
  for (uint32_t position = 0; position < tokens_max; ++position) {
    for (const float frequency : frequencies) {
      // As on the CPU: the angle is rounded to f32, its sine is exact.
      const float angle = static_cast<float>(position) * frequency;
      cos_sin_.push_back(std::cos(angle) * magnitude);
      cos_sin_.push_back(std::sin(angle) * magnitude);
    }
  }
}

const PlannedRows& DevicePlan::Plan(const StepBatch& batch, std::span<const int32_t> tokens,
                                    const std::vector<DeviceSelector>& selectors) {
  planned_.form = {.tokens_max = 1, .groups = 0};
  runs_.clear();
  choices_.BeginStep();
  PlaceRows(batch);
  planned_.reads.resize(planned_.form.rows());
  for (size_t r = 0; r < batch.rows.size(); ++r) FillRun(batch.rows[r], r, tokens, selectors);
  if (!step_->prompt_decodes()) PlanPrompts(batch);
  PlanLogits(batch);
  if (planned_.replayable) RoundUp();
  return planned_;
}

// Generated rows first, in the order of the batch.
void DevicePlan::PlaceRows(const StepBatch& batch) {
  table_of_.assign(batch.rows.size(), 0);
  planned_.rows.clear();
  for (const StepRow& row : batch.rows) planned_.rows.push_back({.length = row.length});
  planned_.replayable = true;
  for (const TokenClass wanted : {TokenClass::kGenerated, TokenClass::kPrompt}) {
    const bool prompt = wanted == TokenClass::kPrompt;
    if (prompt) planned_.form.first_prompt_table = planned_.form.tables;
    for (size_t r = 0; r < batch.rows.size(); ++r) {
      const StepRow& row = batch.rows[r];
      if (row.token_class != wanted) continue;
      planned_.rows[r].first_row = planned_.form.rows();
      table_of_[r] = planned_.form.tables++;
      (prompt ? planned_.form.prompt : planned_.form.generated) += row.length;
      const bool plain = row.want == Want::kNothing || row.want == Want::kLogits;
      planned_.replayable = planned_.replayable && !prompt && row.length == 1 && plain;
    }
  }
  const StepInputs& in = step_->inputs();
  TS_CHECK(planned_.form.rows() > 0 && planned_.form.rows() <= in.ids.host.count);
  TS_CHECK(planned_.form.tables <= in.runs.host.count);
}

void DevicePlan::ClearRow(uint32_t row) {
  const StepInputs& in = step_->inputs();
  in.ids.host.data[row] = -1;
  if (learned_) in.learned.host.data[row] = -1;
  in.positions.host.data[row] = kNoPosition;
  in.table_of.host.data[row] = 0;
  for (auto* upload : {&in.budgets, &in.newer, &in.candidates, &in.full_tokens, &in.value_tokens})
    upload->host.data[row] = 0;
  for (uint32_t g = 0; g < kReadGroups; ++g) {
    in.tokens[g].host.data[row] = 0;
    if (coded_) in.raw_tokens[g].host.data[row] = 0;
  }
}

void DevicePlan::FillRun(const StepRow& row, size_t r, std::span<const int32_t> tokens,
                         const std::vector<DeviceSelector>& selectors) {
  const StepInputs& in = step_->inputs();
  // Choices are those of a run of generated tokens.
  if (row.token_class == TokenClass::kPrompt) choices_.Forget(row.slot);
  FillTables(row, table_of_[r]);
  ListPages(row);
  const uint32_t open_first = coded_ ? cache_->open_first(row.slot) : 0;
  for (uint32_t i = 0; i < row.length; ++i) {
    const uint32_t at = planned_.rows[r].first_row + i, position = row.first_position + i;
    ClearRow(at);
    in.ids.host.data[at] = tokens[row.first_input + i];
    in.positions.host.data[at] = position - open_first;
    if (learned_) in.learned.host.data[at] = static_cast<int32_t>(position);
    in.table_of.host.data[at] = table_of_[r];
    std::copy_n(cos_sin_.begin() + static_cast<ptrdiff_t>(uint64_t{position} * pairs_ * 2),
                pairs_ * 2, in.cos_sin.host.data + uint64_t{at} * pairs_ * 2);
    if (row.token_class == TokenClass::kGenerated || step_->prompt_decodes())
      FillRow(row, at, position, selectors);
  }
}

// What decode attention needs to know of a row.
void DevicePlan::FillRow(const StepRow& row, uint32_t at, uint32_t position,
                         const std::vector<DeviceSelector>& selectors) {
  const StepInputs& in = step_->inputs();
  const bool generated = row.token_class == TokenClass::kGenerated;
  const DeviceSelector* selector =
      generated && row.selector != 0 ? &selectors[row.selector - 1] : nullptr;
  RowReads& reads = planned_.reads[at];
  reads = ReadsAt(*cache_, selector, position);
  if (reads.selects && selector->keeps_choices()) {
    choices_.Next(*selector,
                  {.slot = row.slot,
                   .life = cache_->states_life(row.slot),
                   .selector = row.selector,
                   .position = position,
                   .page_tokens = cache_->page_tokens(),
                   .row = at},
                  &reads, in.choices.host.data, in.choice_places.host.data);
  }
  const uint32_t group = reads.selects ? row.selector : 0;
  planned_.form.groups |= 1u << group;
  in.budgets.host.data[at] = reads.budget;
  in.newer.host.data[at] = reads.open;
  in.candidates.host.data[at] = reads.scored;
  in.full_tokens.host.data[at] = reads.full_tokens;
  in.value_tokens.host.data[at] = reads.value_tokens;
  const uint32_t raw = coded_ ? cache_->RawBegin(position) : position + 1;
  in.tokens[group].host.data[at] = raw;
  planned_.form.tokens_max = std::max(planned_.form.tokens_max, raw);
  if (!coded_) return;
  in.raw_tokens[group].host.data[at] = position + 1 - raw;
  const PageView view = cache_->OpenView(row.slot, 0, raw, position + 1);
  std::copy_n(view.pages, view.count, in.raw_tables.host.data + uint64_t{at} * step_->raw_pages());
}

void DevicePlan::FillTables(const StepRow& row, uint32_t table) {
  const StepInputs& in = step_->inputs();
  const uint32_t end = row.first_position + row.length;
  const uint32_t in_blocks = coded_ ? cache_->codec().WindowBegin(end) : end;
  if (in_blocks > 0) {
    const PageView view = cache_->View(row.slot, 0, in_blocks);
    std::copy_n(view.pages, view.count,
                in.tables.host.data + uint64_t{table} * step_->table_pages());
  }
  if (!coded_) return;
  const PageView open = cache_->OpenView(row.slot, 0, cache_->open_first(row.slot), end);
  TS_CHECK(open.count <= step_->open_pages());
  std::copy_n(open.pages, open.count,
              in.open_tables.host.data + uint64_t{table} * step_->open_pages());
}

// Pages that the step fills: those of floats get records, those of full windows are coded.
void DevicePlan::ListPages(const StepRow& row) {
  const StepInputs& in = step_->inputs();
  const uint32_t page = cache_->page_tokens(), end = row.first_position + row.length;
  if (!coded_) {
    if (end / page == row.first_position / page) return;
    const PageView view = cache_->View(row.slot, 0, end);
    for (uint32_t p = row.first_position / page; p < end / page; ++p)
      in.full_pages.host.data[planned_.form.full_pages++] = view.pages[p];
    return;
  }
  const uint32_t first = cache_->RawBegin(row.first_position);
  const uint32_t last = cache_->codec().WindowBegin(end);
  if (last <= first) return;
  const PageView open = cache_->OpenView(row.slot, 0, first, last);
  const PageView blocks = cache_->View(row.slot, 0, last);
  for (uint32_t p = 0; p < open.count; ++p) {
    in.seal_from.host.data[planned_.form.seal_pages] = open.pages[p];
    in.seal_to.host.data[planned_.form.seal_pages++] = blocks.pages[first / page + p];
  }
}

void DevicePlan::PlanPrompts(const StepBatch& batch) {
  for (size_t r = 0; r < batch.rows.size(); ++r) {
    const StepRow& row = batch.rows[r];
    if (row.token_class != TokenClass::kPrompt) continue;
    runs_.push_back({.first_row = planned_.rows[r].first_row - planned_.form.generated,
                     .rows = row.length,
                     .first_position = row.first_position,
                     .raw_first = coded_ ? cache_->open_first(row.slot) : 0});
  }
  if (runs_.empty()) return;
  const StepInputs& in = step_->inputs();
  const std::vector<PromptBlock> blocks = PlanPromptBlocks(runs_, group_);
  TS_CHECK(blocks.size() <= in.blocks.host.count);
  std::copy(runs_.begin(), runs_.end(), in.runs.host.data);
  std::copy(blocks.begin(), blocks.end(), in.blocks.host.data);
  planned_.form.runs = static_cast<uint32_t>(runs_.size());
  planned_.form.blocks = static_cast<uint32_t>(blocks.size());
}

// Rows whose token the device draws come first.
void DevicePlan::PlanLogits(const StepBatch& batch) {
  step_->inputs().words_used = 0;
  for (size_t r = 0; r < batch.rows.size(); ++r) {
    planned_.rows[r].draws = batch.rows[r].want == Want::kLogits && batch.rows[r].draw.on_device;
    if (!planned_.rows[r].draws) continue;
    AddWanted(batch.rows[r], r);
    planned_.rows[r].scored = batch.rows[r].draw.top_logprobs;
    FillDraw(batch, batch.rows[r], planned_.form.wanted - 1);
  }
  planned_.form.drawn = planned_.form.wanted;
  for (size_t r = 0; r < batch.rows.size(); ++r) {
    if (!planned_.rows[r].draws) AddWanted(batch.rows[r], r);
  }
}

void DevicePlan::AddWanted(const StepRow& row, size_t r) {
  const bool last = row.want == Want::kLogits || row.want == Want::kLogProbs;
  const bool every = row.want == Want::kEveryLogits;
  if (!last && !every) return;
  const StepInputs& in = step_->inputs();
  planned_.rows[r].logits_at = static_cast<int32_t>(planned_.form.wanted);
  planned_.rows[r].logits_count = every ? row.length : 1;
  for (uint32_t i = every ? 0 : row.length - 1; i < row.length; ++i) {
    TS_CHECK(planned_.form.wanted < in.wanted.host.count);
    in.wanted.host.data[planned_.form.wanted++] = planned_.rows[r].first_row + i;
  }
}

// How the token after the i-th wanted row is drawn.
void DevicePlan::FillDraw(const StepBatch& batch, const StepRow& row, uint32_t i) {
  StepInputs& in = step_->inputs();
  const DrawRule& rule = row.draw;
  TS_CHECK(i < in.scales.host.count && rule.edits <= kEditsMax);
  in.scales.host.data[i] = {rule.temperature, rule.min_p, rule.top_p, rule.top_k};
  const bool is_new = in.ids.host.data[in.wanted.host.data[i]] <= DrawnId(0);
  in.penalties.host.data[i] = {rule.repetition, rule.presence, rule.frequency,
                               is_new && rule.penalises() ? 1u : 0u};
  in.seeds.host.data[i] = {rule.seed, uint64_t{row.first_position} + row.length};
  DrawLists* lists = &in.lists.host.data[i];
  *lists = {.edits_at = in.words_used,
            .edits = rule.edits,
            .mask_at = kNoMask,
            .scored = rule.top_logprobs};
  uint32_t* words = in.words.host.data + in.words_used;
  for (uint32_t e = 0; e < rule.edits; ++e, words += 4) {
    const auto& edit = batch.edits[rule.first_edit + e];
    words[0] = static_cast<uint32_t>(edit.token);
    words[1] = std::bit_cast<uint32_t>(edit.bias);
    words[2] = edit.seen ? 1 : 0;
    words[3] = edit.generated;
  }
  in.words_used += 4 * rule.edits;
  if (row.mask_slot < 0) return;
  const uint64_t count = (step_->vocab() + 31) / 32;
  const uint32_t* mask = batch.masks.data() + static_cast<uint64_t>(row.mask_slot) * count;
  std::copy_n(mask, count, in.words.host.data + in.words_used);
  lists->mask_at = in.words_used;
  in.words_used += static_cast<uint32_t>((count + 3) / 4 * 4);
}

// Rows up to a power of two, contexts up to a power of two of splits. Rows that are added are not
// in use, logits that are added are those of the first row; all are drawn from, for nothing.
void DevicePlan::RoundUp() {
  const StepInputs& in = step_->inputs();
  const uint32_t rows = std::max(planned_.form.generated,
                                 std::min(std::bit_ceil(planned_.form.generated), bucket_max_));
  const uint32_t row_pages = coded_ ? step_->raw_pages() : 1;
  for (uint32_t row = planned_.form.generated; row < rows; ++row) {
    ClearRow(row);
    std::fill_n(in.cos_sin.host.data + uint64_t{row} * pairs_ * 2, pairs_ * 2, 0.0f);
  }
  for (uint32_t i = planned_.form.wanted; i < rows; ++i) in.wanted.host.data[i] = 0;
  for (uint32_t i = planned_.form.drawn; i < rows; ++i) {
    in.scales.host.data[i] = {.temperature = 0, .min_p = 0, .top_p = 1, .top_k = 0};
    in.penalties.host.data[i] = {.repetition = 1, .presence = 0, .frequency = 0, .counts_own = 0};
    in.lists.host.data[i] = {.edits_at = 0, .edits = 0, .mask_at = kNoMask, .scored = -1};
    in.seeds.host.data[i] = {.seed = 0, .position = 0};
  }
  if (!coded_) {
    for (; planned_.form.full_pages < rows; ++planned_.form.full_pages)
      in.full_pages.host.data[planned_.form.full_pages] = kNoPage;
  }
  for (; coded_ && planned_.form.seal_pages < rows * row_pages; ++planned_.form.seal_pages)
    in.seal_from.host.data[planned_.form.seal_pages] =
        in.seal_to.host.data[planned_.form.seal_pages] = kNoPage;
  planned_.form.generated = planned_.form.wanted = planned_.form.drawn = rows;
  planned_.form.tables = std::max(planned_.form.tables, 1u);
  const uint32_t splits = (planned_.form.tokens_max + kSplitTokens - 1) / kSplitTokens;
  planned_.form.tokens_max =
      std::min(std::bit_ceil(splits) * kSplitTokens, step_->table_pages() * cache_->page_tokens());
}

}  // namespace tinyserve::cuda
