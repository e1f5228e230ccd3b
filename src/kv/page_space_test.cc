// A cache whose pages lie where the host cannot reach them.
#include "kv/page_space.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <string>
#include <vector>

#include "kernels/tables.h"
#include "kv/kv_cache.h"

namespace tinyserve {
namespace {

struct Copied {
  const uint8_t *to, *from;
  uint64_t bytes;
};

// Memory that any access of the host to is a fault.
class FarDevice : public PageDevice {
 public:
  PageGeometry GeometryOf(const KvShape& shape) const override {
    const uint32_t v = shape.page_tokens * shape.head_dim * 2;
    return {.page_bytes = 2 * v, .v_offset = v};
  }
  Result<PageMemory> Allocate(uint64_t bytes) override {
    if (bytes > left) return Status(Code::kOutOfMemory, "the device is full");
    left -= bytes;
    void* at = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    EXPECT_NE(at, MAP_FAILED);
    const std::shared_ptr<void> owner(at, [bytes](void* memory) { munmap(memory, bytes); });
    return PageMemory{.data = static_cast<uint8_t*>(at), .size = bytes, .owner = owner};
  }
  void Copy(uint8_t* to, const uint8_t* from, uint64_t bytes) override {
    copied.push_back({to, from, bytes});
  }

  uint64_t left = uint64_t{1} << 30;
  std::vector<Copied> copied;
};

const std::vector<LayerGroup> kGroups = {{.layers = 3, .kv_heads = 2, .head_dim = 64}};

KvCacheOptions OptionsFor(const char* codec) {
  return {.codec = *FindCodec(codec),
          .page_tokens = 16,
          .block_tokens = 32,
          .memory_bytes = 8 << 20,
          .sequences_max = 4,
          .sequence_tokens_max = 400,
          .kept = {.metadata = kMetaBox, .summary_bytes = 64, .state_bytes = 0},
          .uncommitted_tokens_max = 128};
}

TEST(PagesOnADevice, AreNeverTouchedByTheHost) {
  for (const char* codec : {"f16", "int8"}) {
    FarDevice device;
    auto cache = *KvCache::Create(kGroups, OptionsFor(codec), &device);
    std::vector<int32_t> tokens(200);
    for (int32_t i = 0; i < 200; ++i) tokens[static_cast<size_t>(i)] = i;
    const SequenceSlot first = *cache->AddSequence(), second = *cache->AddSequence();
    cache->Adopt(first, "", {}, kMadeByPrefill);
    for (const uint32_t tokens_held : {128u, 200u}) {
      ASSERT_TRUE(cache->Reserve(first, tokens_held).ok());
      EXPECT_EQ(cache->OpenView(first, 0, cache->RawBegin(tokens_held - 1), tokens_held).space,
                MemorySpace::kDevice);
      cache->Commit(first, tokens_held);
    }
    cache->Share(first, tokens, 200, kMadeByPrefill);
    EXPECT_TRUE(device.copied.empty()) << codec;
    // A whole block more would be shared; its first half is copied, where pages are not coded.
    const uint32_t adopted = cache->Adopt(second, "", std::span(tokens).first(80), kMadeByPrefill);
    EXPECT_EQ(adopted, cache->coded(0) ? 64u : 80u);
    EXPECT_EQ(device.copied.empty(), cache->coded(0));
    device.copied.clear();
    const SequenceSlot third = *cache->AddSequence();
    const uint32_t life = cache->states_life(third);
    ASSERT_TRUE(cache->Copy(first, third, 200).ok());
    EXPECT_NE(cache->states_life(third), life);  // states that the device has stay behind
    EXPECT_FALSE(device.copied.empty());
    for (const Copied& copy : device.copied) EXPECT_NE(copy.to, copy.from);
    EXPECT_EQ(cache->CheckIntegrity(), "");
  }
}

TEST(PagesOnADevice, AreRefusedWithTheDevicesReason) {
  FarDevice device;
  device.left = 1 << 20;
  const Status full = KvCache::Create(kGroups, OptionsFor("f16"), &device).status();
  EXPECT_EQ(full.code(), Code::kOutOfMemory);
  EXPECT_EQ(full.message(), "the device is full");
  KvCacheOptions own = OptionsFor("f16");
  own.kept.state_bytes = 64;
  EXPECT_EQ(KvCache::Create(kGroups, own, &device).status().code(), Code::kUnsupported);
}

TEST(PagesOfTheHost, AreZeros) {
  const PageSpace host = RefKernels();
  EXPECT_EQ(host.space(), MemorySpace::kHost);
  const PageMemory memory = *host.Allocate(4096, /*huge=*/false);
  for (uint64_t i = 0; i < memory.size; ++i) ASSERT_EQ(memory.data[i], 0) << i;
  memory.data[0] = 7;
  host.Copy(memory.data + 1, memory.data, 1);
  EXPECT_EQ(memory.data[1], 7);
}

}  // namespace
}  // namespace tinyserve
