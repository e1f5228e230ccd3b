// Runs selectors for the queries of a step: scratch, checks and counts around Selector::Choose.
#ifndef TINYSERVE_ATTEND_PAGE_CHOOSER_H_
#define TINYSERVE_ATTEND_PAGE_CHOOSER_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "attend/selection_counts.h"
#include "base/buffer.h"
#include "base/clock.h"
#include "kernels/kernels.h"
#include "kv/kv_cache.h"
#include "select/selector.h"
#include "tinyserve/status.h"

namespace tinyserve {

class PageChooser {
 public:
  // For every group of `cache`. Errors: kOutOfMemory.
  static Result<std::unique_ptr<PageChooser>> Create(const KvCache* cache, const Kernels* kernels,
                                                     uint32_t layers, uint32_t heads, float scale,
                                                     uint32_t threads);

  struct Query {
    const Selector* selector;
    uint32_t group, layer, layer_in_group, kv_head;
    uint32_t run;  // of the step, below those of its BeginStep
    SequenceSlot slot;
    uint32_t position;
    bool alone;      // the step's only row of its sequence: its hit rate is counted
    const float* q;  // [query heads of the KV head][head_dim], not scaled
  };
  // Writes the pages that a query reads, as indices into slabs in order of position, to out
  // [pages of its tokens]; returns how many. The last one is the query's own page; where pages are
  // coded, they are coded ones, and the pages of tokens that are not are read beside them.
  uint32_t Choose(const Query& query, uint32_t thread, uint32_t* out);
  // Counts a query that the cascade has answered: candidates, counted from the sequence's first
  // page, are what it has chosen.
  void CountCascade(const Query& query, const CascadeCounts& counts,
                    std::span<const uint32_t> candidates, uint32_t thread);

  // The pages that the last query of a sequence read, counted from its first, a bit each, where it
  // was at `position` and alone; of coded pages, the raw ones beside them may be missing. Empty:
  // there was none, so everything was read.
  std::span<const uint64_t> LastRead(SequenceSlot slot, uint32_t layer, uint32_t kv_head,
                                     uint32_t position) const;

  // Adds the time of a query's attention since `start`, a Start().
  void AddAttendTime(uint32_t layer, uint32_t kv_head, uint32_t thread, uint64_t start);

  // The next query of a sequence slot follows none.
  void Forget(SequenceSlot slot);

  // Of the step since the last BeginStep; of one of its runs, without times; and of all steps since
  // the last reset by [layer][KV head].
  SelectionCounts step_counts() const;
  SelectionCounts run_counts(uint32_t run) const;
  std::vector<SelectionCounts> strip_counts() const;
  void BeginStep(size_t runs);
  void ResetCounts();
  // Whether times are taken: two or three readings of a clock a query.
  void SetTimed(bool timed) { timed_ = timed; }
  // When something begins whose time is to be taken.
  uint64_t Start() const { return timed_ ? NowNs() : 0; }

 private:
  PageChooser() = default;
  tinyserve_slab OwnSummaries(const Query& query) const;
  // The state that a query finds, zeros where it follows none.
  void* StateOf(const Query& query) const;
  // False where the selector fails.
  bool Observe(const Query& query, void* state, uint32_t held, std::span<const uint32_t> pages);
  // The pages that a query may choose from; `open` others, of tokens that are not coded where
  // others are, follow them.
  struct Held {
    PageView pages;
    uint32_t open;
    uint32_t tokens;  // of the query's context
  };
  Held HeldBy(const Query& query) const;
  // The selector's choice of them into out, counted from the sequence's first, with the open ones
  // after it; *score_ns: the time of its scores.
  Selector::Choice Ask(const Query& query, const Held& held, uint32_t thread, uint32_t* out,
                       uint64_t* score_ns);
  SelectionCounts CountsOf(const Query& query, const Selector::Choice& choice,
                           const Held& held) const;
  void Count(uint32_t layer, uint32_t kv_head, uint32_t thread, const SelectionCounts& counts);
  void CountQuery(const Query& query, uint32_t thread, const SelectionCounts& counts);

  struct Scratch {
    float* q;        // [g][head_dim], scaled
    float* partial;  // [g * (head_dim + 2)]
    float* select;
    void* decode;
  };
  Scratch ScratchOf(uint32_t thread) const;
  uint64_t* LastOf(SequenceSlot slot, uint32_t layer, uint32_t kv_head) const;
  // Compares the pages of a query, counted from the sequence's first, with those of the position
  // before, and keeps them for the next.
  void Follow(const Query& query, std::span<const uint32_t> pages, SelectionCounts* counts);

  const KvCache* cache_ = nullptr;
  const Kernels* kernels_ = nullptr;
  uint32_t heads_ = 0;
  float scale_ = 0;
  uint64_t q_floats_ = 0, partial_floats_ = 0, select_floats_ = 0, stride_ = 0;
  Buffer scratch_;  // [thread][stride_] bytes
  bool timed_ = false;
  std::vector<SelectionCounts> step_counts_;                // [thread]
  std::vector<std::vector<SelectionCounts>> run_counts_;    // [thread][run]
  std::vector<std::vector<SelectionCounts>> strip_counts_;  // [thread][layer * kv_heads_max_]
  // What the last query of each (sequence slot, layer, KV head) read: a bit a page, after a word
  // that holds its position.
  uint32_t layers_ = 0, kv_heads_max_ = 0;
  uint64_t last_words_ = 0;  // of one, the position's included
  Buffer last_;              // [slot][layer][KV head][last_words_] uint64
};

}  // namespace tinyserve

#endif  // TINYSERVE_ATTEND_PAGE_CHOOSER_H_
