#include "select/selector.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"

namespace tinyserve {

namespace {

uint32_t InPages(uint64_t tokens, uint32_t page_tokens) {
  return static_cast<uint32_t>((tokens + page_tokens - 1) / page_tokens);
}

}  // namespace

uint32_t SelectorBudget::LeastPages(uint32_t page_tokens) const {
  return std::max(InPages(min_tokens, page_tokens), sink + recent);
}

uint32_t SelectorBudget::PagesOf(uint32_t pages, uint32_t page_tokens) const {
  const uint32_t wanted = tokens != 0 ? InPages(tokens, page_tokens)
                                      : static_cast<uint32_t>(std::lround(ratio * pages));
  return std::min(std::max(wanted, LeastPages(page_tokens)), pages);
}

uint64_t SelectScratchFloats(uint32_t group, uint32_t pages_max) {
  return (group + 2ull) * (pages_max + 16ull);
}

// What is wrong with the parameters that a table gives for the cascade; null: nothing.
static const char* Wrong(const tinyserve_cascade& c) {
  constexpr uint32_t kTokensMax = 1 << 24;
  // Negated, so that NaN fails too.
  if (!(c.full >= 0 && c.values <= 1)) return "full and values must be from 0 to 1";
  if (!(c.values >= c.full && c.min_values >= c.min_full)) {
    return "values and min_values must be no less than full and min_full";
  }
  if (c.min_values > kTokensMax) return "min_values is more than 16777216";
  if (!(c.alpha >= 0 && c.alpha <= 100)) return "alpha must be from 0 to 100";
  if (!(c.least_share >= 0 && c.least_share <= 1)) return "least_share must be from 0 to 1";
  return nullptr;
}

Result<std::unique_ptr<Selector>> Selector::Open(const SelectorSpec& spec,
                                                 const tinyserve_shape& shape, SummaryOffsets at) {
  std::unique_ptr<Selector> selector(new Selector);
  selector->spec_ = spec;
  if (spec.table == nullptr) return selector;
  TS_ASSIGN_OR_RETURN(selector->sizes_, SizesOf(spec, shape));
  selector->at_ = at;
  tinyserve_error error{};
  if (spec.table->open(&shape, spec.config_json.c_str(), &selector->self_, &error) != 0) {
    error.message[sizeof error.message - 1] = '\0';
    return Status(Code::kInvalidArgument,
                  fmt::format("selector '{}': {}", spec.typed, error.message));
  }
  if (spec.table->fused_id == TINYSERVE_FUSED_CASCADE) {
    if (spec.table->fused(selector->self_, &selector->cascade_.emplace(), &error) != 0) {
      error.message[sizeof error.message - 1] = '\0';
      return Status(Code::kInvalidArgument,
                    fmt::format("selector '{}': {}", spec.typed, error.message));
    }
    if (const char* wrong = Wrong(*selector->cascade_)) {
      return Status(Code::kInvalidArgument, fmt::format("selector '{}': {}", spec.typed, wrong));
    }
  }
  return selector;
}

Selector::~Selector() {
  if (self_ != nullptr) spec_.table->close(self_);
}

void Selector::Summarise(const tinyserve_page_in& page, void* summary) const {
  if (spec_.table->summarise(self_, &page, summary) == 0) return;
  std::memset(summary, 0, sizes_.summary_bytes);
  broken_ = true;
}

bool Selector::Observe(const tinyserve_observe_in& in) const {
  return spec_.table->observe == nullptr || spec_.table->observe(self_, &in) == 0;
}

// Asks the table; false where its answer is none.
bool Selector::Ask(const tinyserve_select_item& item, std::span<float> scratch, uint32_t* chosen,
                   uint32_t* n, uint32_t* scored) const {
  const tinyserve_select_in in{.struct_size = sizeof in,
                               .items = &item,
                               .scratch = scratch.data(),
                               .scratch_floats = scratch.size()};
  tinyserve_select_out out{
      .struct_size = sizeof out, .n_pages = 0, .pages = chosen, .n_scored = item.page_count};
  *scored = item.page_count;
  if (broken_ || spec_.table->select(self_, &in, 0, 1, &out) != 0) return false;
  if (out.n_pages > item.budget_pages) return false;
  std::sort(chosen, chosen + out.n_pages);
  if (std::adjacent_find(chosen, chosen + out.n_pages) != chosen + out.n_pages) return false;
  if (out.n_pages > 0 && chosen[out.n_pages - 1] >= item.page_count) return false;
  *n = out.n_pages;
  *scored = std::min(out.n_scored, item.page_count);
  return true;
}

Selector::Choice Selector::Choose(tinyserve_select_item item, std::span<const uint32_t> pages,
                                  uint32_t open_pages, uint32_t page_tokens,
                                  std::span<float> scratch, uint32_t* chosen) const {
  const uint32_t count = static_cast<uint32_t>(pages.size());
  const SelectorBudget& b = spec_.budget;
  // Of these pages; the open ones are among those that are always read.
  const auto of_these = [&](uint32_t n) { return n - std::min(n, open_pages); };
  const uint32_t recent = of_these(b.recent), forced = b.sink + recent;
  const uint32_t budget =
      std::max(of_these(b.PagesOf(count + open_pages, page_tokens)), std::min(forced, count));
  const uint32_t least = std::max(of_these(b.LeastPages(page_tokens)), forced);
  Choice choice{.pages = 0, .scored = 0, .failed = false};
  uint32_t& n = choice.pages;
  // By mass, fewer may do than the budget has, be it everything.
  if (budget < count || (b.mass > 0 && least < count)) {
    const uint32_t recent_from = count - recent;
    item.first_page = b.sink;
    item.page_count = recent_from - b.sink;
    item.pages = pages.data() + b.sink;
    item.budget_pages = budget - forced;
    item.least_pages = std::min(least - forced, item.budget_pages);
    item.mass = static_cast<float>(b.mass);
    for (; n < b.sink; ++n) chosen[n] = n;
    uint32_t asked = 0;
    if (item.budget_pages > 0) {
      choice.failed = !Ask(item, scratch, chosen + n, &asked, &choice.scored);
    }
    if (!choice.failed) {
      for (uint32_t i = 0; i < asked; ++i) chosen[n++] += b.sink;
      for (uint32_t page = recent_from; page < count; ++page) chosen[n++] = page;
      return choice;
    }
  }
  for (n = 0; n < count; ++n) chosen[n] = n;
  return choice;
}

}  // namespace tinyserve
