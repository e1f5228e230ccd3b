// Attention over the paged cache: planned once a step on the batch's page tables, run once a layer.
#ifndef TINYSERVE_ATTEND_ATTENTION_H_
#define TINYSERVE_ATTEND_ATTENTION_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "base/thread_pool.h"
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
  uint32_t first_position;  // absolute
  TokenClass token_class;
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

  // Plans one step. REQUIRES: room is reserved for every run's tokens, runs cover rows
  // 0..sum(rows)-1 in order. The cache's tables must not change until the step's last layer has
  // run.
  void Plan(std::span<const SequenceRun> runs);

  // Writes the step's keys and values of one layer. k, v: [rows][stride], kv_heads * head_dim
  // floats each, after RoPE.
  void Append(uint32_t layer, const float* k, const float* v, uint64_t stride);
  // out[row][heads * head_dim] = attention of q[row][heads * head_dim] over the positions up to the
  // row's own.
  void Run(uint32_t layer, const float* q, uint64_t q_stride, float* out, uint64_t out_stride);

  // KV bytes that attention of the planned step must read, all layers (every page of every sequence
  // once).
  uint64_t planned_kv_bytes() const { return planned_kv_bytes_; }
  // Multiply-adds of the planned step's attention (q.k and p.v) for tokens of a class, all layers.
  uint64_t planned_multiply_adds(TokenClass token_class) const {
    return planned_multiply_adds_[static_cast<uint32_t>(token_class)];
  }

 private:
  // One independent piece of a layer's attention.
  struct Item {
    uint32_t run;
    uint32_t kv_head;
    uint32_t first_row;  // within the run
    uint32_t rows;       // prompt: a block of rows; generated: 1
    uint32_t split;      // generated: positions [split, split + 1) * kSplitTokens
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
  };

  Attention() = default;
  void PlanGroup(uint32_t group);
  void CountWork(uint32_t group);
  void RunPrompt(const Item& item, uint32_t layer, const float* q, uint64_t q_stride, float* out,
                 uint64_t out_stride, uint32_t thread);
  // `next`: what the thread is likely to run next, or null.
  void RunDecode(const Item& item, const Item* next, uint32_t layer, const float* q,
                 uint64_t q_stride, uint32_t thread);
  // The pages of a generated token's split.
  PageView SplitPages(const Item& item, uint32_t group) const;
  Partial PartialAt(uint32_t group, uint32_t index) const;
  uint32_t QueryGroup(uint32_t group) const {
    return options_.heads / cache_->shape(group).kv_heads;
  }

  AttentionOptions options_;
  KvCache* cache_ = nullptr;
  const Kernels* kernels_ = nullptr;
  ThreadPool* threads_ = nullptr;
  std::vector<uint32_t> layer_in_group_;
  std::vector<SequenceRun> runs_;
  std::vector<GroupPlan> groups_;
  Buffer partials_;       // [partial][g * (head_dim + 2)] floats
  Buffer partial_views_;  // [partial] Partial, for merge_partials
  Buffer scratch_;        // [thread][scratch_stride_]
  uint64_t scratch_stride_ = 0;
  uint64_t planned_kv_bytes_ = 0;
  uint64_t planned_multiply_adds_[2] = {};  // by TokenClass
};

}  // namespace tinyserve

#endif  // TINYSERVE_ATTEND_ATTENTION_H_
