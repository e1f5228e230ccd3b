// Dense decode attention, emulated, against ref.
#include <gtest/gtest.h>

#include "tests/simt/decode_testing.h"
#include "tests/simt/emulator.h"

namespace tinyserve::cuda {
namespace {

// Sums of up to 128 rounded products in another order move a logit by some 1e-6 of its size; values
// are at most 1.
constexpr float kTolerance = 2e-5f;

std::string NameOf(const DecodeShape& s) {
  return "type " + std::to_string(static_cast<int>(s.type)) + " dim " + std::to_string(s.head_dim) +
         " heads " + std::to_string(s.kv_heads) + " group " + std::to_string(s.group) + " page " +
         std::to_string(s.page_tokens);
}

void ExpectDense(DecodeBatch& batch) {
  for (uint32_t row = 0; row < batch.rows(); ++row) {
    if (batch.lengths()[row] == 0) continue;
    for (uint32_t head = 0; head < batch.shape().kv_heads; ++head) {
      EXPECT_LT(batch.Distance(row, head, batch.Reference(row, head, batch.AllPages(row))),
                kTolerance)
          << "row " << row << " head " << head;
    }
  }
}

// Every pair of type, head size, group and page size occurs at least once with some lengths around
// the borders of tiles, pages and splits.
TEST(AttentionDecode, MatchesRef) {
  const KvType types[] = {KvType::kF16, KvType::kBF16, KvType::kF32};
  const uint32_t dims[] = {64, 80, 96, 128}, pages[] = {4, 8, 16, 32, 64};
  const std::vector<uint32_t> lengths[] = {{1, 33}, {64, 0, 31}, {65, 300}, {257}, {255, 7}, {512}};
  uint32_t turn = 0;
  for (const uint32_t dim : dims) {
    for (uint32_t group = 1; group <= 8; ++group, ++turn) {
      const DecodeShape shape{types[turn % 3], dim, 1 + turn % 2, group,
                              pages[(turn + turn / 5) % 5]};
      SCOPED_TRACE(NameOf(shape));
      simt::SetSeed(turn);
      DecodeBatch batch(shape, lengths[turn % 6], turn);
      const Status status =
          AttendDense(shape, batch.pages(), batch.step(), batch.TokensMax(), nullptr);
      ASSERT_TRUE(status.ok()) << status.message();
      ExpectDense(batch);
      if (HasFailure()) return;
    }
  }
}

TEST(AttentionDecode, ResultDependsNeitherOnTheBatchNorOnTheOrder) {
  const DecodeShape shape{KvType::kF16, 64, 2, 3, 16};
  std::vector<float> first;
  for (const std::vector<uint32_t>& lengths : {std::vector<uint32_t>{530}, {530, 90, 256}}) {
    for (uint64_t seed = 1; seed <= 3; ++seed) {
      simt::SetSeed(seed);
      DecodeBatch batch(shape, lengths, 4);
      const Status status = AttendDense(shape, batch.pages(), batch.step(),
                                        seed == 2 ? 4096 : batch.TokensMax(), nullptr);
      // With room for more splits than partial results have, the launch must say so.
      if (seed == 2) {
        EXPECT_FALSE(status.ok());
        continue;
      }
      ASSERT_TRUE(status.ok()) << status.message();
      std::vector<float> row(batch.out().begin(), batch.out().begin() + batch.Width());
      if (first.empty()) first = row;
      // Pages lie elsewhere in another batch, with the same tokens.
      EXPECT_EQ(row, first);
      EXPECT_EQ(batch.arrived(), std::vector<uint32_t>(batch.arrived().size()));
    }
  }
}

TEST(AttentionDecode, RowsThatAreNotInUseStayAsTheyAre) {
  const DecodeShape shape{KvType::kF16, 64, 1, 2, 16};
  DecodeBatch batch(shape, {20, 0}, 4);
  ASSERT_TRUE(AttendDense(shape, batch.pages(), batch.step(), 20, nullptr).ok());
  for (uint64_t i = 0; i < batch.Width(); ++i) {
    EXPECT_FALSE(std::isnan(batch.out()[i]));
    EXPECT_TRUE(std::isnan(batch.out()[batch.Width() + i]));
  }
}

TEST(AttentionDecode, AMovedTokenIsSeen) {
  const DecodeShape shape{KvType::kF16, 64, 1, 2, 16};
  DecodeBatch batch(shape, {40}, 4);
  ASSERT_TRUE(AttendDense(shape, batch.pages(), batch.step(), 40, nullptr).ok());
  EXPECT_GT(batch.Distance(0, 0, batch.Reference(0, 0, {1, 0, 2})), -1);
  EXPECT_GT(batch.Distance(0, 0, batch.Reference(0, 0, {0, 2})), 100 * kTolerance);
}

TEST(AttentionDecode, RefusesShapesWithoutAnInstance) {
  for (const DecodeShape& shape :
       {DecodeShape{KvType::kF16, 72, 1, 1, 16}, DecodeShape{KvType::kF16, 64, 1, 9, 16},
        DecodeShape{KvType::kF16, 64, 1, 1, 24}, DecodeShape{KvType::kPlanes, 64, 1, 1, 16}}) {
    const Status status = AttendDense(shape, {}, {}, 16, nullptr);
    EXPECT_EQ(status.code(), Code::kUnsupported) << NameOf(shape);
  }
}

}  // namespace
}  // namespace tinyserve::cuda
