#include "kv/kv_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/check.h"
#include "base/checked.h"

namespace tinyserve {
namespace {

// Bytes of one slab that lie together in an extent: long enough to stream, short enough that a
// little-used pool touches little memory.
constexpr uint64_t kRunBytes = 64 << 10;

struct PageGeometry {
  uint32_t page_bytes, v_offset;
};

PageGeometry GeometryOf(const KvShape& shape, const Kernels* kernels) {
  uint32_t k = 0, v = 0;
  kernels->page_bytes(&shape, &k, &v);
  TS_CHECK(k % 64 == 0 && v % 64 == 0 && k > 0 && v > 0);
  return {k + v, k};
}

KvShape ShapeOf(const LayerGroup& group, const Codec& codec, uint32_t page_tokens) {
  return {.type = codec.open_type,
          .kv_heads = group.kv_heads,
          .head_dim = group.head_dim,
          .page_tokens = page_tokens};
}

Status CheckOptions(const KvCacheOptions& o) {
  if (o.page_tokens != 16 && o.page_tokens != 32 && o.page_tokens != 64) {
    return Status(Code::kInvalidArgument,
                  fmt::format("page_tokens is {}: allowed are 16, 32 and 64", o.page_tokens));
  }
  if (o.block_tokens % o.page_tokens != 0 || o.block_tokens == 0 || o.block_tokens > 256) {
    return Status(
        Code::kInvalidArgument,
        fmt::format("block_tokens is {}: it must be a multiple of page_tokens ({}) and at most 256",
                    o.block_tokens, o.page_tokens));
  }
  return Status();
}

}  // namespace

uint64_t KvCache::BytesPerToken(const std::vector<LayerGroup>& groups, const Codec& codec,
                                uint32_t page_tokens, const Kernels* kernels, uint32_t metadata) {
  uint64_t bytes = 0;
  for (const LayerGroup& group : groups) {
    const KvShape shape = ShapeOf(group, codec, page_tokens);
    const uint64_t page =
        GeometryOf(shape, kernels).page_bytes + MetaLayoutOf(metadata, group.head_dim).record_bytes;
    bytes += page * group.layers * group.kv_heads / page_tokens;
  }
  return bytes;
}

Result<std::unique_ptr<KvCache>> KvCache::Create(const std::vector<LayerGroup>& groups,
                                                 const KvCacheOptions& options,
                                                 const Kernels* kernels) {
  TS_RETURN_IF_ERROR(CheckOptions(options));
  std::unique_ptr<KvCache> cache(new KvCache);
  cache->options_ = options;
  cache->bytes_per_token_ =
      BytesPerToken(groups, *options.codec, options.page_tokens, kernels, options.metadata);
  const uint64_t block_bytes = cache->bytes_per_token_ * options.block_tokens;
  const uint64_t blocks = std::min<uint64_t>(options.memory_bytes / block_bytes, UINT32_MAX / 32);
  if (blocks == 0) {
    return Status(
        Code::kOutOfMemory,
        fmt::format("the KV pool of {} bytes holds no block: one of {} tokens takes {} bytes",
                    options.memory_bytes, options.block_tokens, block_bytes));
  }
  const uint32_t pages_per_block = options.block_tokens / options.page_tokens;
  for (const LayerGroup& group : groups) {
    const KvShape shape = ShapeOf(group, *options.codec, options.page_tokens);
    const PageGeometry page = GeometryOf(shape, kernels);
    const uint64_t run_pages =
        std::bit_ceil(std::max<uint64_t>(kRunBytes / page.page_bytes, pages_per_block));
    GroupStorage s{.shape = group,
                   .pool = BlockPool(static_cast<uint32_t>(blocks)),
                   .kv = shape,
                   .page_bytes = page.page_bytes,
                   .v_offset = page.v_offset,
                   .extent_shift = static_cast<uint32_t>(std::countr_zero(run_pages)),
                   .run_bytes = run_pages * page.page_bytes,
                   .extent_stride = 0,
                   .meta = MetaLayoutOf(options.metadata, group.head_dim),
                   .memory = {},
                   .records = {}};
    s.extent_stride = s.run_bytes * group.layers * group.kv_heads;
    const uint64_t extents = (blocks * pages_per_block + run_pages - 1) / run_pages;
    const Checked bytes = Checked(extents) * Checked(s.extent_stride);
    if (!bytes.valid()) {
      return Status(Code::kOutOfMemory,
                    fmt::format("a KV pool of {} bytes is too large", options.memory_bytes));
    }
    TS_ASSIGN_OR_RETURN(s.memory, Buffer::Allocate(bytes.value(), /*huge=*/true));
    // Records are smaller than pages: their bytes do not overflow either.
    const uint64_t records = bytes.value() / page.page_bytes * s.meta.record_bytes;
    if (records > 0) {
      TS_ASSIGN_OR_RETURN(s.records, Buffer::Allocate(records, /*huge=*/true));
    }
    cache->groups_.push_back(std::move(s));
  }
  cache->sequences_.resize(options.sequences_max);
  const uint32_t blocks_max = cache->BlocksFor(options.sequence_tokens_max);
  for (Sequence& sequence : cache->sequences_) {
    sequence.tables.resize(groups.size());
    for (Table& table : sequence.tables) {
      table.blocks.reserve(blocks_max);
      table.pages.reserve(static_cast<size_t>(blocks_max) * pages_per_block);
    }
  }
  return cache;
}

Result<SequenceSlot> KvCache::AddSequence() {
  for (SequenceSlot slot = 0; slot < sequences_.size(); ++slot) {
    if (!sequences_[slot].live) {
      sequences_[slot].live = true;
      return slot;
    }
  }
  return Status(Code::kResourceExhausted,
                fmt::format("all {} sequence slots are in use", sequences_.size()));
}

void KvCache::RemoveSequence(SequenceSlot slot) {
  Sequence& sequence = sequences_[slot];
  TS_CHECK(sequence.live);
  DropBlocks(&sequence, 0);
  sequence.committed = 0;
  sequence.live = false;
}

Status KvCache::Reserve(SequenceSlot slot, uint32_t tokens) {
  Sequence& sequence = sequences_[slot];
  TS_CHECK(sequence.live);
  if (tokens > options_.sequence_tokens_max) {
    return Status(Code::kInvalidArgument,
                  fmt::format("a sequence of {} tokens is longer than the context of {}", tokens,
                              options_.sequence_tokens_max));
  }
  const uint32_t want = BlocksFor(tokens);
  for (size_t g = 0; g < groups_.size(); ++g) {
    const uint32_t have = static_cast<uint32_t>(sequence.tables[g].blocks.size());
    if (want > have && want - have > groups_[g].pool.free()) {
      return Status(Code::kResourceExhausted,
                    fmt::format("{} tokens need {} more KV blocks of {} tokens, {} of {} are free",
                                tokens, want - have, options_.block_tokens, groups_[g].pool.free(),
                                groups_[g].pool.total()));
    }
  }
  const uint32_t pages_per_block = options_.block_tokens / options_.page_tokens;
  for (size_t g = 0; g < groups_.size(); ++g) {
    Table& table = sequence.tables[g];
    while (table.blocks.size() < want) {
      const uint32_t block =
          groups_[g].pool.Allocate(table.blocks.empty() ? UINT32_MAX : table.blocks.back());
      table.blocks.push_back(block);
      for (uint32_t p = 0; p < pages_per_block; ++p)
        table.pages.push_back(block * pages_per_block + p);
    }
  }
  return Status();
}

void KvCache::Commit(SequenceSlot slot, uint32_t tokens) {
  Sequence& sequence = sequences_[slot];
  TS_CHECK(sequence.live && tokens >= sequence.committed && tokens <= reserved_tokens(slot));
  sequence.committed = tokens;
  for (size_t g = 0; g < groups_.size(); ++g) {
    // Sealed blocks are a prefix of the table, so walk back from the last full one.
    for (uint32_t b = tokens / options_.block_tokens; b > 0; --b) {
      const uint32_t block = sequence.tables[g].blocks[b - 1];
      if (groups_[g].pool.sealed(block)) break;
      groups_[g].pool.Seal(block);
    }
  }
}

void KvCache::Truncate(SequenceSlot slot, uint32_t tokens) {
  Sequence& sequence = sequences_[slot];
  TS_CHECK(sequence.live && tokens >= sequence.committed);
  DropBlocks(&sequence, BlocksFor(tokens));
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

uint32_t KvCache::reserved_tokens(SequenceSlot slot) const {
  const std::vector<Table>& tables = sequences_[slot].tables;
  return static_cast<uint32_t>(tables[0].blocks.size()) * options_.block_tokens;
}

PageView KvCache::View(SequenceSlot slot, uint32_t group, uint32_t tokens) const {
  TS_CHECK(tokens > 0 && tokens <= reserved_tokens(slot));
  const uint32_t count = (tokens + options_.page_tokens - 1) / options_.page_tokens;
  return {.pages = sequences_[slot].tables[group].pages.data(),
          .count = count,
          .last_tokens = tokens - (count - 1) * options_.page_tokens,
          .space = MemorySpace::kHost};
}

KvSlab KvCache::slab(uint32_t group, uint32_t layer_in_group, uint32_t kv_head) const {
  const GroupStorage& s = groups_[group];
  TS_CHECK(layer_in_group < s.shape.layers && kv_head < s.shape.kv_heads);
  return {
      .base = s.memory.data() +
              (static_cast<uint64_t>(layer_in_group) * s.shape.kv_heads + kv_head) * s.run_bytes,
      .extent_stride = s.extent_stride,
      .extent_shift = s.extent_shift,
      .page_bytes = s.page_bytes,
      .v_offset = s.v_offset};
}

KvSlab KvCache::records(uint32_t group, uint32_t layer_in_group, uint32_t kv_head) const {
  const GroupStorage& s = groups_[group];
  if (s.meta.record_bytes == 0) return {};
  const uint64_t run_bytes = (uint64_t{s.meta.record_bytes} << s.extent_shift);
  return {.base = s.records.data() +
                  (static_cast<uint64_t>(layer_in_group) * s.shape.kv_heads + kv_head) * run_bytes,
          .extent_stride = run_bytes * s.shape.layers * s.shape.kv_heads,
          .extent_shift = s.extent_shift,
          .page_bytes = s.meta.record_bytes,
          .v_offset = 0};
}

void KvCache::Copy(SequenceSlot from, SequenceSlot to, uint32_t first, uint32_t last) {
  TS_CHECK(from != to && first <= last);
  TS_CHECK(last <= reserved_tokens(from) && last <= reserved_tokens(to));
  const auto copy = [](const KvSlab& slab, uint32_t to_page, uint32_t from_page) {
    std::memcpy(PageAt(slab, to_page), PageAt(slab, from_page), slab.page_bytes);
  };
  for (uint32_t g = 0; g < groups(); ++g) {
    const GroupStorage& s = groups_[g];
    const std::vector<uint32_t>& source = sequences_[from].tables[g].pages;
    const std::vector<uint32_t>& target = sequences_[to].tables[g].pages;
    const uint32_t end = (last + options_.page_tokens - 1) / options_.page_tokens;
    for (uint32_t layer = 0; layer < s.shape.layers; ++layer) {
      for (uint32_t head = 0; head < s.shape.kv_heads; ++head) {
        const KvSlab data = slab(g, layer, head), meta = records(g, layer, head);
        for (uint32_t page = first / options_.page_tokens; page < end; ++page) {
          copy(data, target[page], source[page]);
          if (meta.base != nullptr) copy(meta, target[page], source[page]);
        }
      }
    }
  }
}

KvShape KvCache::shape(uint32_t group) const { return groups_[group].kv; }

uint64_t KvCache::pool_bytes() const {
  return static_cast<uint64_t>(groups_[0].pool.total()) * options_.block_tokens * bytes_per_token_;
}

std::string KvCache::CheckIntegrity() const {
  for (size_t g = 0; g < groups_.size(); ++g) {
    const BlockPool& pool = groups_[g].pool;
    std::vector<uint32_t> held(pool.total(), 0);
    for (size_t s = 0; s < sequences_.size(); ++s) {
      const Sequence& sequence = sequences_[s];
      const std::vector<uint32_t>& blocks = sequence.tables[g].blocks;
      if (!sequence.live && !blocks.empty())
        return fmt::format("free slot {} holds {} blocks", s, blocks.size());
      for (size_t b = 0; b < blocks.size(); ++b) {
        if (std::count(blocks.begin(), blocks.end(), blocks[b]) != 1) {
          return fmt::format("slot {} holds block {} twice", s, blocks[b]);
        }
        ++held[blocks[b]];
        const bool full = (b + 1) * options_.block_tokens <= sequence.committed;
        if (pool.sealed(blocks[b]) != full) {
          return fmt::format("block {} of slot {} is {} at {} committed tokens", blocks[b], s,
                             full ? "open" : "sealed", sequence.committed);
        }
      }
    }
    uint32_t used = 0;
    for (uint32_t b = 0; b < pool.total(); ++b) {
      if (held[b] != pool.refs(b))
        return fmt::format("block {}: {} references counted, {} held", b, pool.refs(b), held[b]);
      used += pool.refs(b) > 0;
    }
    if (used + pool.free() != pool.total()) {
      return fmt::format("group {}: {} held + {} free != {} blocks", g, used, pool.free(),
                         pool.total());
    }
  }
  return "";
}

}  // namespace tinyserve
