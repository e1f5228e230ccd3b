#include "engine/chunk_sizer.h"

#include <gtest/gtest.h>

namespace tinyserve {
namespace {

TEST(ChunkSizer, KeepsStepsWithAPromptToAMultiple) {
  ChunkSizer sizer(512);
  EXPECT_EQ(sizer.tokens(), 64u);
  for (int i = 0; i < 20; ++i) sizer.Observe(4, 0, 0.040);
  EXPECT_EQ(sizer.tokens(), 64u);
  for (int i = 0; i < 20; ++i) {
    const uint32_t n = sizer.tokens();
    sizer.Observe(4, n, 0.040 + 0.0005 * n);
  }
  // 1.25 * 40 ms / 0.5 ms = 100
  EXPECT_EQ(sizer.tokens(), 96u);
}

TEST(ChunkSizer, StaysInItsLimits) {
  ChunkSizer sizer(256);
  sizer.Observe(1, 0, 0.001);
  sizer.Observe(0, 100, 1.0);
  EXPECT_EQ(sizer.tokens(), ChunkSizer::kLeast);
  for (int i = 0; i < 50; ++i) sizer.Observe(0, 100, 1e-4);
  EXPECT_EQ(sizer.tokens(), 256u);  // 1.25 ms of 1 us tokens would be more
  EXPECT_EQ(ChunkSizer(32).tokens(), 32u);
}

TEST(ChunkSizer, IsNotMisledByStepsThatSayNothing) {
  ChunkSizer sizer(512);
  sizer.Observe(4, 100, 1.0);  // how much of it was generation?
  sizer.Observe(4, 0, 0.04);
  sizer.Observe(4, 100, 0.03);  // less than generation alone
  sizer.Observe(4, 3, 0.30);    // few tokens
  EXPECT_EQ(sizer.tokens(), 64u);
}

}  // namespace
}  // namespace tinyserve
