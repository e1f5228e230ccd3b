#include "kv/kv_cache.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/tables.h"
#include "page/planes.h"
#include "tests/support/residency.h"

namespace tinyserve {
namespace {

std::unique_ptr<KvCache> MakeCache(uint64_t blocks, const std::string& codec = "f16") {
  const std::vector<LayerGroup> groups = {{.layers = 3, .kv_heads = 2, .head_dim = 16}};
  KvCacheOptions options{.codec = *FindCodec(codec),
                         .page_tokens = 16,
                         .block_tokens = 32,
                         .memory_bytes = 0,
                         .sequences_max = 4,
                         .sequence_tokens_max = 400,
                         .uncommitted_tokens_max = 128};
  options.memory_bytes =
      blocks * 32 * KvCache::BytesPerToken(groups, *options.codec, 16, RefKernels()) +
      KvCache::FixedBytes(groups, options, RefKernels());
  auto cache = KvCache::Create(groups, options, RefKernels());
  EXPECT_TRUE(cache.ok()) << cache.status().message();
  return *std::move(cache);
}

TEST(KvCache, ReserveIsAllOrNothingAndSaysWhatIsMissing) {
  auto cache = MakeCache(4);
  const SequenceSlot a = *cache->AddSequence();
  ASSERT_TRUE(cache->Reserve(a, 33).ok());
  EXPECT_EQ(cache->pool(0).used(), 2u);
  const SequenceSlot b = *cache->AddSequence();
  const Status status = cache->Reserve(b, 97);
  EXPECT_EQ(status.code(), Code::kResourceExhausted);
  EXPECT_NE(status.message().find("4 more KV blocks"), std::string::npos) << status.message();
  EXPECT_EQ(cache->pool(0).used(), 2u);
  EXPECT_EQ(cache->Reserve(b, 401).code(), Code::kInvalidArgument);
  EXPECT_EQ(cache->CheckIntegrity(), "");
}

TEST(KvCache, RefusesBadGeometry) {
  const std::vector<LayerGroup> groups = {{.layers = 1, .kv_heads = 1, .head_dim = 16}};
  KvCacheOptions options{.codec = *FindCodec("f16"),
                         .page_tokens = 16,
                         .block_tokens = 32,
                         .memory_bytes = 100,
                         .sequences_max = 1,
                         .sequence_tokens_max = 64};
  EXPECT_EQ(KvCache::Create(groups, options, RefKernels()).status().code(), Code::kOutOfMemory);
  options.memory_bytes = 1 << 20;
  for (uint32_t page : {4u, 8u, 16u, 32u}) {
    options.page_tokens = page;
    EXPECT_EQ(KvCache::Create(groups, options, RefKernels()).status().message(), "") << page;
  }
  for (uint32_t page : {0u, 1u, 2u, 12u, 24u, 128u}) {
    options.page_tokens = page;
    EXPECT_EQ(KvCache::Create(groups, options, RefKernels()).status().code(),
              Code::kInvalidArgument)
        << page;
  }
  options.page_tokens = 16;
  for (uint32_t block : {0u, 8u, 24u, 512u}) {
    options.block_tokens = block;
    EXPECT_EQ(KvCache::Create(groups, options, RefKernels()).status().code(),
              Code::kInvalidArgument)
        << block;
  }
  EXPECT_EQ(FindCodec("int3").status().code(), Code::kInvalidArgument);
}

class Codecs : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(All, Codecs, testing::Values("f16", "planes"),
                         [](const auto& test) { return std::string(test.param); });

uint32_t Sum(const std::vector<uint32_t>& counts) {
  return std::accumulate(counts.begin(), counts.end(), 0u);
}

uint32_t PagesOf(uint32_t tokens) { return (tokens + 15) / 16; }

// Random operations against a plain model of what is reserved; conservation is checked after every
// one.
TEST_P(Codecs, ConserveBlocksUnderRandomOperations) {
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    std::mt19937 random(seed);
    auto cache = MakeCache(12, GetParam());
    const uint32_t open_total = cache->open_pool(0).total();
    std::vector<uint32_t> blocks(4), open_pages(4);  // by slot
    std::vector<SequenceSlot> live;
    for (int step = 0; step < 400; ++step) {
      const uint32_t action = random() % 6;
      if (action == 0) {
        if (auto slot = cache->AddSequence(); slot.ok()) live.push_back(*slot);
        EXPECT_LE(live.size(), 4u);
      } else if (!live.empty()) {
        const size_t i = random() % live.size();
        const SequenceSlot slot = live[i];
        const uint32_t reserved = cache->reserved_tokens(slot),
                       committed = cache->committed_tokens(slot);
        if (action == 1) {
          cache->RemoveSequence(slot);
          blocks[slot] = open_pages[slot] = 0;
          live.erase(live.begin() + static_cast<long>(i));
        } else if (action == 2) {
          const uint32_t first = cache->open_first(slot), want = 1 + random() % 400;
          const uint32_t open =
              cache->coded(0) && want > first ? PagesOf(want - first) : open_pages[slot];
          const uint32_t more = std::max(cache->BlocksFor(want), blocks[slot]) - blocks[slot];
          const uint32_t more_open = std::max(open, open_pages[slot]) - open_pages[slot];
          const bool fits =
              more <= cache->pool(0).free() && more_open <= cache->open_pool(0).free();
          EXPECT_EQ(cache->Reserve(slot, want).ok(), fits) << "seed " << seed;
          if (fits) {
            blocks[slot] += more;
            open_pages[slot] += more_open;
          }
          if (fits && want > first) {
            const PageView view = cache->OpenView(slot, 0, first, want);
            EXPECT_EQ((view.count - 1) * 16 + view.last_tokens, want - first);
          }
        } else if (action == 3) {
          const uint32_t before = cache->open_first(slot);
          cache->Commit(
              slot, committed + (reserved > committed ? random() % (reserved - committed + 1) : 0));
          open_pages[slot] -= std::min(open_pages[slot], PagesOf(cache->open_first(slot) - before));
        } else if (action == 4) {
          const uint32_t keep = committed + random() % 40;
          cache->Truncate(slot, keep);
          blocks[slot] = std::min(blocks[slot], cache->BlocksFor(keep));
          open_pages[slot] =
              std::min(open_pages[slot], PagesOf(keep - std::min(keep, cache->open_first(slot))));
        } else {
          cache->Rewind(slot, cache->codec().WindowBegin(random() % (committed + 1)));
          open_pages[slot] = 0;
        }
      }
      EXPECT_EQ(cache->pool(0).used(), Sum(blocks));
      EXPECT_EQ(cache->open_pool(0).used(), Sum(open_pages));
      ASSERT_EQ(cache->CheckIntegrity(), "") << "seed " << seed << " step " << step;
    }
    for (SequenceSlot slot : live) cache->RemoveSequence(slot);
    EXPECT_EQ(cache->pool(0).free(), 12u);
    EXPECT_EQ(cache->open_pool(0).free(), open_total);
  }
}

TEST(KvCache, SlabsDoNotOverlap) {
  auto cache = MakeCache(12, "f32");
  // Write each page of each slab with its own mark, then find every mark untouched.
  const auto mark = [](uint32_t layer, uint32_t head, uint32_t page) {
    return static_cast<uint8_t>(1 + layer * 83 + head * 41 + page * 7);
  };
  for (int pass = 0; pass < 2; ++pass) {
    for (uint32_t layer = 0; layer < 3; ++layer) {
      for (uint32_t head = 0; head < 2; ++head) {
        const KvSlab slab = cache->slab(0, layer, head);
        for (uint32_t page = 0; page < 24; ++page) {
          uint8_t* data = PageAt(slab, page);
          for (uint32_t i = 0; i < slab.page_bytes; ++i) {
            if (pass == 0) {
              data[i] = mark(layer, head, page);
            } else {
              ASSERT_EQ(data[i], mark(layer, head, page));
            }
          }
        }
      }
    }
  }
}

// What a codec that codes has beside its pages: raw pages of the window that the newest committed
// token lies in, and of all that follows.
// One extent ahead of what is used, a piece for each thread at a time.
TEST(KvCache, MemoryIsResidentBeforeItIsUsed) {
  const std::vector<LayerGroup> groups = {{.layers = 64, .kv_heads = 2, .head_dim = 64}};
  constexpr uint64_t kExtents = 6;
  constexpr uint32_t kExtentTokens = 256;  // 64 KiB of each layer's and KV head's pages
  KvCacheOptions options{.codec = *FindCodec("f16"),
                         .page_tokens = 16,
                         .block_tokens = 32,
                         .memory_bytes = 0,
                         .sequences_max = 1,
                         .sequence_tokens_max = kExtents * kExtentTokens};
  options.memory_bytes =
      kExtents * kExtentTokens * KvCache::BytesPerToken(groups, *options.codec, 16, RefKernels());
  auto cache = KvCache::Create(groups, options, RefKernels());
  ASSERT_TRUE(cache.ok()) << cache.status().message();
  const KvSlab first = (*cache)->slab(0, 0, 0);
  ASSERT_EQ(first.extent_stride, 64u * 2 * (64 << 10));
  if (!CanPopulate(first.base)) GTEST_SKIP() << "the system cannot populate memory";
  const auto extent = [&](uint64_t e) { return first.base + e * first.extent_stride; };
  const auto resident = [&](uint64_t e) {
    return ResidentPages(extent(e), first.extent_stride) * 4096;
  };
  const SequenceSlot slot = *(*cache)->AddSequence();
  ThreadPool threads(2);
  (*cache)->TouchAhead(&threads);
  for (uint64_t e = 0; e + 2 < kExtents; ++e) {
    EXPECT_EQ(resident(e + 1), 0u) << e;
    ASSERT_TRUE((*cache)->Reserve(slot, static_cast<uint32_t>(e) * kExtentTokens + 1).ok());
    EXPECT_EQ(resident(e + 1), 0u) << e;
    for (uint64_t pieces = 2; pieces <= 4; pieces += 2) {
      (*cache)->TouchAhead(&threads);
      EXPECT_EQ(resident(e + 1), pieces * (2 << 20)) << e;
    }
    (*cache)->TouchAhead(&threads);
  }
  // A sequence that grows by much at once writes there itself.
  ASSERT_TRUE((*cache)->Reserve(slot, kExtents * kExtentTokens).ok());
  (*cache)->TouchAhead(&threads);
  EXPECT_EQ(resident(kExtents - 1), 0u);
}

TEST(CodedCache, KeepsRawPagesOfTheLastWindow) {
  auto cache = MakeCache(12, "planes");
  const SequenceSlot a = *cache->AddSequence();
  ASSERT_TRUE(cache->Reserve(a, 100).ok());
  EXPECT_EQ(cache->open_pool(0).used(), 7u);
  cache->Commit(a, 63);
  EXPECT_EQ(cache->open_first(a), 0u);
  EXPECT_EQ(cache->open_pool(0).used(), 7u);
  cache->Commit(a, 70);
  EXPECT_EQ(cache->open_first(a), 64u);
  EXPECT_EQ(cache->open_pool(0).used(), 3u);
  EXPECT_TRUE(cache->pool(0).sealed(cache->View(a, 0, 64).pages[0] / 2));
  cache->Truncate(a, 71);
  EXPECT_EQ(cache->open_pool(0).used(), 1u);
  EXPECT_EQ(cache->reserved_tokens(a), 80u);
  cache->Rewind(a, 64);
  EXPECT_EQ(cache->open_pool(0).used(), 0u);
  EXPECT_EQ(cache->reserved_tokens(a), 64u);
  EXPECT_EQ(cache->CheckIntegrity(), "");
}

TEST(CodedCache, RefusesWhatIsNotCommittedInTime) {
  auto cache = MakeCache(48, "planes");
  // 128 tokens and four windows with a page beside each: 28 pages.
  const SequenceSlot a = *cache->AddSequence(), b = *cache->AddSequence();
  ASSERT_TRUE(cache->Reserve(a, 400).ok());
  const Status status = cache->Reserve(b, 49);
  EXPECT_EQ(status.code(), Code::kResourceExhausted);
  EXPECT_NE(status.message().find("4 more open pages of 16 tokens, 3 of 28 are free"),
            std::string::npos)
      << status.message();
  EXPECT_EQ(cache->reserved_tokens(b), 0u);
  EXPECT_EQ(cache->pool(0).used(), 13u);
  EXPECT_TRUE(cache->Reserve(b, 48).ok());
  cache->Commit(a, 64);
  EXPECT_TRUE(cache->Reserve(b, 112).ok());
  EXPECT_EQ(cache->CheckIntegrity(), "");
}

// So many tokens may be uncommitted at once, however long the sequences are already.
TEST(CodedCache, HasRoomForEveryStep) {
  std::mt19937 random(1);
  auto cache = MakeCache(52, "planes");
  std::vector<SequenceSlot> slots;
  for (int s = 0; s < 4; ++s) slots.push_back(*cache->AddSequence());
  for (int step = 0; step < 2000; ++step) {
    uint32_t left = 128;
    for (SequenceSlot slot : slots) {
      const uint32_t tokens = std::min(
          {static_cast<uint32_t>(random() % 65), left, 400 - cache->committed_tokens(slot)});
      left -= tokens;
      ASSERT_TRUE(cache->Reserve(slot, cache->committed_tokens(slot) + tokens).ok());
      if (random() % 8 == 0) {
        cache->RemoveSequence(slot);
        ASSERT_EQ(*cache->AddSequence(), slot);
      }
    }
    for (SequenceSlot slot : slots) {
      const uint32_t committed = cache->committed_tokens(slot);
      const uint32_t end = std::min(400u, cache->reserved_tokens(slot));
      if (end > committed) cache->Commit(slot, committed + 1 + random() % (end - committed));
      cache->Truncate(slot, cache->committed_tokens(slot));
    }
    ASSERT_EQ(cache->CheckIntegrity(), "");
  }
}

TEST(CodedCache, RefusesWhatItCannotStore) {
  std::vector<LayerGroup> groups = {{.layers = 1, .kv_heads = 1, .head_dim = kPlanesHeadDimMax}};
  KvCacheOptions options{.codec = *FindCodec("planes"),
                         .page_tokens = 16,
                         .block_tokens = 32,
                         .memory_bytes = 1 << 22,
                         .sequences_max = 1,
                         .sequence_tokens_max = 64};
  const auto message = [&] {
    return KvCache::Create(groups, options, RefKernels()).status().message();
  };
  EXPECT_EQ(message(), "");
  options.page_tokens = 32;
  EXPECT_NE(message().find("page_tokens is 32: the KV type planes has pages of 16"),
            std::string::npos)
      << message();
  options.page_tokens = 16;
  groups[0].head_dim = kPlanesHeadDimMax + 16;
  EXPECT_NE(message().find(fmt::format("heads of at most {} channels, these have {}",
                                       kPlanesHeadDimMax, kPlanesHeadDimMax + 16)),
            std::string::npos)
      << message();
  groups[0].head_dim = 64;
  options.kept.metadata = kMetaBox | kMetaMoments;
  EXPECT_EQ(message(), "");
  options.kept = {};
  options.memory_bytes = KvCache::FixedBytes(groups, options, RefKernels());
  EXPECT_NE(message().find("holds no block"), std::string::npos) << message();
}

// Fills what a sequence holds with bytes of its own, and says whether another holds the same.
void Mark(KvCache* cache, SequenceSlot slot, uint32_t tokens, uint8_t mark) {
  const uint32_t coded = cache->codec().WindowBegin(tokens);
  const auto fill = [&](const KvSlab& slab, const PageView& view) {
    for (uint32_t i = 0; i < view.count; ++i)
      std::memset(PageAt(slab, view.pages[i]), mark + static_cast<int>(i), slab.page_bytes);
  };
  if (coded > 0) {
    fill(cache->slab(0, 2, 1), cache->View(slot, 0, coded));
    if (cache->coded(0)) fill(cache->records(0, 2, 1), cache->View(slot, 0, coded));
  }
  const uint32_t raw = cache->RawBegin(tokens);
  if (cache->coded(0) && tokens > raw)
    fill(cache->open_slab(0, 2, 1), cache->OpenView(slot, 0, raw, tokens));
}

void ExpectMarked(const KvCache& cache, SequenceSlot slot, uint32_t tokens, uint8_t mark) {
  const uint32_t coded = cache.codec().WindowBegin(tokens);
  const auto check = [&](const KvSlab& slab, const PageView& view, const char* what) {
    for (uint32_t i = 0; i < view.count; ++i) {
      const std::vector<uint8_t> expected(slab.page_bytes, static_cast<uint8_t>(mark + i));
      EXPECT_EQ(std::memcmp(PageAt(slab, view.pages[i]), expected.data(), slab.page_bytes), 0)
          << what << " page " << i << " of " << tokens << " tokens";
    }
  };
  if (coded > 0) {
    check(cache.slab(0, 2, 1), cache.View(slot, 0, coded), "block");
    if (cache.coded(0)) check(cache.records(0, 2, 1), cache.View(slot, 0, coded), "record of");
  }
  const uint32_t raw = cache.RawBegin(tokens);
  if (cache.coded(0) && tokens > raw)
    check(cache.open_slab(0, 2, 1), cache.OpenView(slot, 0, raw, tokens), "open");
}

TEST_P(Codecs, CopyTakesEveryForm) {
  auto cache = MakeCache(40, GetParam());
  const SequenceSlot from = *cache->AddSequence(), to = *cache->AddSequence();
  for (uint32_t tokens : {40u, 70u, 77u, 128u, 250u}) {
    ASSERT_TRUE(cache->Reserve(from, tokens).ok());
    const auto mark = static_cast<uint8_t>(tokens);
    Mark(cache.get(), from, tokens, mark);
    cache->Commit(from, tokens);
    // What `to` has in room that is not committed does not matter.
    ASSERT_TRUE(cache->Reserve(to, tokens + 20).ok());
    cache->Rewind(to, 0);
    ASSERT_TRUE(cache->Copy(from, to, tokens).ok());
    EXPECT_EQ(cache->committed_tokens(to), tokens);
    ExpectMarked(*cache, from, tokens, mark);
    ExpectMarked(*cache, to, tokens, mark);
    ASSERT_EQ(cache->CheckIntegrity(), "");
  }
  // Whole windows of what is committed, too.
  const SequenceSlot half = *cache->AddSequence();
  ASSERT_TRUE(cache->Copy(from, half, 192).ok());
  ExpectMarked(*cache, half, 192, 250);
  // All or nothing.
  auto small = MakeCache(9, GetParam());
  const SequenceSlot a = *small->AddSequence(), b = *small->AddSequence();
  ASSERT_TRUE(small->Reserve(a, 150).ok());
  small->Commit(a, 150);
  EXPECT_EQ(small->Copy(a, b, 150).code(), Code::kResourceExhausted);
  EXPECT_EQ(small->pool(0).used(), 5u);
  EXPECT_EQ(small->committed_tokens(b), 0u);
  EXPECT_EQ(small->CheckIntegrity(), "");
  EXPECT_TRUE(small->Copy(a, b, 128).ok());
}

// What is dropped frees its blocks at once; what is behind it moves up, page by page, and the
// sequence goes on from there.
TEST_P(Codecs, DroppedUnitsFreeTheirBlocks) {
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    std::mt19937 random(seed);
    auto cache = MakeCache(20, GetParam());
    const uint32_t unit = cache->share_tokens(), unit_blocks = unit / 32, unit_pages = unit / 16;
    const SequenceSlot slot = *cache->AddSequence(), other = *cache->AddSequence();
    ASSERT_TRUE(cache->Reserve(other, 64).ok());
    std::vector<uint32_t> units;  // by the first page of each that is held
    uint32_t held = 0, position = 0, dropped = 0;
    for (int step = 0; step < 60; ++step) {
      const uint32_t more = 1 + random() % 60;
      if (position + more > 1000 || !cache->Reserve(slot, held + more).ok()) break;
      held += more;
      position += more;
      cache->Commit(slot, held);
      const uint32_t full = cache->codec().WindowBegin(held) / unit;
      const uint32_t end = full * unit;
      if (end > 0) {
        const PageView view = cache->View(slot, 0, end);
        for (uint32_t u = static_cast<uint32_t>(units.size()); u < full; ++u)
          units.push_back(view.pages[u * unit_pages]);
      }
      std::vector<uint32_t> drop;
      for (uint32_t u = 0; u < full; ++u) {
        if (random() % 4 == 0) drop.push_back(u);
      }
      const uint32_t used = cache->pool(0).used();
      cache->Drop(slot, drop);
      EXPECT_EQ(cache->pool(0).used(), used - drop.size() * unit_blocks);
      for (auto u = drop.rbegin(); u != drop.rend(); ++u) units.erase(units.begin() + *u);
      held -= static_cast<uint32_t>(drop.size()) * unit;
      dropped += static_cast<uint32_t>(drop.size()) * unit;
      EXPECT_EQ(cache->committed_tokens(slot), held);
      EXPECT_EQ(cache->dropped_tokens(slot), dropped);
      EXPECT_EQ(held + dropped, position);
      ASSERT_EQ(cache->CheckIntegrity(), "") << "seed " << seed << ", step " << step;
      for (uint32_t u = 0; u < units.size(); ++u)
        ASSERT_EQ(cache->View(slot, 0, (u + 1) * unit).pages[u * unit_pages], units[u]);
    }
    EXPECT_GT(dropped, 0u);
    cache->RemoveSequence(slot);
    cache->RemoveSequence(other);
    EXPECT_EQ(cache->pool(0).used(), 0u);
    EXPECT_EQ(cache->dropped_tokens(*cache->AddSequence()), 0u);
    EXPECT_EQ(cache->CheckIntegrity(), "");
  }
}

}  // namespace
}  // namespace tinyserve
