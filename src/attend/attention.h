// Attention over the paged cache: planned once a step on the batch's page tables, run once a layer.
#ifndef TINYSERVE_ATTEND_ATTENTION_H_
#define TINYSERVE_ATTEND_ATTENTION_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "attend/page_chooser.h"
#include "attend/page_summaries.h"
#include "attend/rest_means.h"
#include "attend/shadow_check.h"
#include "attend/unit_mass.h"
#include "base/buffer.h"
#include "base/thread_pool.h"
#include "base/trace.h"
#include "kernels/kernels.h"
#include "kv/kv_cache.h"
#include "tinyserve/status.h"

namespace tinyserve {

// Consecutive tokens of one sequence in a step. Their class decides their arithmetic
// (docs/ARCHITECTURE.md, "Two classes of token"), so that a sequence's numbers never depend on how
// its tokens were grouped into steps.
enum class TokenClass : uint8_t { kPrompt, kGenerated };

struct SequenceRun {
  SequenceSlot slot;
  uint32_t first_row;       // of the step's activations
  uint32_t rows;            // tokens, at least 1
  uint32_t first_position;  // among the tokens that the cache holds of it; where none was dropped
                            // (KvCache::Drop) the absolute one
  TokenClass token_class;
  uint32_t selector = 0;  // what generated tokens read: 0 is everything, i is the i-th selector
  uint32_t measure_every = 0;  // every how many tokens unit_masses() learns; 0: never
};

struct AttentionOptions {
  std::vector<uint32_t> group_of_layer;  // layer -> layer group of the cache
  uint32_t heads;                        // query heads of every layer
  float scale;                           // logit = scale * q.k, usually 1/sqrt(head_dim)
  Compute compute;                       // arithmetic of prompt attention
  uint32_t rows_max;                     // tokens of one step
};

class Attention {
 public:
  // Everything is allocated here; a step allocates nothing. Errors: kOutOfMemory.
  static Result<std::unique_ptr<Attention>> Create(const AttentionOptions& options, KvCache* cache,
                                                   const Kernels* kernels, ThreadPool* threads);

  // Gives runs another selector to name, the next higher index; it must outlive the attention.
  // What it keeps of pages is made from now on.
  void AddSelector(const Selector* selector);

  // Plans one step. REQUIRES: room is reserved for every run's tokens, runs cover rows
  // 0..sum(rows)-1 in order. The cache's tables must not change until the step's last layer has
  // run.
  void Plan(std::span<const SequenceRun> runs);

  // Rows of the planned step, each of a generated token, for which Run does nothing from now on.
  // Their keys and values are still appended. Each row once, before the layer after those that have
  // run.
  void Leave(std::span<const uint32_t> rows);

  // Writes the step's keys and values of one layer. k, v: [rows][stride], kv_heads * head_dim
  // floats each, after RoPE.
  void Append(uint32_t layer, const float* k, const float* v, uint64_t stride);
  // out[row][heads * head_dim] = attention of q[row][heads * head_dim] over the positions up to the
  // row's own.
  void Run(uint32_t layer, const float* q, uint64_t q_stride, float* out, uint64_t out_stride);

  // Work of the planned step's attention, all layers; that of selecting queries is known once the
  // layers have run.
  // KV bytes that must be read: every page that a run sees once, in the form in which it sees it,
  // or what was selected. Of a run of several rows also what rows that left did not read.
  uint64_t kv_bytes() const;
  // Multiply-adds (scores, q.k and p.v) for tokens of a class.
  uint64_t multiply_adds(TokenClass token_class) const;
  // Of all steps since the last reset.
  SelectionCounts selection_counts() const;
  // What the rows of one of the step's runs read, once its layers have run: selecting queries as
  // counted, others everything; no times. REQUIRES: a run of generated tokens.
  SelectionCounts ReadsOf(uint32_t run) const;
  // The same by [layer][KV head].
  std::vector<SelectionCounts> strip_counts() const { return chooser_->strip_counts(); }
  // PageChooser::LastRead.
  std::span<const uint64_t> PagesRead(SequenceSlot slot, uint32_t layer, uint32_t kv_head,
                                      uint32_t position) const {
    return chooser_->LastRead(slot, layer, kv_head, position);
  }
  void ResetSelectionCounts();
  // Whether the counts hold times.
  void SetTimed(bool timed) { chooser_->SetTimed(timed); }
  // Of the generated tokens that select, the share that is held against dense attention
  // (shadow_check.h), 0..1; no output changes.
  void SetShadowShare(double share) { shadow_->SetShare(share); }
  // By selector, from index 1 on; those never checked may be missing at the end.
  const std::vector<ShadowFigures>& shadow_figures() const { return shadow_->figures(); }
  // UnitMass::Masses, of the steps that have run.
  std::span<const float> unit_masses(SequenceSlot slot) { return mass_->Masses(slot); }
  // After KvCache::Drop.
  void DropUnits(SequenceSlot slot, std::span<const uint32_t> units) { mass_->Drop(slot, units); }
  // Spans of plans and layers; may be null.
  void SetTrace(Trace* trace) { trace_ = trace; }

