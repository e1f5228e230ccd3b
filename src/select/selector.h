// A selector: which pages a generated token reads. Opened from a specification, over a table of
// include/tinyserve/plugin.h; what all selectors have in common (budget, pages that are always
// read, where everything is read) is done here, so that a table only ranks candidates.
#ifndef TINYSERVE_SELECT_SELECTOR_H_
#define TINYSERVE_SELECT_SELECTOR_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/kernels.h"
#include "page/page.h"
#include "tinyserve/plugin.h"
#include "tinyserve/status.h"

namespace tinyserve {

// How much is read. Pages and tokens are counted over the whole context of a query.
struct SelectorBudget {
  double ratio = 0.3;           // of the pages, (0, 1]
  uint32_t tokens = 0;          // instead of the ratio, where not 0
  uint32_t min_tokens = 256;    // never fewer than these
  uint32_t dense_layers = 0;    // first layers, which read everything
  uint32_t sink = 1;            // first pages, always read
  uint32_t recent = 2;          // newest pages, always read; at least 1
  uint32_t min_context = 1024;  // below, everything is read
  double mass = 0;              // of the attention, which fewer pages are to reach where not 0
  bool rest_means = false;      // pages that are not read count through their means

  // The fewest pages that a query reads, sinks and newest ones included; by mass no fewer either.
  uint32_t LeastPages(uint32_t page_tokens) const;
  // Pages of `pages` that a query may read in all, sinks and newest ones included.
  uint32_t PagesOf(uint32_t pages, uint32_t page_tokens) const;
};

// What a specification says: NAME[:key=value,...].
struct SelectorSpec {
  std::string typed;
  const tinyserve_selector_v2* table = nullptr;  // null: "full"
  SelectorBudget budget;
  std::string config_json = "{}";  // the table's own options
  std::string resolved;            // NAME:key=value,... with every option

  // MetaKinds that it reads of pages whose codec keeps `coding`, and that must be kept for it;
  // kMetaSpread stands for pages in planes. The ranges of keys are the built-in box's boxes.
  uint32_t needs(uint32_t coding) const;
};

// Errors: kInvalidArgument, naming the option and what is allowed.
Result<SelectorSpec> ParseSelector(const std::string& text);
Result<std::vector<SelectorSpec>> ParseSelectors(std::span<const std::string> texts);
// The same with a table that the name, whatever it is, stands for. REQUIRES: CheckSelectorTable
// accepts it.
Result<SelectorSpec> ParseSelectorFor(const tinyserve_selector_v2& table, const std::string& text);
// Whether a name belongs to no table: "full" and the presets ("default"), which stand for a table.
bool IsReservedName(std::string_view name);
// Bytes that a selector keeps of its own. Errors: kInvalidArgument, with the selector's name.
Result<tinyserve_sizes> SizesOf(const SelectorSpec& spec, const tinyserve_shape& shape);

// A place in what is kept of a page: for the summary of a table under certain options, or, where
// the table is null, for the page's means (SelectorBudget::rest_means).
struct SummaryPlace {
  const tinyserve_selector_v2* table;
  std::string config_json;
  uint32_t at;  // bytes from the beginning
};
// What must be kept for all of these, and where their summaries lie in it (`places`, where not
// null). Errors: those of SizesOf; kInvalidArgument (together they are too large).
Result<SelectorNeeds> NeedsOf(std::span<const SelectorSpec> specs, const tinyserve_shape& shape,
                              std::vector<SummaryPlace>* places = nullptr);
// Where in what is kept of a page a selector finds what it reads, bytes; 0 where it reads none.
struct SummaryOffsets {
  uint32_t own = 0;    // its own summary
  uint32_t means = 0;  // the page's means
};
// Whether what is kept serves a selector. Errors: kInvalidArgument, naming what is missing and how
// to keep it.
Result<SummaryOffsets> PlaceOf(const SelectorSpec& spec, const tinyserve_shape& shape,
                               const SelectorNeeds& kept, std::span<const SummaryPlace> places);

// Every selector by name, with its options, ranges and defaults, for help texts.
std::string DescribeSelectors();

// The storage of an item: what built-in selectors find behind tinyserve_select_item::engine.
struct ItemStorage {
  const Kernels* kernels;
  KvShape shape;
  KvSlab slab, records;
  MetaLayout layout;
  uint32_t group;        // query heads of a KV head
  void* decode_scratch;  // of the calling thread
  float* partial;        // [group * (head_dim + 2)], of the calling thread
  uint64_t* score_ns;    // where the time that scores take is added; null: it is not taken
};

class Selector {
 public:
  // Errors: what the table's open or sizes says, with the selector's name.
  static Result<std::unique_ptr<Selector>> Open(const SelectorSpec& spec,
                                                const tinyserve_shape& shape,
                                                SummaryOffsets at = {});
  ~Selector();

  const SelectorSpec& spec() const { return spec_; }
  // Whether a query with this many tokens before and at it reads everything in every layer.
  bool ReadsAll(uint32_t tokens) const {
    return spec_.table == nullptr || tokens <= spec_.budget.min_context;
  }
  uint32_t dense_layers() const { return spec_.budget.dense_layers; }
  // How the cascade reads, where the table names that kernel; Choose is then not to be called.
  const tinyserve_cascade* cascade() const { return cascade_ ? &*cascade_ : nullptr; }

  bool has_summaries() const { return sizes_.summary_bytes > 0; }
  bool has_state() const { return sizes_.state_bytes > 0; }
  uint32_t summary_at() const { return at_.own; }
  // Whether pages that are not read count through their means, and where those lie.
  bool rest_means() const { return spec_.table != nullptr && spec_.budget.rest_means; }
  uint32_t means_at() const { return at_.means; }
  uint32_t summary_bytes() const { return sizes_.summary_bytes; }
  uint32_t state_bytes() const { return sizes_.state_bytes; }
  // Makes the summary of a full page. After a failure every query reads everything.
  void Summarise(const tinyserve_page_in& page, void* summary) const;
  // Tells the table of what a query read; false where it fails.
  bool Observe(const tinyserve_observe_in& in) const;

  struct Choice {
    uint32_t pages;   // chosen
    uint32_t scored;  // candidates that the table looked at
    bool failed;      // the table gave no answer that counts
  };
  // Chooses pages of 0 .. count - 1 for one query: ascending, each once, the sinks and the newest
  // ones among them, into chosen [count]. All pages when the budget covers them, or when the table
  // fails. `item`: everything but the candidates, which are set here; pages: [count].
  // `open_pages` newer ones, which are read in any case, count in the budget and as newest ones.
  Choice Choose(tinyserve_select_item item, std::span<const uint32_t> pages, uint32_t open_pages,
                uint32_t page_tokens, std::span<float> scratch, uint32_t* chosen) const;

 private:
  Selector() = default;
  bool Ask(const tinyserve_select_item& item, std::span<float> scratch, uint32_t* chosen,
           uint32_t* n, uint32_t* scored) const;

  SelectorSpec spec_;
  tinyserve_sizes sizes_{};
  SummaryOffsets at_;
  mutable std::atomic<bool> broken_ = false;  // a summary could not be made
  void* self_ = nullptr;
  std::optional<tinyserve_cascade> cascade_;
};

// Floats of scratch that Choose wants.
uint64_t SelectScratchFloats(uint32_t group, uint32_t pages_max);

}  // namespace tinyserve

#endif  // TINYSERVE_SELECT_SELECTOR_H_
