#include "kv/block_pool.h"

#include <gtest/gtest.h>

#include <vector>

namespace tinyserve {
namespace {

TEST(BlockPool, SequencesThatGrowTogetherKeepTheirBlocksTogether) {
  BlockPool pool(16, /*run_blocks=*/4);
  uint32_t a = UINT32_MAX, b = UINT32_MAX;
  std::vector<uint32_t> as, bs;
  for (int i = 0; i < 6; ++i) {
    as.push_back(a = pool.Allocate(a));
    bs.push_back(b = pool.Allocate(b));
  }
  EXPECT_EQ(as, (std::vector<uint32_t>{0, 1, 2, 3, 8, 9}));
  EXPECT_EQ(bs, (std::vector<uint32_t>{4, 5, 6, 7, 12, 13}));
}

TEST(BlockPool, ASequenceAloneGoesOnBeyondItsRun) {
  BlockPool pool(16, 4);
  uint32_t last = UINT32_MAX;
  for (uint32_t i = 0; i < 16; ++i) EXPECT_EQ(last = pool.Allocate(last), i);
  EXPECT_EQ(pool.Allocate(last), UINT32_MAX);
}

TEST(BlockPool, WithoutAFreeRunEveryBlockIsStillFound) {
  BlockPool pool(10, 4);  // the last two blocks are no run
  uint32_t last = UINT32_MAX;
  for (int i = 0; i < 10; ++i) last = pool.Allocate(last);
  pool.Unref(1);
  pool.Unref(6);
  pool.Unref(9);
  EXPECT_EQ(pool.Allocate(UINT32_MAX), 1u);
  EXPECT_EQ(pool.Allocate(7), 9u);
  EXPECT_EQ(pool.Allocate(9), 6u) << "past the end it goes on at the beginning";
  EXPECT_EQ(pool.free(), 0u);
}

TEST(BlockPool, ANewSequenceTakesTheFirstRunThatIsAllFree) {
  BlockPool pool(12, 4);
  uint32_t last = UINT32_MAX;
  for (int i = 0; i < 12; ++i) last = pool.Allocate(last);
  for (const uint32_t block : {1u, 2u, 4u, 5u, 6u, 7u}) pool.Unref(block);
  EXPECT_EQ(pool.Allocate(UINT32_MAX), 4u);
  EXPECT_EQ(pool.Allocate(UINT32_MAX), 1u) << "none is left that is all free";
}

}  // namespace
}  // namespace tinyserve
