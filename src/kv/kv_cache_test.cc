#include "kv/kv_cache.h"

#include <gtest/gtest.h>

#include <random>

#include "kernels/tables.h"

namespace tinyserve {
namespace {

std::unique_ptr<KvCache> MakeCache(uint64_t blocks, const char* codec = "f16") {
  const std::vector<LayerGroup> groups = {{.layers = 3, .kv_heads = 2, .head_dim = 16}};
  KvCacheOptions options{.codec = *FindCodec(codec),
                         .page_tokens = 16,
                         .block_tokens = 32,
                         .memory_bytes = 0,
                         .sequences_max = 4,
                         .sequence_tokens_max = 400};
  options.memory_bytes =
      blocks * 32 * KvCache::BytesPerToken(groups, *options.codec, 16, RefKernels());
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
  for (uint32_t page : {0u, 1u, 8u, 24u, 128u}) {
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

// Random operations against a plain model of what is reserved; conservation is checked after every
// one.
TEST(KvCache, ConservesBlocksUnderRandomOperations) {
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    std::mt19937 random(seed);
    auto cache = MakeCache(12);
    std::vector<SequenceSlot> live;
    for (int step = 0; step < 400; ++step) {
      const uint32_t action = random() % 5;
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
          live.erase(live.begin() + static_cast<long>(i));
        } else if (action == 2) {
          const uint32_t want = 1 + random() % 400;
          const uint32_t more =
              cache->BlocksFor(want) * 32 > reserved ? cache->BlocksFor(want) - reserved / 32 : 0;
          const bool fits = more <= cache->pool(0).free();
          EXPECT_EQ(cache->Reserve(slot, want).ok(), fits) << "seed " << seed;
          if (fits) {
            const PageView view = cache->View(slot, 0, want);
            EXPECT_EQ((view.count - 1) * 16 + view.last_tokens, want);
          }
        } else if (action == 3) {
          cache->Commit(
              slot, committed + (reserved > committed ? random() % (reserved - committed + 1) : 0));
        } else {
          cache->Truncate(slot, committed + random() % 40);
        }
      }
      ASSERT_EQ(cache->CheckIntegrity(), "") << "seed " << seed << " step " << step;
    }
    for (SequenceSlot slot : live) cache->RemoveSequence(slot);
    EXPECT_EQ(cache->pool(0).free(), 12u);
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

}  // namespace
}  // namespace tinyserve
