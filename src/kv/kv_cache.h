// The paged KV cache: pool, block tables and page storage behind one facade. The engine thread owns
// it. Pages may lie in the memory of a device: all but their bytes is the same then.
#ifndef TINYSERVE_KV_KV_CACHE_H_
#define TINYSERVE_KV_KV_CACHE_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/buffer.h"
#include "base/first_touch.h"
#include "base/thread_pool.h"
#include "kernels/kernels.h"
#include "kv/block_pool.h"
#include "kv/codec.h"
#include "kv/open_storage.h"
#include "kv/open_tails.h"
#include "kv/page_space.h"
#include "kv/prefix_tree.h"
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
  uint32_t page_tokens;   // 4, 8, 16, 32 or 64; where pages are coded 16
  uint32_t block_tokens;  // a multiple of page_tokens, at most 256
  uint64_t memory_bytes;  // of pages, metadata and open storage; it never grows past it
  uint32_t sequences_max;
  uint32_t sequence_tokens_max;
  SelectorNeeds kept = {};  // for selectors, beside the codec's own metadata
  // Tokens over all sequences that have room at a time without being committed. A codec that codes
  // has open storage for so many, and for the window that each sequence's newest tokens lie in.
  uint32_t uncommitted_tokens_max = 0;
  EvictionPolicy policy = EvictionPolicy();  // of shared prefixes that no sequence holds
};

using SequenceSlot = uint32_t;

// A line before the bytes that a selector keeps of a sequence: whose they are, and as of when.
struct alignas(64) SelectorState {
  uint64_t next_position;  // of the query that finds them as they are; 0: none does
  const void* owner;

  uint8_t* bytes() { return reinterpret_cast<uint8_t*>(this + 1); }
};
static_assert(sizeof(SelectorState) == 64);

// Where a codec codes (Codec::identity is false), tokens are in two forms. Those from the begin of
// the window of the committed tokens on have raw pages in the open storage; every window that is
// full has coded pages, in the blocks. In between, from the step that fills a window until its
// commit, both exist. A query at position p sees the tokens of p's own window raw and all others
// decoded, so that what it sees depends on positions alone. Where nothing is coded, the pages of
// the blocks are the raw pages, of all tokens.
//
// Where tokens of a sequence have been dropped, those behind them move up: the cache, and what
// reads it, count the tokens that are held. A token's position is its number here, and those that
// were dropped before it (dropped_tokens), which are whole units (share_tokens), so whole windows.
class KvCache {
 public:
  // Errors: kInvalidArgument (page or block size, what CheckCodec refuses).
  static Status CheckOptions(const std::vector<LayerGroup>& groups, const KvCacheOptions& options);
  // Errors: those of CheckOptions; kOutOfMemory (memory_bytes below one block, or not to be had),
  // kUnsupported (states of selectors, on a device).
  static Result<std::unique_ptr<KvCache>> Create(const std::vector<LayerGroup>& groups,
                                                 const KvCacheOptions& options,
                                                 const PageSpace& space);

  // Bytes of page storage, metadata and summaries that one token costs over all groups, once it is
  // sealed.
  static uint64_t BytesPerToken(const std::vector<LayerGroup>& groups, const Codec& codec,
                                uint32_t page_tokens, const PageSpace& space,
                                const SelectorNeeds& kept = {});
  // Bytes of a cache beside its blocks: open storage, where anything is coded, and the states of
  // selectors.
  static uint64_t FixedBytes(const std::vector<LayerGroup>& groups, const KvCacheOptions& options,
                             const PageSpace& space);
  // Bytes of one sequence's open storage between steps, at most; 0 where nothing is coded.
  static uint64_t WindowBytes(const std::vector<LayerGroup>& groups, const Codec& codec,
                              uint32_t page_tokens, const PageSpace& space);