 private:
  // A generated token's keys are read in splits at fixed absolute positions, merged in order: the
  // result does not depend on how many threads or other sequences there are. 256 tokens: 64 KiB of
  // f16 K and V at head size 64.
  static constexpr uint32_t kSplitTokens = 256;
  // Prompt rows that share one pass over the keys, and its conversions of them; half as many where
  // that makes fewer than two items for each thread.
  static constexpr uint32_t kPromptRows = 128;

  // One independent piece of a layer's attention.
  struct Item {
    uint32_t run;
    uint32_t kv_head;
    uint32_t first_row;  // within the run
    uint32_t rows;       // prompt: rows that see the same tokens raw; generated: 1
    uint32_t split;      // generated: of the decoded tokens, then of the raw ones
    uint32_t partial;    // generated: index into the partial results
  };
  struct Merge {  // one generated row and KV head
    uint32_t row, kv_head;
    uint32_t first_partial, partials;
  };
  struct GroupPlan {
    std::vector<Item> items;
    std::vector<Merge> merges;
    uint32_t prompt_items = 0;  // they come first, the longest first
    uint32_t partials = 0;
  };
  // One generated row and KV head whose pages are selected.
  struct SparseItem {
    uint32_t run, row, kv_head;
    uint32_t first_partial;
  };
  // Items that one thread takes one after another, `sparse` from `first` to before `end`: all rows
  // of a run at a KV head where the selector has a state, for it goes from row to row.
  struct Chain {
    uint32_t first, end;
  };
  struct Group {
    GroupPlan all;                   // for layers in which every row reads everything
    GroupPlan others;                // without the rows that select
    std::vector<SparseItem> sparse;  // that choose pages, then read them
    std::vector<Chain> chains;       // of them
    std::vector<SparseItem> fused;   // by the kernel that the selector names
  };
  // Keys that one call of a decode kernel reads.
  struct SplitKeys {
    KvShape shape;
    KvSlab slab;
    PageView view;
  };
  // A layer's query and output, as Run takes them.
  struct LayerIo {
    uint32_t layer;
    const float* q;
    uint64_t q_stride;
    float* out;
    uint64_t out_stride;
  };

