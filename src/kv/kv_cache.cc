#include "kv/kv_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>

#include "base/check.h"
#include "base/checked.h"

namespace tinyserve {
namespace {

// Bytes of one slab that lie together in an extent: long enough to stream, short enough that a
// little-used pool touches little memory.
constexpr uint64_t kRunBytes = 64 << 10;
// A sequence takes blocks from runs of so many tokens where the pool has such.
constexpr uint32_t kRunTokens = 256;
// Of an extent that is made resident before it is needed. More would count: what a pool that is
// little used holds resident is measured.
constexpr uint64_t kTouchedBytesMax = 16 << 20;

KvShape ShapeOf(const LayerGroup& group, KvType type, uint32_t page_tokens) {
  return {.type = type,
          .kv_heads = group.kv_heads,
          .head_dim = group.head_dim,
          .page_tokens = page_tokens};
}

uint64_t OpenBytesPerPage(const std::vector<LayerGroup>& groups, const Codec& codec,
                          uint32_t page_tokens, const PageSpace& space) {
  uint64_t bytes = 0;
  for (const LayerGroup& group : groups) {
    const KvShape shape = ShapeOf(group, codec.open_type, page_tokens);
    bytes += uint64_t{space.GeometryOf(shape).page_bytes} * group.layers * group.kv_heads;
  }
  return bytes;
}

uint64_t StateStride(const SelectorNeeds& kept) {
  return kept.state_bytes == 0 ? 0 : sizeof(SelectorState) + kept.state_bytes;
}

void CopyItem(const PageSpace& space, const KvSlab& slab, uint32_t from_page, uint32_t to_page) {
  space.Copy(PageAt(slab, to_page), PageAt(slab, from_page), slab.page_bytes);
}

// Enough where sequences have room for n tokens each beyond those committed: less than a window of
// each is committed, and what lies in a page beside it.
uint32_t OpenPagesOf(const KvCacheOptions& o) {
  if (o.codec->identity()) return 0;
  const uint64_t pages = (uint64_t{o.uncommitted_tokens_max} + o.page_tokens - 1) / o.page_tokens +
                         (o.codec->group_tokens / o.page_tokens + 1) * uint64_t{o.sequences_max};
  return static_cast<uint32_t>(std::min<uint64_t>(pages, INT32_MAX));
}

}  // namespace

Status KvCache::CheckOptions(const std::vector<LayerGroup>& groups, const KvCacheOptions& o) {
  constexpr uint32_t kLeast = 4, kMost = 64;
  if (!std::has_single_bit(o.page_tokens) || o.page_tokens < kLeast || o.page_tokens > kMost) {
    return Status(Code::kInvalidArgument,
                  fmt::format("page_tokens is {}: allowed are 4, 8, 16, 32 and 64", o.page_tokens));
  }
  if (o.block_tokens % o.page_tokens != 0 || o.block_tokens == 0 || o.block_tokens > 256) {
    return Status(
        Code::kInvalidArgument,
        fmt::format("block_tokens is {}: it must be a multiple of page_tokens ({}) and at most 256",
                    o.block_tokens, o.page_tokens));
  }
  for (const LayerGroup& group : groups) {
    TS_RETURN_IF_ERROR(CheckCodec(*o.codec, o.page_tokens, group.head_dim));
  }
  return Status();
}

uint64_t KvCache::BytesPerToken(const std::vector<LayerGroup>& groups, const Codec& codec,
                                uint32_t page_tokens, const PageSpace& space,
                                const SelectorNeeds& kept) {
  uint64_t bytes = 0;
  for (const LayerGroup& group : groups) {
    const KvShape shape = ShapeOf(group, codec.sealed_type, page_tokens);
    const MetaLayout meta = MetaLayoutOf(kept.metadata | codec.metadata, group.head_dim);
    const uint64_t page =
        uint64_t{space.GeometryOf(shape).page_bytes} + meta.record_bytes + kept.summary_bytes;
    bytes += page * group.layers * group.kv_heads / page_tokens;
  }
  return bytes;
}

uint64_t KvCache::FixedBytes(const std::vector<LayerGroup>& groups, const KvCacheOptions& options,
                             const PageSpace& space) {
  uint64_t states = 0;
  for (const LayerGroup& group : groups) {
    states +=
        uint64_t{options.sequences_max} * group.layers * group.kv_heads * StateStride(options.kept);
  }
  return states + OpenPagesOf(options) *
                      OpenBytesPerPage(groups, *options.codec, options.page_tokens, space);
}

uint64_t KvCache::WindowBytes(const std::vector<LayerGroup>& groups, const Codec& codec,
                              uint32_t page_tokens, const PageSpace& space) {
  if (codec.identity()) return 0;
  return codec.group_tokens / page_tokens * OpenBytesPerPage(groups, codec, page_tokens, space);
}

Result<std::unique_ptr<KvCache>> KvCache::Create(const std::vector<LayerGroup>& groups,
                                                 const KvCacheOptions& options,
                                                 const PageSpace& space) {
  TS_RETURN_IF_ERROR(CheckOptions(groups, options));
  if (space.space() == MemorySpace::kDevice && options.kept.state_bytes > 0) {
    return Status(Code::kUnsupported,
                  "states of selectors lie in the host's memory: pages in a device's do not serve "
                  "a selector that has one");
  }
  std::unique_ptr<KvCache> cache(new KvCache(space));
  cache->options_ = options;
  cache->options_.kept.metadata |= options.codec->metadata;
  cache->bytes_per_token_ =
      BytesPerToken(groups, *options.codec, options.page_tokens, space, options.kept);
  cache->fixed_bytes_ = FixedBytes(groups, options, space);
  const uint64_t block_bytes = cache->bytes_per_token_ * options.block_tokens;
  const uint64_t left = options.memory_bytes - std::min(options.memory_bytes, cache->fixed_bytes_);
  const uint64_t blocks = std::min<uint64_t>(left / block_bytes, UINT32_MAX / 32);
  if (blocks == 0) {
    const std::string open =
        cache->fixed_bytes_ == 0
            ? ""
            : fmt::format(
                  ", beside the {} bytes for tokens that are not coded yet and states of "
                  "selectors",
                  cache->fixed_bytes_);
    return Status(
        Code::kOutOfMemory,
        fmt::format("the KV pool of {} bytes holds no block: one of {} tokens takes {} bytes{}",
                    options.memory_bytes, options.block_tokens, block_bytes, open));
  }
  for (const LayerGroup& group : groups) {
    TS_RETURN_IF_ERROR(cache->AddGroup(group, static_cast<uint32_t>(blocks)));
  }
  cache->prefixes_ = std::make_unique<PrefixTree>(
      std::lcm(options.block_tokens, options.codec->group_tokens), options.policy);
  cache->sequences_.resize(options.sequences_max);
  const uint32_t blocks_max = cache->BlocksFor(options.sequence_tokens_max);
  for (Sequence& sequence : cache->sequences_) {
    sequence.tables.resize(groups.size());
    for (Table& table : sequence.tables) {
      table.blocks.reserve(blocks_max);
      table.pages.reserve(size_t{blocks_max} * (options.block_tokens / options.page_tokens));
    }
  }
  return cache;
}

Status KvCache::AddGroup(const LayerGroup& group, uint32_t blocks) {
  const uint32_t pages_per_block = options_.block_tokens / options_.page_tokens;
  const KvShape shape = ShapeOf(group, options_.codec->sealed_type, options_.page_tokens);
  const PageGeometry page = space_.GeometryOf(shape);
  const uint64_t run_pages =
      std::bit_ceil(std::max<uint64_t>(kRunBytes / page.page_bytes, pages_per_block));
  GroupStorage s{
      .shape = group,
      .pool = BlockPool(blocks, std::bit_floor(std::max(1u, kRunTokens / options_.block_tokens))),
      .kv = shape,
      .page_bytes = page.page_bytes,
      .v_offset = page.v_offset,
      .extent_shift = static_cast<uint32_t>(std::countr_zero(run_pages)),
      .run_bytes = run_pages * page.page_bytes,
      .extent_stride = 0,
      .meta = MetaLayoutOf(options_.kept.metadata, group.head_dim),
      .memory = {},
      .records = {},
      .summaries = {},
      .states = {},
      .open = {},
      .touch = {}};
  s.extent_stride = s.run_bytes * group.layers * group.kv_heads;
  const uint64_t extents = (uint64_t{blocks} * pages_per_block + run_pages - 1) / run_pages;
  const Checked bytes = Checked(extents) * Checked(s.extent_stride);
  if (!bytes.valid()) {
    return Status(Code::kOutOfMemory,
                  fmt::format("a KV pool of {} bytes is too large", options_.memory_bytes));
  }
  TS_ASSIGN_OR_RETURN(s.memory, space_.Allocate(bytes.value(), /*huge=*/true));
  // Records are smaller than pages: their bytes do not overflow either.
  const uint64_t records = bytes.value() / page.page_bytes * s.meta.record_bytes;
  if (records > 0) {
    TS_ASSIGN_OR_RETURN(s.records, space_.Allocate(records, /*huge=*/true));
  }
  const Checked summaries =
      Checked(bytes.value() / page.page_bytes) * Checked(options_.kept.summary_bytes);
  const Checked states = Checked(options_.sequences_max) * Checked(StatesBytesOfSlot(s));
  if (!summaries.valid() || !states.valid()) {
    return Status(Code::kOutOfMemory, "what selectors keep of pages and sequences is too large");
  }
  if (summaries.value() > 0) {
    TS_ASSIGN_OR_RETURN(s.summaries, space_.Allocate(summaries.value(), /*huge=*/true));
  }
  if (states.value() > 0) {
    TS_ASSIGN_OR_RETURN(s.states, Buffer::Allocate(states.value()));
  }
  if (const uint32_t pages = OpenPagesOf(options_); pages > 0) {
    const KvShape open = ShapeOf(group, options_.codec->open_type, options_.page_tokens);
    TS_ASSIGN_OR_RETURN(s.open, OpenStorage::Create(open, group.layers, pages, space_));
  }
  groups_.push_back(std::move(s));
  return Status();
}

Result<SequenceSlot> KvCache::AddSequence() {
  for (SequenceSlot slot = 0; slot < sequences_.size(); ++slot) {
    if (!sequences_[slot].live) {
      sequences_[slot].live = true;
      ForgetStates(slot);
      return slot;
    }
  }
  return Status(Code::kResourceExhausted,
                fmt::format("all {} sequence slots are in use", sequences_.size()));
}

void KvCache::RemoveSequence(SequenceSlot slot) {
  Sequence& sequence = sequences_[slot];
  TS_CHECK(sequence.live);
  KeepOpenPages(&sequence, 0, 0);
  DropBlocks(&sequence, 0);
  if (sequence.root != nullptr) prefixes_->Leave(sequence.root);
  sequence.root = sequence.node = sequence.shared_end = nullptr;
  sequence.committed = sequence.dropped = 0;
  sequence.live = false;
}

uint32_t KvCache::OpenPagesFor(uint32_t first, uint32_t tokens) const {
  return options_.codec->identity() || tokens <= first ? 0 : PagesFor(tokens - first);
}

Status KvCache::CheckRoom(const Sequence& sequence, uint32_t tokens, uint32_t open_pages) const {
  if (tokens > options_.sequence_tokens_max) {
    return Status(Code::kInvalidArgument,
                  fmt::format("a sequence of {} tokens is longer than the context of {}", tokens,
                              options_.sequence_tokens_max));
  }
  const uint32_t want = BlocksFor(tokens);
  for (size_t g = 0; g < groups_.size(); ++g) {
    const Table& table = sequence.tables[g];
    const BlockPool& pool = groups_[g].pool;
    const auto have = static_cast<uint32_t>(table.blocks.size());
    if (want > have && want - have > pool.available()) {
      return Status(
          Code::kResourceExhausted,
          fmt::format("{} tokens need {} more KV blocks of {} tokens, {} of {} are free", tokens,
                      want - have, options_.block_tokens, pool.available(), pool.total()));
    }
    const BlockPool& open = groups_[g].open.pool();
    const auto open_have = static_cast<uint32_t>(table.open_pages.size());
    const uint32_t open_available = open.free() + tails_.pages();
    if (open_pages > open_have && open_pages - open_have > open_available) {
      return Status(Code::kResourceExhausted,
                    fmt::format("{} tokens need {} more open pages of {} tokens, {} of {} are "
                                "free: uncommitted_tokens_max is {}",
                                tokens, open_pages - open_have, options_.page_tokens,
                                open_available, open.total(), options_.uncommitted_tokens_max));
    }
  }
  return Status();
}

void KvCache::Take(Sequence* sequence, uint32_t tokens, uint32_t open_pages) {
  const uint32_t blocks = BlocksFor(tokens);
  for (size_t g = 0; g < groups_.size(); ++g) {
    Table& table = sequence->tables[g];
    BlockPool& pool = groups_[g].pool;
    uint64_t taken_end = 0;  // after the last block that is taken
    while (table.blocks.size() < blocks) {
      if (pool.free() == 0) EvictNode();
      AppendBlock(&table, pool.Allocate(table.blocks.empty() ? UINT32_MAX : table.blocks.back()));
      taken_end = std::max(taken_end, uint64_t{table.blocks.back()} + 1);
    }
    if (taken_end > 0) TouchAfter(taken_end, &groups_[g]);
    while (table.open_pages.size() < open_pages) {
      if (groups_[g].open.pool().free() == 0) GiveTail(tails_.TakeOldest());
      table.open_pages.push_back(groups_[g].open.TakePage());
    }
  }
}

// Free blocks are taken from the pool's beginning on: extents are used for the first time in order.
void KvCache::TouchAfter(uint64_t blocks, GroupStorage* s) const {
  if (space_.space() != MemorySpace::kHost) return;
  const uint64_t pages = blocks * (options_.block_tokens / options_.page_tokens);
  const uint64_t used = ((pages - 1) >> s->extent_shift) + 1;
  if (used <= s->used_extents) return;
  s->used_extents = used;
  s->touch.Clear();  // what was ahead is about to be written
  const uint64_t extents = s->memory.size / s->extent_stride;
  if (used == extents) return;
  for (const PageMemory* memory : {&s->memory, &s->records, &s->summaries}) {
    const uint64_t bytes = memory->size / extents;
    s->touch.Add(memory->data + used * bytes, std::min(bytes, kTouchedBytesMax));
  }
}

void KvCache::TouchAhead(ThreadPool* threads) {
  for (GroupStorage& s : groups_) {
    if (s.touch.Advance(threads)) return;
  }
}

void KvCache::AppendBlock(Table* table, uint32_t block) const {
  const uint32_t pages = options_.block_tokens / options_.page_tokens;
  table->blocks.push_back(block);
  for (uint32_t p = 0; p < pages; ++p) table->pages.push_back(block * pages + p);
}

Status KvCache::Reserve(SequenceSlot slot, uint32_t tokens) {
  Sequence& sequence = sequences_[slot];
  TS_CHECK(sequence.live);
  const uint32_t open_pages = OpenPagesFor(open_first(slot), tokens);
  TS_RETURN_IF_ERROR(CheckRoom(sequence, tokens, open_pages));
  Take(&sequence, tokens, open_pages);
  return Status();
}

void KvCache::Commit(SequenceSlot slot, uint32_t tokens) {
  Sequence& sequence = sequences_[slot];
  TS_CHECK(sequence.live && tokens >= sequence.committed && tokens <= BlockTokensOf(sequence));
  const uint32_t before = open_first(slot);
  sequence.committed = tokens;
  KeepOpenPages(&sequence, PagesFor(open_first(slot) - before), UINT32_MAX);
  const uint32_t sealed = options_.codec->WindowBegin(tokens);
  for (size_t g = 0; g < groups_.size(); ++g) {
    const Table& table = sequence.tables[g];
    TS_CHECK(table.open_pages.size() >= OpenPagesFor(open_first(slot), tokens));
    // Sealed blocks are a prefix of the table, so walk back from the last full one.
    for (uint32_t b = sealed / options_.block_tokens; b > 0; --b) {
      if (groups_[g].pool.sealed(table.blocks[b - 1])) break;
      groups_[g].pool.Seal(table.blocks[b - 1]);
    }
  }
}

void KvCache::Truncate(SequenceSlot slot, uint32_t tokens) {
  Sequence& sequence = sequences_[slot];
  TS_CHECK(sequence.live && tokens >= sequence.committed);
  KeepOpenPages(&sequence, 0, OpenPagesFor(open_first(slot), tokens));
  DropBlocks(&sequence, BlocksFor(tokens));
}

void KvCache::Rewind(SequenceSlot slot, uint32_t tokens) {
  Sequence& sequence = sequences_[slot];
  TS_CHECK(sequence.live && tokens <= sequence.committed);
  TS_CHECK(tokens == options_.codec->WindowBegin(tokens));
  TS_CHECK(sequence.root == nullptr);  // what others may have adopted is final
  KeepOpenPages(&sequence, 0, 0);
  const uint32_t sealed = options_.codec->WindowBegin(sequence.committed) / options_.block_tokens;
  for (size_t g = 0; g < groups_.size(); ++g) {
    for (uint32_t b = tokens / options_.block_tokens; b < sealed; ++b)
      groups_[g].pool.Unseal(sequence.tables[g].blocks[b]);
  }
  sequence.committed = tokens;
}

void KvCache::Drop(SequenceSlot slot, std::span<const uint32_t> units) {
  Sequence& sequence = sequences_[slot];
  TS_CHECK(sequence.live && sequence.root == nullptr);
  const uint32_t pages_per_block = options_.block_tokens / options_.page_tokens;
  const auto erase = [](std::vector<uint32_t>* of, uint32_t first, uint32_t count) {
    of->erase(of->begin() + first, of->begin() + first + count);
  };
  uint32_t end = options_.codec->WindowBegin(sequence.committed) / share_tokens();
  // From the last one on, so that the numbers of the others stay.
  for (auto unit = units.rbegin(); unit != units.rend(); end = *unit++) {
    TS_CHECK(*unit < end);
    const uint32_t block = *unit * NodeBlocks();
    for (size_t g = 0; g < groups_.size(); ++g) {
      Table& table = sequence.tables[g];
      for (uint32_t i = 0; i < NodeBlocks(); ++i) groups_[g].pool.Unref(table.blocks[block + i]);
      erase(&table.blocks, block, NodeBlocks());
      erase(&table.pages, block * pages_per_block, NodeBlocks() * pages_per_block);
    }
  }
  const auto tokens = static_cast<uint32_t>(units.size()) * share_tokens();
  sequence.committed -= tokens;
  sequence.dropped += tokens;
  ForgetStates(slot);
}

void KvCache::KeepOpenPages(Sequence* sequence, uint32_t first, uint32_t count) {
  for (size_t g = 0; g < groups_.size(); ++g) {
    std::vector<uint32_t>& pages = sequence->tables[g].open_pages;
    const size_t begin = std::min<size_t>(first, pages.size());
    const size_t end = begin + std::min<size_t>(count, pages.size() - begin);
    for (size_t i = 0; i < pages.size(); ++i) {
      if (i < begin || i >= end) groups_[g].open.GivePage(pages[i]);
    }
    pages.erase(pages.begin() + static_cast<long>(end), pages.end());
    pages.erase(pages.begin(), pages.begin() + static_cast<long>(begin));
  }
}

void KvCache::DropBlocks(Sequence* sequence, uint32_t keep_blocks) {
  const uint32_t pages_per_block = options_.block_tokens / options_.page_tokens;
  for (size_t g = 0; g < groups_.size(); ++g) {
    Table& table = sequence->tables[g];
    while (table.blocks.size() > keep_blocks) {
      groups_[g].pool.Unref(table.blocks.back());
      table.blocks.pop_back();
    }
    table.pages.resize(table.blocks.size() * pages_per_block);
  }
}

uint32_t KvCache::BlockTokensOf(const Sequence& sequence) const {
  return static_cast<uint32_t>(sequence.tables[0].blocks.size()) * options_.block_tokens;
}

uint32_t KvCache::reserved_tokens(SequenceSlot slot) const {
  const Sequence& sequence = sequences_[slot];
  const uint32_t blocks = BlockTokensOf(sequence);
  if (options_.codec->identity()) return blocks;
  const auto open = static_cast<uint32_t>(sequence.tables[0].open_pages.size());
  return std::min(blocks, open_first(slot) + open * options_.page_tokens);
}

PageView KvCache::View(SequenceSlot slot, uint32_t group, uint32_t tokens) const {
  const Sequence& sequence = sequences_[slot];
  TS_CHECK(tokens > 0 && tokens <= BlockTokensOf(sequence));
  TS_CHECK(tokens == options_.codec->WindowBegin(tokens));
  const uint32_t count = PagesFor(tokens);
  return {.pages = sequence.tables[group].pages.data(),
          .count = count,
          .last_tokens = tokens - (count - 1) * options_.page_tokens,
          .space = space_.space()};
}

PageView KvCache::OpenView(SequenceSlot slot, uint32_t group, uint32_t first,
                           uint32_t tokens) const {
  const uint32_t begin = open_first(slot), page_tokens = options_.page_tokens;
  TS_CHECK(begin <= first && first < tokens && tokens <= reserved_tokens(slot));
  TS_CHECK(first % page_tokens == 0);
  const Table& table = sequences_[slot].tables[group];
  const std::vector<uint32_t>& pages = coded(group) ? table.open_pages : table.pages;
  const uint32_t count = PagesFor(tokens - first);
  return {.pages = pages.data() + (first - begin) / page_tokens,
          .count = count,
          .last_tokens = tokens - first - (count - 1) * page_tokens,
          .space = space_.space()};
}

KvSlab KvCache::slab(uint32_t group, uint32_t layer_in_group, uint32_t kv_head) const {
  const GroupStorage& s = groups_[group];
  TS_CHECK(layer_in_group < s.shape.layers && kv_head < s.shape.kv_heads);
  return {
      .base = s.memory.data +
              (static_cast<uint64_t>(layer_in_group) * s.shape.kv_heads + kv_head) * s.run_bytes,
      .extent_stride = s.extent_stride,
      .extent_shift = s.extent_shift,
      .page_bytes = s.page_bytes,
      .v_offset = s.v_offset};
}

KvSlab KvCache::SlabOf(const GroupStorage& s, const PageMemory& memory, uint32_t item_bytes,
                       uint32_t layer_in_group, uint32_t kv_head) const {
  if (item_bytes == 0) return {};
  const uint64_t run_bytes = uint64_t{item_bytes} << s.extent_shift;
  return {.base = memory.data +
                  (static_cast<uint64_t>(layer_in_group) * s.shape.kv_heads + kv_head) * run_bytes,
          .extent_stride = run_bytes * s.shape.layers * s.shape.kv_heads,
          .extent_shift = s.extent_shift,
          .page_bytes = item_bytes,
          .v_offset = 0};
}

KvSlab KvCache::records(uint32_t group, uint32_t layer_in_group, uint32_t kv_head) const {
  const GroupStorage& s = groups_[group];
  return SlabOf(s, s.records, s.meta.record_bytes, layer_in_group, kv_head);
}

KvSlab KvCache::summaries(uint32_t group, uint32_t layer_in_group, uint32_t kv_head) const {
  const GroupStorage& s = groups_[group];
  return SlabOf(s, s.summaries, options_.kept.summary_bytes, layer_in_group, kv_head);
}

uint64_t KvCache::StatesBytesOfSlot(const GroupStorage& s) const {
  return uint64_t{s.shape.layers} * s.shape.kv_heads * StateStride(options_.kept);
}

SelectorState* KvCache::state(SequenceSlot slot, uint32_t group, uint32_t layer_in_group,
                              uint32_t kv_head) const {
  const GroupStorage& s = groups_[group];
  TS_CHECK(options_.kept.state_bytes > 0 && layer_in_group < s.shape.layers &&
           kv_head < s.shape.kv_heads);
  return reinterpret_cast<SelectorState*>(s.states.data() + slot * StatesBytesOfSlot(s) +
                                          (uint64_t{layer_in_group} * s.shape.kv_heads + kv_head) *
                                              StateStride(options_.kept));
}

void KvCache::ForgetStates(SequenceSlot slot) {
  ++sequences_[slot].states_life;
  if (options_.kept.state_bytes == 0) return;
  for (uint32_t g = 0; g < groups(); ++g) {
    for (uint32_t layer = 0; layer < groups_[g].shape.layers; ++layer) {
      for (uint32_t head = 0; head < groups_[g].shape.kv_heads; ++head)
        *state(slot, g, layer, head) = {};
    }
  }
}

KvSlab KvCache::open_slab(uint32_t group, uint32_t layer_in_group, uint32_t kv_head) const {
  if (!coded(group)) return slab(group, layer_in_group, kv_head);
  return groups_[group].open.slab(layer_in_group, kv_head);
}

KvShape KvCache::open_shape(uint32_t group) const {
  return coded(group) ? groups_[group].open.shape() : groups_[group].kv;
}

void KvCache::CopyPages(uint32_t group, std::span<const uint32_t> from,
                        std::span<const uint32_t> to) {
  const LayerGroup& shape = groups_[group].shape;
  for (uint32_t layer = 0; layer < shape.layers; ++layer) {
    for (uint32_t head = 0; head < shape.kv_heads; ++head) {
      for (const KvSlab& of :
           {slab(group, layer, head), records(group, layer, head), summaries(group, layer, head)}) {
        if (of.base == nullptr) continue;
        for (size_t page = 0; page < from.size(); ++page)
          CopyItem(space_, of, from[page], to[page]);
      }
    }
  }
}

void KvCache::CopyOpenPages(uint32_t group, std::span<const uint32_t> from,
                            std::span<const uint32_t> to) {
  const LayerGroup& shape = groups_[group].shape;
  for (uint32_t layer = 0; layer < shape.layers; ++layer) {
    for (uint32_t head = 0; head < shape.kv_heads; ++head) {
      const KvSlab slab = open_slab(group, layer, head);
      for (size_t page = 0; page < from.size(); ++page)
        CopyItem(space_, slab, from[page], to[page]);
    }
  }
}

Status KvCache::Copy(SequenceSlot from, SequenceSlot to, uint32_t tokens) {
  Sequence &source = sequences_[from], &target = sequences_[to];
  TS_CHECK(from != to && source.live && target.live);
  TS_CHECK(target.committed <= tokens && tokens <= source.committed);
  TS_CHECK(source.dropped == 0 && target.dropped == 0);
  const uint32_t raw = RawBegin(tokens);
  const uint32_t open_pages = OpenPagesFor(raw, tokens);
  TS_CHECK(open_pages == 0 || open_first(from) == raw);
  TS_RETURN_IF_ERROR(CheckRoom(target, tokens, open_pages));
  const uint32_t first = options_.codec->WindowBegin(target.committed) / options_.page_tokens;
  const uint32_t end = PagesFor(options_.codec->WindowBegin(tokens));
  KeepOpenPages(&target, PagesFor(raw - open_first(to)), open_pages);
  Take(&target, tokens, open_pages);
  target.committed = raw;
  // What a device has of the source's states does not come along.
  if (space_.space() == MemorySpace::kDevice) ForgetStates(to);
  for (uint32_t g = 0; g < groups(); ++g) {
    const GroupStorage& s = groups_[g];
    if (const uint64_t bytes = StatesBytesOfSlot(s); bytes > 0)
      std::memcpy(s.states.data() + to * bytes, s.states.data() + from * bytes, bytes);
    const Table &a = source.tables[g], &b = target.tables[g];
    if (end > first) {
      CopyPages(g, std::span(a.pages).subspan(first, end - first),
                std::span(b.pages).subspan(first, end - first));
    }
    CopyOpenPages(g, std::span(a.open_pages).first(open_pages), b.open_pages);
  }
  Commit(to, tokens);
  return Status();
}

uint64_t KvCache::pool_bytes() const {
  return static_cast<uint64_t>(groups_[0].pool.total()) * options_.block_tokens * bytes_per_token_ +
         fixed_bytes_;
}

std::string KvCache::CheckIntegrity() const {
  if (std::string wrong = prefixes_->CheckIntegrity(); !wrong.empty()) return wrong;
  for (uint32_t g = 0; g < groups(); ++g) {
    for (const std::string& wrong : {CheckBlocks(g), CheckOpenPages(g)}) {
      if (!wrong.empty()) return wrong;
    }
  }
  return "";
}

std::string KvCache::CheckBlocks(uint32_t group) const {
  const BlockPool& pool = groups_[group].pool;
  std::vector<uint32_t> held(pool.total(), 0);
  for (size_t s = 0; s < sequences_.size(); ++s) {
    const Sequence& sequence = sequences_[s];
    const std::vector<uint32_t>& blocks = sequence.tables[group].blocks;
    if (!sequence.live && !blocks.empty())
      return fmt::format("free slot {} holds {} blocks", s, blocks.size());
    for (size_t b = 0; b < blocks.size(); ++b) {
      if (std::count(blocks.begin(), blocks.end(), blocks[b]) != 1) {
        return fmt::format("slot {} holds block {} twice", s, blocks[b]);
      }
      ++held[blocks[b]];
      const bool full =
          (b + 1) * options_.block_tokens <= options_.codec->WindowBegin(sequence.committed);
      if (pool.sealed(blocks[b]) != full) {
        return fmt::format("block {} of slot {} is {} at {} committed tokens", blocks[b], s,
                           full ? "open" : "sealed", sequence.committed);
      }
    }
  }
  std::vector<uint32_t> kept(pool.total(), 0);
  for (const PrefixTree::Node& node : prefixes_->nodes()) {
    for (uint32_t i = 0; i < NodeBlocks(); ++i) {
      const uint32_t block = node.blocks[group * NodeBlocks() + i];
      ++held[block];
      if (++kept[block] != 1 || !pool.kept(block) || !pool.sealed(block))
        return fmt::format("block {} of the prefix tree is not its own, or open", block);
    }
  }
  return CheckCounts(group, held);
}

std::string KvCache::CheckCounts(uint32_t group, const std::vector<uint32_t>& held) const {
  const BlockPool& pool = groups_[group].pool;
  uint32_t idle = 0, free = 0;
  for (uint32_t b = 0; b < pool.total(); ++b) {
    if (held[b] != pool.refs(b))
      return fmt::format("block {}: {} references counted, {} held", b, pool.refs(b), held[b]);
    free += pool.refs(b) == 0;
    idle += pool.refs(b) == 1 && pool.kept(b);
  }
  if (free != pool.free() || idle != pool.idle()) {
    return fmt::format("group {}: of {} blocks {} are free and {} idle, {} and {} are counted",
                       group, pool.total(), free, idle, pool.free(), pool.idle());
  }
  return "";
}

std::string KvCache::CheckOpenPages(uint32_t group) const {
  const BlockPool& pool = groups_[group].open.pool();
  std::vector<uint32_t> held(pool.total(), 0);
  uint32_t used = 0;
  for (SequenceSlot s = 0; s < sequences_.size(); ++s) {
    const Sequence& sequence = sequences_[s];
    const std::vector<uint32_t>& pages = sequence.tables[group].open_pages;
    if (!sequence.live && !pages.empty())
      return fmt::format("free slot {} holds {} open pages", s, pages.size());
    if (pages.size() < OpenPagesFor(open_first(s), sequence.committed)) {
      return fmt::format("slot {} holds {} open pages at {} committed tokens", s, pages.size(),
                         sequence.committed);
    }
    for (uint32_t page : pages) {
      if (page >= pool.total() || ++held[page] != 1 || pool.refs(page) != 1)
        return fmt::format("slot {}: open page {} is not its own", s, page);
    }
    used += static_cast<uint32_t>(pages.size());
  }
  uint32_t of_tails = 0;
  for (const OpenTail& tail : tails_.all()) {
    const std::vector<uint32_t>& pages = tail.pages[group];
    if (pages.size() != PagesFor(static_cast<uint32_t>(tail.tokens.size())))
      return fmt::format("a tail of {} tokens has {} open pages", tail.tokens.size(), pages.size());
    for (uint32_t page : pages) {
      if (page >= pool.total() || ++held[page] != 1 || pool.refs(page) != 1)
        return fmt::format("open page {} of a tail is not its own", page);
    }
    of_tails += static_cast<uint32_t>(pages.size());
  }
  if (of_tails != tails_.pages())
    return fmt::format("tails hold {} open pages, {} are counted", of_tails, tails_.pages());
  used += of_tails;
  if (used + pool.free() != pool.total()) {
    return fmt::format("group {}: {} held + {} free != {} open pages", group, used, pool.free(),
                       pool.total());
  }
  return "";
}

}  // namespace tinyserve