  // An empty sequence. Errors: kResourceExhausted.
  Result<SequenceSlot> AddSequence();
  void RemoveSequence(SequenceSlot slot);
  // Makes room for tokens [0, tokens) of a sequence. All or nothing. Errors: kResourceExhausted
  // with what is needed and free; kInvalidArgument past sequence_tokens_max.
  Status Reserve(SequenceSlot slot, uint32_t tokens);
  // Between steps: makes some of the memory resident that sequences will need next, so that no step
  // waits for it. Where pages are a device's, nothing.
  void TouchAhead(ThreadPool* threads);
  // Tokens [0, tokens) are final: blocks that they fill are sealed, the raw form of full windows is
  // given back. REQUIRES: tokens <= reserved; beyond it where they are whole windows that have been
  // coded before (Rewind).
  void Commit(SequenceSlot slot, uint32_t tokens);
  // Forgets tokens from `tokens` on and gives their blocks back. REQUIRES: tokens >= committed.
  void Truncate(SequenceSlot slot, uint32_t tokens);
  // Tokens from `tokens` on are no longer committed. They keep their blocks, but their raw form is
  // lost: what is to be read raw must be reserved and written anew. REQUIRES: tokens <= committed,
  // whole windows.
  void Rewind(SequenceSlot slot, uint32_t tokens);
  // Gives up units of share_tokens() tokens, by their ascending numbers; states of selectors are
  // forgotten. REQUIRES: they are full and committed, and the sequence has not called Adopt, for
  // what others may have adopted stays whole.
  void Drop(SequenceSlot slot, std::span<const uint32_t> units);
  // How many tokens Drop has taken from a sequence.
  uint32_t dropped_tokens(SequenceSlot slot) const { return sequences_[slot].dropped; }

  // Makes `to` hold what `from` holds of tokens [committed tokens of `to`, tokens), with what is
  // kept of their pages and the states of selectors, and commits them. All or nothing. Errors: as
  // Reserve. REQUIRES: `from` has them committed, and what lies in the window of `tokens` still in
  // its raw form.
  Status Copy(SequenceSlot from, SequenceSlot to, uint32_t tokens);

  // Gives an empty sequence what the pool still holds of `tokens` under a salt, made by prefill or
  // by `maker`: whole blocks are shared; of one that goes on with some of the tokens, the pages
  // that hold them are copied. Where windows are coded, whole windows alone are given, and after
  // them the raw pages of a tail (ShareTail), so that every query to come sees each key in the form
  // in which it would if all had been computed. They are committed. Returns how many tokens. Share
  // adds to what is held for others.
  uint32_t Adopt(SequenceSlot slot, std::string_view salt, std::span<const int32_t> tokens,
                 PrefixMaker maker);
  // What Adopt could share, in whole blocks.
  uint32_t Adoptable(std::string_view salt, std::span<const int32_t> tokens,
                     PrefixMaker maker) const;
  // Lets others adopt the committed blocks of a sequence that has called Adopt. tokens: all of its
  // own; the first `prompt_tokens` are of class prompt, those after them were made by `maker`, and
  // are not shared where that is kMadeByPrefill. Blocks that are there already, with the same bits,
  // take the place of the sequence's own.
  void Share(SequenceSlot slot, std::span<const int32_t> tokens, uint32_t prompt_tokens,
             PrefixMaker maker);
  // Where windows are coded: lets others adopt the newest committed tokens of a sequence, too,
  // which do not fill a window, for as long as nobody needs their raw pages. The sequence has them
  // no more: it is to be removed. Arguments: as of Share, which has been called.
  void ShareTail(SequenceSlot slot, std::span<const int32_t> tokens, uint32_t prompt_tokens,
                 PrefixMaker maker);
  // What others may adopt of a sequence gives way after all that is not pinned, at most so many
  // blocks of its beginning; in the place of what the pin held before.
  void Pin(SequenceSlot slot, uint64_t pin, uint32_t blocks_max);
  void Unpin(uint64_t pin) { prefixes_->Unpin(pin); }
  bool has_pin(uint64_t pin) const { return prefixes_->has_pin(pin); }
  uint32_t pinned_blocks() const { return prefixes_->pinned() * NodeBlocks(); }
  // Tokens that are shared together: blocks of whole windows.
  uint32_t share_tokens() const { return prefixes_->unit_tokens(); }

  uint32_t reserved_tokens(SequenceSlot slot) const;
  uint32_t committed_tokens(SequenceSlot slot) const { return sequences_[slot].committed; }

  // Whether pages of full windows are coded.
  bool coded(uint32_t group) const { return IsCoded(groups_[group].kv.type); }
  // The first position that a query at `position` sees raw: 0 where nothing is coded.
  uint32_t RawBegin(uint32_t position) const {
    return options_.codec->identity() ? 0 : options_.codec->WindowBegin(position);
  }
  // The first position that a sequence has raw pages of.
  uint32_t open_first(SequenceSlot slot) const { return RawBegin(sequences_[slot].committed); }

