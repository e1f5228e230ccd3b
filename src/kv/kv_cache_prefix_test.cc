// What sequences of a cache share, and what that costs the pool.
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "kernels/tables.h"
#include "kv/kv_cache.h"

namespace tinyserve {
namespace {

constexpr PrefixMaker kDense = 1;
using Tokens = std::vector<int32_t>;

std::unique_ptr<KvCache> MakeCache(uint32_t blocks, const char* codec) {
  const std::vector<LayerGroup> groups = {{.layers = 2, .kv_heads = 2, .head_dim = 16}};
  KvCacheOptions options{.codec = *FindCodec(codec),
                         .page_tokens = 16,
                         .block_tokens = 32,
                         .memory_bytes = 0,
                         .sequences_max = 6,
                         .sequence_tokens_max = 512,
                         .uncommitted_tokens_max = 512};
  options.memory_bytes =
      blocks * 32 * KvCache::BytesPerToken(groups, *options.codec, 16, RefKernels()) +
      KvCache::FixedBytes(groups, options, RefKernels());
  auto cache = KvCache::Create(groups, options, RefKernels());
  EXPECT_TRUE(cache.ok()) << cache.status().message();
  return *std::move(cache);
}

Tokens Counted(uint32_t count, int32_t first = 0) {
  Tokens tokens(count);
  for (uint32_t i = 0; i < count; ++i) tokens[i] = first + static_cast<int32_t>(i);
  return tokens;
}

// A sequence that adopts what it can of `tokens`, then has and shares all of them as a prompt.
SequenceSlot Hold(KvCache* cache, const Tokens& tokens, uint32_t* adopted = nullptr,
                  std::string_view salt = "") {
  const SequenceSlot slot = *cache->AddSequence();
  const uint32_t found = cache->Adopt(slot, salt, tokens, kDense);
  if (adopted != nullptr) *adopted = found;
  const auto all = static_cast<uint32_t>(tokens.size());
  EXPECT_TRUE(cache->Reserve(slot, all).ok());
  cache->Commit(slot, all);
  cache->Share(slot, tokens, all, kDense);
  EXPECT_EQ(cache->CheckIntegrity(), "");
  return slot;
}

TEST(SharedPrefixes, AreAdoptedInTheirBlocksAndTheRestIsCopied) {
  auto cache = MakeCache(16, "f16");
  const Tokens tokens = Counted(100);
  uint32_t adopted = 0;
  const SequenceSlot a = Hold(cache.get(), tokens, &adopted);
  EXPECT_EQ(adopted, 0u);
  EXPECT_EQ(cache->pool(0).used(), 4u);
  Tokens other = tokens;
  other[77] = -1;
  const uint32_t page = cache->View(a, 0, 96).pages[4];
  const KvSlab slab = cache->slab(0, 1, 1);
  std::memset(PageAt(slab, page), 0x5a, slab.page_bytes);
  const SequenceSlot b = *cache->AddSequence();
  EXPECT_EQ(cache->Adopt(b, "", other, kDense), 77u);
  EXPECT_EQ(cache->committed_tokens(b), 77u);
  EXPECT_EQ(cache->pool(0).used(), 5u);  // one of its own
  const uint32_t copy = cache->View(b, 0, 77).pages[4];
  EXPECT_NE(copy, page);
  EXPECT_EQ(std::memcmp(PageAt(slab, copy), PageAt(slab, page), slab.page_bytes), 0);
  EXPECT_EQ(cache->View(b, 0, 77).pages[3], cache->View(a, 0, 96).pages[3]);
  EXPECT_EQ(cache->CheckIntegrity(), "");
  cache->RemoveSequence(a);
  cache->RemoveSequence(b);
  EXPECT_EQ(cache->pool(0).used(), 0u);
  EXPECT_EQ(cache->pool(0).idle(), 3u);
  EXPECT_EQ(cache->CheckIntegrity(), "");
}

TEST(SharedPrefixes, OfCodedPagesAreWholeWindows) {
  auto cache = MakeCache(16, "planes");
  EXPECT_EQ(cache->share_tokens(), 64u);
  const Tokens tokens = Counted(150);
  const SequenceSlot a = Hold(cache.get(), tokens);
  const SequenceSlot b = *cache->AddSequence();
  EXPECT_EQ(cache->Adopt(b, "", std::span(tokens).first(127), kDense), 64u);
  EXPECT_EQ(cache->open_first(b), 64u);
  const SequenceSlot c = *cache->AddSequence();
  EXPECT_EQ(cache->Adopt(c, "", tokens, kDense), 128u);
  EXPECT_EQ(cache->CheckIntegrity(), "");
  for (SequenceSlot slot : {a, b, c}) cache->RemoveSequence(slot);
  EXPECT_EQ(cache->pool(0).idle(), 4u);
}

// The newest tokens, which no page codes yet, are left behind in their raw pages.
TEST(SharedPrefixes, OfCodedPagesGoOnWithARawTail) {
  auto cache = MakeCache(16, "planes");
  const Tokens tokens = Counted(150);
  const SequenceSlot a = Hold(cache.get(), tokens);
  const uint32_t page = cache->OpenView(a, 0, 128, 150).pages[1];
  const KvSlab slab = cache->open_slab(0, 1, 1);
  std::memset(PageAt(slab, page), 0x5a, slab.page_bytes);
  cache->ShareTail(a, tokens, 150, kDense);
  EXPECT_EQ(cache->CheckIntegrity(), "");
  cache->RemoveSequence(a);
  EXPECT_EQ(cache->open_pool(0).used(), 2u);
  // As much of it as the tokens are the same, in a copy.
  Tokens other = tokens;
  other[147] = -1;
  const SequenceSlot b = *cache->AddSequence();
  EXPECT_EQ(cache->Adopt(b, "", other, kDense), 147u);
  EXPECT_EQ(cache->open_first(b), 128u);
  const uint32_t copy = cache->OpenView(b, 0, 128, 147).pages[1];
  EXPECT_NE(copy, page);
  EXPECT_EQ(std::memcmp(PageAt(slab, copy), PageAt(slab, page), slab.page_bytes), 0);
  // Not under another path, nor where the path is longer.
  other[100] = -1;
  const SequenceSlot c = *cache->AddSequence();
  EXPECT_EQ(cache->Adopt(c, "", other, kDense), 64u);
  EXPECT_EQ(cache->CheckIntegrity(), "");
  for (const SequenceSlot slot : {b, c}) cache->RemoveSequence(slot);
  // One that goes farther takes its place, one that is shorter does not.
  Hold(cache.get(), Counted(170));
  for (const uint32_t length : {170u, 160u}) {
    const SequenceSlot slot = Hold(cache.get(), Counted(length));
    cache->ShareTail(slot, Counted(length), length, kDense);
    cache->RemoveSequence(slot);
    EXPECT_EQ(cache->open_pool(0).used(), 3u + 3u);  // of the tail, and of who runs
    EXPECT_EQ(cache->CheckIntegrity(), "");
  }
}

TEST(SharedPrefixes, TailsThatWereGeneratedAreSharedUnderTheirMakerAlone) {
  auto cache = MakeCache(16, "planes");
  const Tokens tokens = Counted(120);
  const auto adopted = [&](PrefixMaker maker) {
    const SequenceSlot slot = *cache->AddSequence();
    const uint32_t found = cache->Adopt(slot, "", tokens, maker);
    cache->RemoveSequence(slot);
    return found;
  };
  const auto leave = [&](uint32_t prompt, PrefixMaker maker) {
    const SequenceSlot slot = *cache->AddSequence();
    const uint32_t found = cache->Adopt(slot, "", std::span(tokens).first(prompt), maker);
    ASSERT_TRUE(cache->Reserve(slot, 120).ok());
    cache->Commit(slot, 120);
    cache->Share(slot, tokens, prompt, maker);
    cache->ShareTail(slot, tokens, prompt, maker);
    cache->RemoveSequence(slot);
    EXPECT_EQ(cache->CheckIntegrity(), "");
    EXPECT_LE(found, prompt);
  };
  leave(90, kDense);
  EXPECT_EQ(adopted(kDense), 120u);
  EXPECT_EQ(adopted(kDense + 1), 90u);
  EXPECT_EQ(adopted(kMadeByPrefill), 90u);
  leave(100, kMadeByPrefill);  // the first 90 by prefill, and 10 more
  EXPECT_EQ(adopted(kDense + 1), 100u);
  EXPECT_EQ(adopted(kDense), 120u);
  // A prompt that goes on from what was generated is not made by prefill.
  leave(120, kDense);
  EXPECT_EQ(adopted(kMadeByPrefill), 100u);
}

TEST(SharedPrefixes, TailsGiveWayToWhoNeedsTheirPages) {
  auto cache = MakeCache(40, "planes");
  const auto leave = [&](int32_t first) {
    const Tokens tokens = Counted(120, first);
    const SequenceSlot slot = Hold(cache.get(), tokens);
    cache->ShareTail(slot, tokens, 120, kDense);
    cache->RemoveSequence(slot);
  };
  const auto adopted = [&](int32_t first) {
    const SequenceSlot slot = *cache->AddSequence();
    const uint32_t found = cache->Adopt(slot, "", Counted(120, first), kDense);
    cache->RemoveSequence(slot);
    return found;
  };
  for (const int32_t first : {0, 1000, 2000}) leave(first);
  const uint32_t total = cache->open_pool(0).total();
  EXPECT_EQ(cache->open_pool(0).used(), 12u);
  std::vector<SequenceSlot> slots;
  // All but six of the pages: the oldest tail goes, and the next.
  for (uint32_t left = total - 6; left > 0;) {
    slots.push_back(*cache->AddSequence());
    const uint32_t pages = std::min(left, 18u);
    ASSERT_TRUE(cache->Reserve(slots.back(), pages * 16).ok());
    left -= pages;
  }
  EXPECT_EQ(cache->CheckIntegrity(), "");
  EXPECT_EQ(cache->open_pool(0).used(), total - 2);
  for (const SequenceSlot slot : slots) cache->RemoveSequence(slot);
  EXPECT_EQ(adopted(0), 64u);
  EXPECT_EQ(adopted(1000), 64u);
  EXPECT_EQ(adopted(2000), 120u);
  // And with the blocks that it follows.
  EXPECT_EQ(cache->open_pool(0).used(), 4u);
  for (int32_t i = 1; i <= 4; ++i)
    cache->RemoveSequence(Hold(cache.get(), Counted(448, 10000 * i)));
  EXPECT_EQ(adopted(2000), 0u);
  EXPECT_EQ(cache->open_pool(0).used(), 0u);
  EXPECT_EQ(cache->CheckIntegrity(), "");
}

TEST(SharedPrefixes, NeverCrossSalts) {
  auto cache = MakeCache(16, "f16");
  const Tokens tokens = Counted(96);
  uint32_t adopted = 0;
  Hold(cache.get(), tokens, nullptr, "mine");
  Hold(cache.get(), tokens, &adopted, "other");
  EXPECT_EQ(adopted, 0u);
  Hold(cache.get(), tokens, &adopted, "mine");
  EXPECT_EQ(adopted, 96u);
  EXPECT_EQ(cache->Adoptable("mine", tokens, kDense), 96u);
  EXPECT_EQ(cache->Adoptable("nobody", tokens, kDense), 0u);
  EXPECT_EQ(cache->CheckIntegrity(), "");
}

TEST(SharedPrefixes, GiveWayWhenBlocksAreNeeded) {
  auto cache = MakeCache(8, "f16");
  cache->RemoveSequence(Hold(cache.get(), Counted(96)));
  cache->RemoveSequence(Hold(cache.get(), Counted(96, 1000)));
  EXPECT_EQ(cache->pool(0).idle(), 6u);
  uint32_t adopted = 0;
  const SequenceSlot first = Hold(cache.get(), Counted(96), &adopted);  // now the newest
  EXPECT_EQ(adopted, 96u);
  const SequenceSlot all = *cache->AddSequence();
  ASSERT_TRUE(cache->Reserve(all, 5 * 32).ok());  // of the other one nothing is left
  EXPECT_EQ(cache->CheckIntegrity(), "");
  EXPECT_EQ(cache->pool(0).available(), 0u);
  EXPECT_EQ(cache->Adoptable("", Counted(96, 1000), kDense), 0u);
  EXPECT_EQ(cache->Adoptable("", Counted(96), kDense), 96u);
  EXPECT_EQ(cache->Reserve(all, 6 * 32).code(), Code::kResourceExhausted);
  cache->RemoveSequence(first);
  EXPECT_TRUE(cache->Reserve(all, 8 * 32).ok());
  EXPECT_EQ(cache->CheckIntegrity(), "");
}

TEST(SharedPrefixes, WhatWasGeneratedIsSharedUnderItsMakerAlone) {
  auto cache = MakeCache(16, "f16");
  const Tokens tokens = Counted(128);
  const SequenceSlot a = *cache->AddSequence();
  cache->Adopt(a, "", {}, kDense);
  ASSERT_TRUE(cache->Reserve(a, 128).ok());
  cache->Commit(a, 128);
  cache->Share(a, tokens, /*prompt_tokens=*/50, kDense);
  EXPECT_EQ(cache->Adoptable("", tokens, kDense), 128u);
  EXPECT_EQ(cache->Adoptable("", tokens, kDense + 1), 32u);
  EXPECT_EQ(cache->Adoptable("", tokens, kMadeByPrefill), 32u);
  // A copy of a part that was generated makes the whole unit so.
  Tokens longer = Counted(40);
  longer.resize(64, 7);
  const SequenceSlot b = *cache->AddSequence();
  EXPECT_EQ(cache->Adopt(b, "", longer, kDense), 40u);
  ASSERT_TRUE(cache->Reserve(b, 64).ok());
  cache->Commit(b, 64);
  cache->Share(b, longer, 64, kDense);
  EXPECT_EQ(cache->Adoptable("", longer, kDense), 64u);
  EXPECT_EQ(cache->Adoptable("", longer, kMadeByPrefill), 32u);
  EXPECT_EQ(cache->CheckIntegrity(), "");
}

// Random conversations in a pool too small for them: blocks conserve, and what is adopted was
// committed with these tokens, salt and maker before.
TEST(SharedPrefixes, ConserveBlocksUnderRandomLoad) {
  for (const char* codec : {"f16", "planes"}) {
    for (uint32_t seed = 1; seed <= 15; ++seed) {
      SCOPED_TRACE(codec + std::string(" seed ") + std::to_string(seed));
      std::mt19937 random(seed);
      const uint32_t pool_blocks = 12 + random() % 20;
      auto cache = MakeCache(pool_blocks, codec);
      struct Running {
        SequenceSlot slot;
        Tokens tokens;
        uint32_t prompt;
        PrefixMaker maker;
      };
      std::vector<Running> running;
      const char* salts[] = {"", "x"};
      for (int step = 0; step < 400; ++step) {
        if (running.size() < 6 && random() % 3 == 0) {
          Running r{.slot = *cache->AddSequence(), .tokens = {}, .prompt = 0, .maker = 0};
          r.tokens = Counted(1 + random() % 200, static_cast<int32_t>(random() % 2) * 100);
          if (random() % 2 == 0) r.tokens[random() % r.tokens.size()] = -5;
          r.prompt = static_cast<uint32_t>(r.tokens.size());
          r.maker = random() % 3;
          const uint32_t got = cache->Adopt(r.slot, salts[random() % 2],
                                            std::span(r.tokens).first(r.prompt - 1), r.maker);
          ASSERT_LT(got, r.prompt);
          running.push_back(r);
        }
        for (size_t i = 0; i < running.size();) {
          Running& r = running[i];
          const uint32_t done = cache->committed_tokens(r.slot);
          const uint32_t more = done < r.prompt ? 1 + random() % (r.prompt - done) : 1;
          const bool ends = random() % 30 == 0 || r.tokens.size() > 300;
          if (ends || !cache->Reserve(r.slot, done + more).ok()) {
            // Some are of a conversation, whose pin moves with them.
            const uint64_t pin = random() % 8;
            if (pin < 4) cache->Pin(r.slot, pin, random() % pool_blocks);
            if (pin == 4) cache->Unpin(random() % 4);
            if (random() % 2 == 0) cache->ShareTail(r.slot, r.tokens, r.prompt, r.maker);
            cache->RemoveSequence(r.slot);
            running.erase(running.begin() + static_cast<long>(i));
            continue;
          }
          if (done + more > r.tokens.size()) r.tokens.push_back(static_cast<int32_t>(random() % 2));
          cache->Commit(r.slot, done + more);
          cache->Share(r.slot, r.tokens, r.prompt, r.maker);
          ++i;
        }
        ASSERT_EQ(cache->CheckIntegrity(), "") << step;
        const BlockPool& pool = cache->pool(0);
        ASSERT_EQ(pool.free() + pool.idle() + pool.used(), pool.total());
      }
      for (const Running& r : running) cache->RemoveSequence(r.slot);
      for (uint64_t pin = 0; pin < 4; ++pin) cache->Unpin(pin);
      EXPECT_EQ(cache->pinned_blocks(), 0u);
      EXPECT_EQ(cache->pool(0).used(), 0u);
      EXPECT_EQ(cache->CheckIntegrity(), "");
    }
  }
}

}  // namespace
}  // namespace tinyserve
