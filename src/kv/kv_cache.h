// The paged KV cache: pool, block tables and page storage behind one facade. The engine thread owns
// it.
#ifndef TINYSERVE_KV_KV_CACHE_H_
#define TINYSERVE_KV_KV_CACHE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "kernels/kernels.h"
#include "kv/block_pool.h"
#include "kv/codec.h"
#include "page/page.h"
#include "tinyserve/status.h"

namespace tinyserve {

// Layers that share KV heads, head size and attention span. Their pages have the same indices.
struct LayerGroup {
  uint32_t layers;
  uint32_t kv_heads;
  uint32_t head_dim;
};

struct KvCacheOptions {
  const Codec* codec;
  uint32_t page_tokens;   // 16, 32 or 64
  uint32_t block_tokens;  // a multiple of page_tokens, at most 256
  uint64_t memory_bytes;  // of pages and metadata; the pool never grows past it
  uint32_t sequences_max;
  uint32_t sequence_tokens_max;
  uint32_t metadata = 0;  // MetaKinds that are kept of every full page
};

using SequenceSlot = uint32_t;

class KvCache {
 public:
  // Errors: kInvalidArgument (page or block size), kOutOfMemory (memory_bytes below one block, or
  // not to be had).
  static Result<std::unique_ptr<KvCache>> Create(const std::vector<LayerGroup>& groups,
                                                 const KvCacheOptions& options,
                                                 const Kernels* kernels);

  // Bytes of page storage and metadata that one token costs over all groups.
  static uint64_t BytesPerToken(const std::vector<LayerGroup>& groups, const Codec& codec,
                                uint32_t page_tokens, const Kernels* kernels,
                                uint32_t metadata = 0);

  // An empty sequence. Errors: kResourceExhausted.
  Result<SequenceSlot> AddSequence();
  void RemoveSequence(SequenceSlot slot);
  // Makes room for tokens [0, tokens) of a sequence. All or nothing. Errors: kResourceExhausted
  // with what is needed and free; kInvalidArgument past sequence_tokens_max.
  Status Reserve(SequenceSlot slot, uint32_t tokens);
  // Tokens [0, tokens) are final: blocks that they fill are sealed. REQUIRES: tokens <= reserved.
  void Commit(SequenceSlot slot, uint32_t tokens);
  // Forgets tokens from `tokens` on and gives their blocks back. REQUIRES: tokens >= committed.
  void Truncate(SequenceSlot slot, uint32_t tokens);

  // Copies tokens [first, last) of `from`, with what is kept of their pages, to the same places of
  // `to`. Whole pages are copied. REQUIRES: both have them reserved.
  void Copy(SequenceSlot from, SequenceSlot to, uint32_t first, uint32_t last);

  uint32_t reserved_tokens(SequenceSlot slot) const;
  uint32_t committed_tokens(SequenceSlot slot) const { return sequences_[slot].committed; }

  // All pages of tokens [0, tokens) of a sequence. REQUIRES: 0 < tokens <= reserved. Valid until
  // the next Reserve, Truncate or RemoveSequence of this sequence.
  PageView View(SequenceSlot slot, uint32_t group, uint32_t tokens) const;
  KvSlab slab(uint32_t group, uint32_t layer_in_group, uint32_t kv_head) const;
  KvShape shape(uint32_t group) const;
  // Records of a slab's pages; base is null where no metadata is kept.
  KvSlab records(uint32_t group, uint32_t layer_in_group, uint32_t kv_head) const;
  MetaLayout meta_layout(uint32_t group) const { return groups_[group].meta; }

  uint32_t block_tokens() const { return options_.block_tokens; }
  uint32_t page_tokens() const { return options_.page_tokens; }
  uint32_t sequences_max() const { return options_.sequences_max; }
  uint32_t sequence_tokens_max() const { return options_.sequence_tokens_max; }
  const BlockPool& pool(uint32_t group) const { return groups_[group].pool; }
  uint32_t groups() const { return static_cast<uint32_t>(groups_.size()); }
  // Blocks of one group that `tokens` tokens take.
  uint32_t BlocksFor(uint32_t tokens) const {
    return (tokens + options_.block_tokens - 1) / options_.block_tokens;
  }
  // Page storage and metadata.
  uint64_t bytes_per_token() const { return bytes_per_token_; }
  uint64_t pool_bytes() const;

  // Conservation: every reference of the pools is held by exactly one table entry, free + held =
  // total, sealed blocks are full and committed, tables have no duplicates inside a sequence. Empty
  // when all holds, else what does not.
  std::string CheckIntegrity() const;

 private:
  // One group's storage: extents one after another; in an extent, for each layer, for each KV head,
  // the pages.
  struct GroupStorage {
    LayerGroup shape;
    BlockPool pool;
    KvShape kv;
    uint32_t page_bytes, v_offset;
    uint32_t extent_shift;   // log2 pages an extent holds for each slab
    uint64_t run_bytes;      // of one slab in one extent
    uint64_t extent_stride;  // layers * kv_heads * run_bytes
    MetaLayout meta;
    Buffer memory;
    Buffer records;  // laid out like memory, record_bytes a page
  };
  struct Table {
    std::vector<uint32_t> blocks;
    std::vector<uint32_t> pages;  // of those blocks, in order: what PageView points into
  };
  struct Sequence {
    bool live = false;
    uint32_t committed = 0;
    std::vector<Table> tables;  // one a group
  };

  KvCache() = default;
  void DropBlocks(Sequence* sequence, uint32_t keep_blocks);

  KvCacheOptions options_{};
  std::vector<GroupStorage> groups_;
  std::vector<Sequence> sequences_;
  uint64_t bytes_per_token_ = 0;
};

}  // namespace tinyserve

#endif  // TINYSERVE_KV_KV_CACHE_H_