  // All pages of tokens [0, tokens) of a sequence in the blocks. REQUIRES: 0 < tokens <= reserved,
  // whole windows where they are coded. Valid until the next call that changes this sequence.
  PageView View(SequenceSlot slot, uint32_t group, uint32_t tokens) const;
  KvSlab slab(uint32_t group, uint32_t layer_in_group, uint32_t kv_head) const;
  KvShape shape(uint32_t group) const { return groups_[group].kv; }
  // Bytes of a page in the blocks, with what it cannot be read without.
  uint64_t PageBytes(uint32_t group) const {
    const GroupStorage& s = groups_[group];
    return uint64_t{s.page_bytes} + (s.meta.record_bytes - s.meta.spread_at);
  }
  // Records of a slab's pages; base is null where no metadata is kept.
  KvSlab records(uint32_t group, uint32_t layer_in_group, uint32_t kv_head) const;
  MetaLayout meta_layout(uint32_t group) const { return groups_[group].meta; }
  // Summaries that selectors keep of a slab's pages; base is null where none are.
  KvSlab summaries(uint32_t group, uint32_t layer_in_group, uint32_t kv_head) const;
  const SelectorNeeds& kept() const { return options_.kept; }
  // A selector's state of a sequence at one (layer, KV head). REQUIRES: kept().state_bytes > 0.
  SelectorState* state(SequenceSlot slot, uint32_t group, uint32_t layer_in_group,
                       uint32_t kv_head) const;
  // The next query of a sequence finds states of zeros.
  void ForgetStates(SequenceSlot slot);
  // Another number each time: what is known of a slot's states elsewhere ends with it. States of a
  // device's selectors are kept there (src/device/device_choices.h).
  uint32_t states_life(SequenceSlot slot) const { return sequences_[slot].states_life; }
  // The same for raw pages, of tokens [first, tokens). REQUIRES: open_first <= first < tokens <=
  // reserved, `first` at the begin of a page.
  PageView OpenView(SequenceSlot slot, uint32_t group, uint32_t first, uint32_t tokens) const;
  KvSlab open_slab(uint32_t group, uint32_t layer_in_group, uint32_t kv_head) const;
  KvShape open_shape(uint32_t group) const;

  const Codec& codec() const { return *options_.codec; }
  uint32_t block_tokens() const { return options_.block_tokens; }
  uint32_t page_tokens() const { return options_.page_tokens; }
  uint32_t sequences_max() const { return options_.sequences_max; }
  uint32_t sequence_tokens_max() const { return options_.sequence_tokens_max; }
  const BlockPool& pool(uint32_t group) const { return groups_[group].pool; }
  // Of raw pages that are not pages of blocks; none where nothing is coded.
  const BlockPool& open_pool(uint32_t group) const { return groups_[group].open.pool(); }
  uint32_t groups() const { return static_cast<uint32_t>(groups_.size()); }
  // Blocks of one group that `tokens` tokens take.
  uint32_t BlocksFor(uint32_t tokens) const {
    return (tokens + options_.block_tokens - 1) / options_.block_tokens;
  }
  // Page storage and metadata.
  uint64_t bytes_per_token() const { return bytes_per_token_; }
  uint64_t fixed_bytes() const { return fixed_bytes_; }
  uint64_t pool_bytes() const;  // with open storage and states

