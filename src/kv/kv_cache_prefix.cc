// What sequences share: the half of KvCache that knows the prefix tree.
#include <algorithm>
#include <utility>

#include "base/check.h"
#include "kv/kv_cache.h"

namespace tinyserve {

uint32_t KvCache::Adopt(SequenceSlot slot, std::string_view salt, std::span<const int32_t> tokens,
                        PrefixMaker maker) {
  Sequence& sequence = sequences_[slot];
  TS_CHECK(sequence.live && sequence.root == nullptr && sequence.tables[0].blocks.empty());
  sequence.root = prefixes_->Join(salt);
  const PrefixTree::Match match = prefixes_->Longest(sequence.root, tokens, maker);
  sequence.node = sequence.shared_end = match.node;
  sequence.shared = match.units * share_tokens();
  sequence.copied_maker = kMadeByPrefill;
  std::vector<const PrefixTree::Node*> path;
  for (const PrefixTree::Node* n = match.node; n->parent != nullptr; n = n->parent)
    path.push_back(n);
  for (auto node = path.rbegin(); node != path.rend(); ++node) AdoptNode(&sequence, **node);
  sequence.committed = sequence.shared;
  prefixes_->Use(match.node);
  const uint32_t part = options_.codec->WindowBegin(match.common_tokens);
  if (part > 0) {
    CopyPart(&sequence, *match.next, part);
  } else if (!options_.codec->identity()) {
    CopyTail(&sequence, tokens.subspan(sequence.shared), maker);
  }
  return sequence.committed;
}

uint32_t KvCache::Adoptable(std::string_view salt, std::span<const int32_t> tokens,
                            PrefixMaker maker) const {
  PrefixTree::Node* root = prefixes_->Join(salt);
  const uint32_t units = prefixes_->Longest(root, tokens, maker).units;
  prefixes_->Leave(root);
  return units * share_tokens();
}

void KvCache::AdoptNode(Sequence* sequence, const PrefixTree::Node& node) {
  for (uint32_t g = 0; g < groups(); ++g) {
    for (uint32_t i = 0; i < NodeBlocks(); ++i) {
      const uint32_t block = node.blocks[g * NodeBlocks() + i];
      groups_[g].pool.Ref(block);
      AppendBlock(&sequence->tables[g], block);
    }
  }
}

void KvCache::CopyPart(Sequence* sequence, const PrefixTree::Node& node, uint32_t tokens) {
  const std::vector<uint32_t> blocks = node.blocks;
  const PrefixMaker maker = node.maker;
  const auto block_of = [&](uint32_t g, uint32_t i) { return blocks[g * NodeBlocks() + i]; };
  // In use meanwhile: room for the copy is not made of what is copied.
  for (uint32_t g = 0; g < groups(); ++g) {
    for (uint32_t i = 0; i < NodeBlocks(); ++i) groups_[g].pool.Ref(block_of(g, i));
  }
  if (CheckRoom(*sequence, sequence->committed + tokens, 0).ok()) {
    const uint32_t first = PagesFor(sequence->committed), pages = PagesFor(tokens);
    const uint32_t block_pages = options_.block_tokens / options_.page_tokens;
    Take(sequence, sequence->committed + tokens, 0);
    for (uint32_t g = 0; g < groups(); ++g) {
      std::vector<uint32_t> from;
      for (uint32_t p = 0; p < pages; ++p)
        from.push_back(block_of(g, p / block_pages) * block_pages + p % block_pages);
      CopyPages(g, from, std::span(sequence->tables[g].pages).subspan(first, pages));
    }
    sequence->committed += tokens;
    sequence->copied_maker = maker;
  }
  for (uint32_t g = 0; g < groups(); ++g) {
    for (uint32_t i = 0; i < NodeBlocks(); ++i) groups_[g].pool.Unref(block_of(g, i));
  }
}

void KvCache::CopyTail(Sequence* sequence, std::span<const int32_t> next, PrefixMaker maker) {
  // Taken out meanwhile: room for the copy is not made of what is copied.
  std::optional<OpenTail> tail = tails_.Take(sequence->node, next, maker);
  if (!tail) return;
  const uint32_t tokens = tail->Common(next, maker), pages = PagesFor(tokens);
  if (CheckRoom(*sequence, sequence->committed + tokens, pages).ok()) {
    Take(sequence, sequence->committed + tokens, pages);
    for (uint32_t g = 0; g < groups(); ++g)
      CopyOpenPages(g, std::span(tail->pages[g]).first(pages), sequence->tables[g].open_pages);
    sequence->committed += tokens;
    if (tokens > tail->by_prefill) sequence->copied_maker = tail->maker;
  }
  for (const OpenTail& needless : tails_.Put(*std::move(tail))) GiveTail(needless);
}

void KvCache::GiveTail(const OpenTail& tail) {
  for (uint32_t g = 0; g < groups(); ++g) {
    for (const uint32_t page : tail.pages[g]) groups_[g].open.GivePage(page);
  }
}

void KvCache::ShareTail(SequenceSlot slot, std::span<const int32_t> tokens, uint32_t prompt_tokens,
                        PrefixMaker maker) {
  Sequence& sequence = sequences_[slot];
  TS_CHECK(sequence.live && sequence.committed <= tokens.size());
  const uint32_t begin = open_first(slot), end = sequence.committed;
  // It begins where the path ends; and nothing hangs on roots, which go with their last sequence.
  if (options_.codec->identity() || sequence.shared != begin) return;
  if (sequence.node == nullptr || sequence.node->parent == nullptr) return;
  const bool copied = sequence.copied_maker != kMadeByPrefill;
  const uint32_t by_prefill = copied ? 0 : std::clamp(prompt_tokens, begin, end) - begin;
  const uint32_t kept = maker == kMadeByPrefill ? by_prefill : end - begin;
  if (kept == 0) return;
  KeepOpenPages(&sequence, 0, PagesFor(kept));
  const std::span<const int32_t> own = tokens.subspan(begin, kept);
  OpenTail tail{.node = sequence.node,
                .tokens = {own.begin(), own.end()},
                .by_prefill = by_prefill,
                .maker = maker,
                .pages = {}};
  for (Table& table : sequence.tables) tail.pages.push_back(std::exchange(table.open_pages, {}));
  sequence.committed = begin;
  for (const OpenTail& needless : tails_.Put(std::move(tail))) GiveTail(needless);
}

void KvCache::Share(SequenceSlot slot, std::span<const int32_t> tokens, uint32_t prompt_tokens,
                    PrefixMaker maker) {
  Sequence& sequence = sequences_[slot];
  TS_CHECK(sequence.live && sequence.committed <= tokens.size());
  const uint32_t unit_tokens = share_tokens();
  const uint32_t final_tokens = options_.codec->WindowBegin(sequence.committed);
  while (sequence.node != nullptr && sequence.shared + unit_tokens <= final_tokens) {
    const uint32_t end = sequence.shared + unit_tokens;
    const bool generated = end > prompt_tokens || sequence.copied_maker != kMadeByPrefill;
    if (generated && maker == kMadeByPrefill) {
      sequence.node = nullptr;
      return;
    }
    const std::span<const int32_t> unit = tokens.subspan(sequence.shared, unit_tokens);
    const PrefixMaker made_by = generated ? maker : kMadeByPrefill;
    PrefixTree::Node* node = prefixes_->Find(sequence.node, unit, made_by);
    if (node == nullptr) {
      node = AddNode(sequence, unit, made_by);
    } else if (generated) {
      // A selector's state may have differed, so the bits may, and its own answer goes on from its
      // own.
      sequence.node = nullptr;
      return;
    } else {
      UseBlocksOf(*node, &sequence);
      prefixes_->Use(node);
    }
    sequence.node = sequence.shared_end = node;
    sequence.shared = end;
    sequence.copied_maker = kMadeByPrefill;
  }
}

PrefixTree::Node* KvCache::AddNode(const Sequence& sequence, std::span<const int32_t> unit,
                                   PrefixMaker maker) {
  std::vector<uint32_t> blocks;
  for (uint32_t g = 0; g < groups(); ++g) {
    for (uint32_t i = 0; i < NodeBlocks(); ++i) {
      const uint32_t block = sequence.tables[g].blocks[sequence.shared / options_.block_tokens + i];
      groups_[g].pool.Keep(block);
      blocks.push_back(block);
    }
  }
  return prefixes_->Insert(sequence.node, unit, maker, std::move(blocks));
}

void KvCache::UseBlocksOf(const PrefixTree::Node& node, Sequence* sequence) {
  const uint32_t block_pages = options_.block_tokens / options_.page_tokens;
  for (uint32_t g = 0; g < groups(); ++g) {
    Table& table = sequence->tables[g];
    for (uint32_t i = 0; i < NodeBlocks(); ++i) {
      const uint32_t at = sequence->shared / options_.block_tokens + i;
      const uint32_t block = node.blocks[g * NodeBlocks() + i];
      groups_[g].pool.Ref(block);
      groups_[g].pool.Unref(table.blocks[at]);
      table.blocks[at] = block;
      for (uint32_t p = 0; p < block_pages; ++p)
        table.pages[at * block_pages + p] = block * block_pages + p;
    }
  }
}

void KvCache::Pin(SequenceSlot slot, uint64_t pin, uint32_t blocks_max) {
  const Sequence& sequence = sequences_[slot];
  if (sequence.shared_end == nullptr) return;
  uint32_t units = 0;
  for (const PrefixTree::Node* n = sequence.shared_end; n->parent != nullptr; n = n->parent)
    ++units;
  PrefixTree::Node* end = sequence.shared_end;
  for (; units * NodeBlocks() > blocks_max; --units) end = end->parent;
  prefixes_->Pin(pin, end);
}

void KvCache::EvictNode() {
  const PrefixTree::Node* evicted = nullptr;
  const std::vector<uint32_t> blocks = prefixes_->EvictFirst([&](const auto& node) {
    evicted = &node;
    return groups_[0].pool.refs(node.blocks[0]) == 1;
  });
  TS_CHECK(!blocks.empty());  // CheckRoom has counted them
  for (const OpenTail& tail : tails_.TakeOf(evicted)) GiveTail(tail);
  for (uint32_t g = 0; g < groups(); ++g) {
    for (uint32_t i = 0; i < NodeBlocks(); ++i)
      groups_[g].pool.Unkeep(blocks[g * NodeBlocks() + i]);
  }
}

}  // namespace tinyserve