  Attention() = default;
  static uint32_t SplitsOf(uint32_t tokens) { return (tokens + kSplitTokens - 1) / kSplitTokens; }
  bool Selects(const SequenceRun& run, uint32_t row) const;
  void PlanGroup(uint32_t group);
  void PlanRows(uint32_t group, bool all, GroupPlan* plan);
  void PlanPromptRows(uint32_t run, uint32_t kv_heads, GroupPlan* plan);
  // Cuts the rows of the last prompt items, those that would leave threads without work, into parts
  // for all threads. A row's result depends on no other row, so no bit changes.
  void ShareLastItems(std::vector<Item>* items) const;
  // Splits of a generated row.
  uint32_t SplitsAt(uint32_t position) const;
  void CountWork(uint32_t group);
  // What the first `rows` rows of a run read, and multiply, in `layers` layers of a group where
  // they read everything.
  void CountRows(uint32_t group, const SequenceRun& run, uint64_t layers, uint64_t rows,
                 uint64_t* kv_bytes, uint64_t* multiply_adds) const;
  uint64_t RowOf(const SparseItem& item) const {
    return runs_[item.run].first_row + uint64_t{item.row};
  }
  uint32_t LayersOf(uint64_t row) const { return any_left_ ? left_after_[row] : UINT32_MAX; }
  bool HasLeft(uint64_t row) const { return LayersOf(row) != UINT32_MAX; }
  // Codes the windows that a run has filled.
  void SealWindows(uint32_t layer, const SequenceRun& run, uint32_t kv_head);
  // Makes what is kept of the pages that a run has filled, or coded.
  void Summarise(uint32_t layer, const SequenceRun& run, uint32_t kv_head, uint32_t thread);
  // Items of a plan, and of rows that read by the kernel that their selector names, in one region:
  // the many short ones fill the gap that few long ones of prompts leave.
  void RunItems(const GroupPlan& plan, std::span<const SparseItem> fused, const LayerIo& io);
  void RunPrompt(const Item& item, const LayerIo& io, uint32_t thread);
  // `next`: what the thread is likely to run next, or null.
  void RunDecode(const Item& item, const Item* next, const LayerIo& io, uint32_t thread);
  SplitKeys KeysOf(const Item& item, uint32_t layer) const;
  void RunSparse(const Group& plan, const LayerIo& io);
  void RunFused(const SparseItem& item, const LayerIo& io, uint32_t thread);
  // Attends to the tokens of an item's row that are not coded, where others are.
  void AttendRaw(const SparseItem& item, const LayerIo& io, uint32_t partial, uint32_t thread);
  // Attends to the coded ones by the cascade, into its second.
  void AttendCascade(const SparseItem& item, const LayerIo& io, uint32_t thread);
  // Splits of an item that has chosen so many pages: theirs; where pages are coded, one of the
  // tokens that are not; then those of the means of the other pages, where the selector has them.
  uint32_t SparseSplits(const SparseItem& item, uint32_t group, uint32_t pages) const;
  // Chooses the pages of an item into list; returns how many.
  uint32_t ChoosePages(const SparseItem& item, const LayerIo& io, uint32_t thread, uint32_t* list);
  void AttendSplit(const SparseItem& item, const LayerIo& io, std::span<const uint32_t> list,
                   uint32_t split, uint32_t thread);
  void MergeSparse(const SparseItem& item, const LayerIo& io, uint32_t pages);
  // Holds the picked queries of a layer that has run against dense attention.
  void RunShadow(const LayerIo& io);
  // Picks the queries of a run that unit_masses() learns from.
  void PlanMass(const SequenceRun& run);
  // Measures them in a layer.
  void RunMass(const LayerIo& io);
  const float* QueryOf(const SparseItem& item, const LayerIo& io) const;
  Partial PartialAt(uint32_t group, uint32_t index) const;
  uint32_t QueryGroup(uint32_t group) const {
    return options_.heads / cache_->shape(group).kv_heads;
  }

  AttentionOptions options_;
  KvCache* cache_ = nullptr;
  const Kernels* kernels_ = nullptr;
  ThreadPool* threads_ = nullptr;
  Trace* trace_ = nullptr;
  uint64_t layer_begin_ns_ = 0;  // of the layer that is run, with a trace
  std::vector<uint32_t> layer_in_group_;
  std::vector<SequenceRun> runs_;
  std::vector<Group> groups_;
  std::vector<const Selector*> selectors_;
  std::unique_ptr<PageChooser> chooser_;
  std::unique_ptr<PageSummaries> summaries_;
  std::unique_ptr<ShadowCheck> shadow_;
  std::unique_ptr<RestMeans> rest_;
  std::unique_ptr<UnitMass> mass_;
  uint32_t first_sparse_layer_ = 0;  // of the planned step
  uint32_t next_layer_ = 0;          // to run
  bool any_left_ = false;
  std::vector<uint32_t> left_after_;   // [row] layers; UINT32_MAX: all. Where any has left.
  uint32_t list_pages_ = 0;            // pages that one list holds
  Buffer lists_;                       // [kListsPerThread * threads][list_pages_] page indices
  std::vector<uint32_t> list_counts_;  // pages in them
  std::vector<uint32_t> first_split_;  // of each list, and the end
  SelectionCounts counts_before_;      // of the steps before the planned one
  Buffer partials_;                    // [partial][g * (head_dim + 2)] floats
  Buffer partial_views_;               // [partial] Partial, for merge_partials
  Buffer scratch_;                     // [thread][scratch_stride_]
  uint64_t scratch_stride_ = 0;
  uint64_t planned_kv_bytes_ = 0;           // of rows that read everything
  uint64_t planned_multiply_adds_[2] = {};  // by TokenClass
};

}  // namespace tinyserve

#endif  // TINYSERVE_ATTEND_ATTENTION_H_