  // Conservation: every reference of the pools is held by exactly one table entry or node of the
  // prefix tree, free + idle + used = total, sealed blocks are full and committed, tables have no
  // duplicates inside a sequence, committed tokens that are not coded have raw pages. Empty when
  // all holds, else what does not.
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
    PageMemory memory;
    PageMemory records;    // laid out like memory, record_bytes a page
    PageMemory summaries;  // laid out like memory, summary_bytes a page
    Buffer states;         // [slot][layer][KV head] SelectorState and its bytes
    OpenStorage open;
    FirstTouch touch;           // of the extent after those that have been used
    uint64_t used_extents = 0;  // up to the last that a block was taken of
  };
  struct Table {
    std::vector<uint32_t> blocks;
    std::vector<uint32_t> pages;       // of those blocks, in order: what PageView points into
    std::vector<uint32_t> open_pages;  // of open storage, from position open_first on
  };
  struct Sequence {
    bool live = false;
    uint32_t committed = 0;
    uint32_t dropped = 0;       // tokens, beside those that it holds
    uint32_t states_life = 0;   // how often states were forgotten
    std::vector<Table> tables;  // one a group
    // Where it is in the prefix tree, since Adopt; no node: it shares no more.
    PrefixTree::Node *root = nullptr, *node = nullptr;
    uint32_t shared = 0;  // tokens up to the node
    // The last node whose blocks are its own, also once it shares no more.
    PrefixTree::Node* shared_end = nullptr;
    // Of the tokens beyond them that were copied; kMadeByPrefill also where there are none.
    PrefixMaker copied_maker = kMadeByPrefill;
  };

  explicit KvCache(const PageSpace& space) : space_(space) {}
  Status AddGroup(const LayerGroup& group, uint32_t blocks);
  // Memory laid out like a group's pages, of item_bytes each.
  KvSlab SlabOf(const GroupStorage& storage, const PageMemory& memory, uint32_t item_bytes,
                uint32_t layer_in_group, uint32_t kv_head) const;
  uint64_t StatesBytesOfSlot(const GroupStorage& storage) const;
  uint32_t PagesFor(uint32_t tokens) const {
    return (tokens + options_.page_tokens - 1) / options_.page_tokens;
  }
  uint32_t BlockTokensOf(const Sequence& sequence) const;
  // Raw pages for tokens [first, tokens); none where nothing is coded.
  uint32_t OpenPagesFor(uint32_t first, uint32_t tokens) const;
  // Whether a sequence can have blocks for `tokens` tokens and `open_pages` raw pages in all.
  Status CheckRoom(const Sequence& sequence, uint32_t tokens, uint32_t open_pages) const;
  void Take(Sequence* sequence, uint32_t tokens, uint32_t open_pages);
  void DropBlocks(Sequence* sequence, uint32_t keep_blocks);
  // Copies pages of every layer and head, with what is kept of them.
  void CopyPages(uint32_t group, std::span<const uint32_t> from, std::span<const uint32_t> to);
  void AppendBlock(Table* table, uint32_t block) const;
  // Of the first `blocks` blocks some were taken: the extent after theirs is to become resident.
  void TouchAfter(uint64_t blocks, GroupStorage* storage) const;
  void AdoptNode(Sequence* sequence, const PrefixTree::Node& node);
  void CopyPart(Sequence* sequence, const PrefixTree::Node& node, uint32_t tokens);
  // The same of a tail, as many tokens as are common.
  void CopyTail(Sequence* sequence, std::span<const int32_t> next, PrefixMaker maker);
  void GiveTail(const OpenTail& tail);
  // A node of the sequence's own next blocks.
  PrefixTree::Node* AddNode(const Sequence& sequence, std::span<const int32_t> unit,
                            PrefixMaker maker);
  // The sequence's next blocks become those of a node.
  void UseBlocksOf(const PrefixTree::Node& node, Sequence* sequence);
  void EvictNode();
  // Blocks of one group that a node holds.
  uint32_t NodeBlocks() const { return share_tokens() / options_.block_tokens; }
  // Copies raw pages of every layer and head.
  void CopyOpenPages(uint32_t group, std::span<const uint32_t> from, std::span<const uint32_t> to);
  // Gives back raw pages but `count` of them from the `first`-th on.
  void KeepOpenPages(Sequence* sequence, uint32_t first, uint32_t count);
  std::string CheckBlocks(uint32_t group) const;
  std::string CheckCounts(uint32_t group, const std::vector<uint32_t>& held) const;
  std::string CheckOpenPages(uint32_t group) const;

  PageSpace space_;
  KvCacheOptions options_{};
  std::vector<GroupStorage> groups_;
  std::vector<Sequence> sequences_;
  std::unique_ptr<PrefixTree> prefixes_;  // blocks of a node: [group][NodeBlocks()]
  OpenTails tails_;                       // of its nodes
  uint64_t bytes_per_token_ = 0, fixed_bytes_ = 0;
};

}  // namespace tinyserve

#endif  // TINYSERVE_KV_KV_CACHE_H_
