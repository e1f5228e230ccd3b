// The cascade on an emulated device: against exact attention where it reads everything, and against
// its plain twin, on the device's own pages, where it does not.
#include "kernels/cuda/attention_cascade.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "tests/simt/coded_batch.h"
#include "tests/simt/emulator.h"

namespace tinyserve::cuda {
namespace {

constexpr float kTolerance = 3e-5f;  // see attention_decode_test.cc; values are up to 1 here too

struct RowBudgets {
  uint32_t candidates, full_tokens, value_tokens;
};
struct Knobs {
  uint32_t sink = 1, recent = 2, widen = 1;
  float least_share = 0;
};

// A batch of sequences whose whole pages are in planes, and what a call writes.
class CascadeBatch : public CodedBatch {
 public:
  CascadeBatch(const DecodeShape& shape, const std::vector<uint32_t>& lengths,
               const std::vector<uint32_t>& coded, const std::vector<RowBudgets>& budgets,
               const Knobs& knobs, uint64_t seed)
      : CodedBatch(shape, KvType::kPlanes, lengths, coded, seed), knobs_(knobs) {
    MakeUneven(seed);
    pages_max_ = *std::max_element(coded.begin(), coded.end()) / kCodedTokens;
    for (uint32_t row = 0; row < rows(); ++row) {
      candidates_.push_back(budgets[row].candidates);
      full_tokens_.push_back(budgets[row].full_tokens);
      value_tokens_.push_back(budgets[row].value_tokens);
      newer_.push_back(PagesOf(open_tokens()[row]));
      list_pages_ =
          std::max(list_pages_, std::min(knobs.widen * budgets[row].candidates, pages_max_));
    }
    const uint32_t items = rows() * shape.kv_heads;
    lists_.assign(uint64_t{items} * list_pages_, kNoPage);
    chosen_.assign(items, 0xffffffff);
    head_scores_.assign(uint64_t{items} * shape.group * pages_max_, NAN);
    logits_.assign(items * CascadeFloats(shape.group, list_pages_), NAN);
    reads_.assign(uint64_t{items} * list_pages_ * kCodedTokens, 0xff);
  }

  Status Run() {
    return AttendCascade(coded_shape(), coded_pages(), CodedStep(), open(),
                         {.sink = knobs_.sink,
                          .recent = knobs_.recent,
                          .widen = knobs_.widen,
                          .alpha = 1,
                          .least_share = knobs_.least_share,
                          .pages_max = pages_max_,
                          .candidates = ConstArrayOf(candidates_),
                          .full_tokens = ConstArrayOf(full_tokens_),
                          .value_tokens = ConstArrayOf(value_tokens_),
                          .newer = ConstArrayOf(newer_),
                          .head_scores = ArrayOf(head_scores_),
                          .chosen = {list_pages_, ArrayOf(lists_), ArrayOf(chosen_)},
                          .logits = ArrayOf(logits_),
                          .reads = ArrayOf(reads_)},
                         nullptr);
  }

  struct Twin {
    CascadeCounts counts;
    std::vector<uint32_t> pages;  // that went on
    std::vector<float> out;
  };
  // What ref makes of the device's pages.
  Twin RunTwin(uint32_t row, uint32_t head) const {
    const uint32_t count = coded_tokens()[row] / kCodedTokens, group = shape().group;
    std::vector<testing::OwnedPartial> parts = {OpenPartial(row, head)};
    Twin twin{};
    if (count > 0) {
      parts.emplace_back(group, shape().head_dim);
      const auto most = [&](uint32_t budget, uint32_t held) {
        return std::min(knobs_.widen * budget, held);
      };
      const uint32_t sink = std::min(knobs_.sink, count);
      const uint32_t recent = knobs_.recent - std::min(knobs_.recent, newer_[row]);
      twin.pages.resize(count);
      const CascadeArgs args{.shape = {KvType::kPlanes, 1, shape().head_dim, kCodedTokens},
                             .slab = CodedSlab(head),
                             .records = RecordSlab(head),
                             .layout = layout(),
                             .pages = table(row),
                             .count = count,
                             .sink = sink,
                             .recent = std::min(recent, count - sink),
                             .candidates = most(candidates_[row], count),
                             .full_tokens = most(full_tokens_[row], count * kCodedTokens),
                             .value_tokens = most(value_tokens_[row], count * kCodedTokens),
                             .least_share = knobs_.least_share,
                             .alpha = 1,
                             .group = group,
                             .scale = kScale,
                             .q = Query(row, head),
                             .open = parts[0].View(),
                             .out = parts[1].View(),
                             .scratch = nullptr,
                             .chosen = twin.pages.data()};
      twin.counts = RefKernels()->attend_cascade(&args);
      twin.pages.resize(twin.counts.candidates);
      for (uint32_t& page : twin.pages) page = table(row)[page];
    }
    twin.out = testing::Merge(*RefKernels(), parts, group, shape().head_dim);
    return twin;
  }

  std::vector<uint32_t> Pages(uint32_t row, uint32_t head) const {
    const uint32_t item = row * shape().kv_heads + head;
    const auto begin = lists_.begin() + uint64_t{item} * list_pages_;
    return {begin, begin + chosen_[item] / kCodedTokens};
  }
  // Tokens of an item that are read so, or better.
  uint32_t Reads(uint32_t row, uint32_t head, TokenRead how) const {
    const uint32_t item = row * shape().kv_heads + head;
    const auto begin = reads_.begin() + uint64_t{item} * list_pages_ * kCodedTokens;
    return static_cast<uint32_t>(std::count_if(begin, begin + chosen_[item], [how](uint8_t read) {
      return read >= static_cast<uint8_t>(how);
    }));
  }

 private:
  Knobs knobs_;
  uint32_t pages_max_ = 0, list_pages_ = 0;
  std::vector<uint32_t> candidates_, full_tokens_, value_tokens_, newer_, lists_, chosen_;
  std::vector<float> head_scores_, logits_;
  std::vector<uint8_t> reads_;
};

constexpr RowBudgets kEverything = {4096, 65536, 65536};

TEST(AttentionCascade, EverythingReadIsAttention) {
  uint32_t turn = 0;
  for (const uint32_t dim : {64u, 80u, 96u, 128u}) {
    for (const uint32_t group : {1u + turn % 2, 3u, 4u, 5u + turn % 4}) {
      SCOPED_TRACE("dim " + std::to_string(dim) + " group " + std::to_string(group));
      // Several splits, no open tokens, none coded, not in use.
      CascadeBatch batch({KvType::kF16, dim, 1 + turn % 2, group, kCodedTokens}, {330, 48, 20, 0},
                         {320, 48, 0, 0}, std::vector<RowBudgets>(4, kEverything), {}, turn);
      ++turn;
      ASSERT_TRUE(batch.Seal().ok());
      simt::SetSeed(turn);
      const Status status = batch.Run();
      ASSERT_TRUE(status.ok()) << status.message();
      for (uint32_t row = 0; row < 3; ++row) {
        for (uint32_t head = 0; head < batch.shape().kv_heads; ++head) {
          EXPECT_LT(batch.Distance(row, head, batch.Expected(row, head, batch.CodedPagesOf(row))),
                    kTolerance)
              << row << " " << head;
          EXPECT_EQ(batch.Reads(row, head, TokenRead::kFull), batch.coded_tokens()[row]);
        }
      }
      EXPECT_EQ(batch.arrived(), std::vector<uint32_t>(batch.arrived().size()));
      if (HasFailure()) return;
    }
  }
}

// A token within a rounding of a bin's edge, or a page of a rank's, may be taken by one and not by
// the other; that is rare, and it weighs little.
TEST(AttentionCascade, ReadsWhatThePlainLoopsRead) {
  uint32_t turn = 0, items = 0, same = 0;
  for (const uint32_t dim : {64u, 80u, 96u, 128u}) {
    for (uint32_t group = 1; group <= 8; ++group, ++turn) {
      if (dim % 64 != 0 && group % 3 != 0) continue;
      SCOPED_TRACE("dim " + std::to_string(dim) + " group " + std::to_string(group));
      const Knobs knobs{.sink = turn % 3,
                        .recent = turn % 5,
                        .widen = 1 + turn % 2,
                        .least_share = turn % 4 == 0   ? 0.0f
                                       : turn % 4 == 1 ? 0.004f
                                                       : 0.001f};
      const uint32_t small = 2 - turn % 2;
      CascadeBatch batch(
          {KvType::kBF16, dim, 1 + turn % 2, group, kCodedTokens}, {663, 200, 640, 30, 0},
          {640, 192, 640, 0, 0},
          {{10 * small, 24 * small, 50 * small}, {5, 32, 32}, {1, 0, 40}, {4, 4, 4}, {4, 4, 4}},
          knobs, 100 + turn);
      ASSERT_TRUE(batch.Seal().ok());
      simt::SetSeed(turn);
      const Status status = batch.Run();
      ASSERT_TRUE(status.ok()) << status.message();
      for (uint32_t row = 0; row < 4; ++row) {
        for (uint32_t head = 0; head < batch.shape().kv_heads; ++head, ++items) {
          const CascadeBatch::Twin twin = batch.RunTwin(row, head);
          const std::vector<uint32_t> pages = batch.Pages(row, head);
          EXPECT_EQ(pages.size(), twin.pages.size()) << row;
          EXPECT_NEAR(batch.Reads(row, head, TokenRead::kFull), twin.counts.full_tokens, 1) << row;
          EXPECT_NEAR(batch.Reads(row, head, TokenRead::kValue), twin.counts.value_tokens, 1)
              << row;
          const float apart = batch.Distance(row, head, twin.out);
          EXPECT_LT(apart, 0.1f) << row;
          same += pages == twin.pages && apart < kTolerance ? 1 : 0;
        }
      }
      EXPECT_EQ(batch.arrived(), std::vector<uint32_t>(batch.arrived().size()));
      if (HasFailure()) return;
    }
  }
  EXPECT_GT(same, items - items / 20) << items;
}

TEST(AttentionCascade, WhatWeighsLessThanTheShareIsNotRead) {
  uint32_t before = UINT32_MAX;
  for (const float least : {0.0f, 0.002f, 0.01f, 1.0f}) {
    CascadeBatch batch({KvType::kF16, 64, 1, 3, kCodedTokens}, {650}, {640}, {{20, 96, 200}},
                       {.sink = 1, .recent = 2, .widen = 1, .least_share = least}, 61);
    ASSERT_TRUE(batch.Seal().ok());
    ASSERT_TRUE(batch.Run().ok());
    const uint32_t values = batch.Reads(0, 0, TokenRead::kValue);
    EXPECT_LT(values, before);
    before = values;
  }
  EXPECT_EQ(before, 32u);  // the first page and, beside the raw one, the newest
}

// Neither the order of blocks and threads nor the company changes a bit.
TEST(AttentionCascade, SameBitsInAnyOrderAndBatch) {
  const DecodeShape shape{KvType::kF16, 64, 2, 3, kCodedTokens};
  const RowBudgets budgets = {20, 40, 90};
  std::vector<float> first;
  for (const uint64_t order : {1u, 2u, 3u}) {
    CascadeBatch batch(shape, {663, 100}, {640, 64}, {budgets, budgets}, {}, 9);
    ASSERT_TRUE(batch.Seal().ok());
    simt::SetSeed(order);
    ASSERT_TRUE(batch.Run().ok());
    if (order == 1) first = batch.out();
    EXPECT_TRUE(testing::SameBits(batch.out(), first));
  }
  CascadeBatch alone(shape, {663}, {640}, {budgets}, {}, 9);
  ASSERT_TRUE(alone.Seal().ok());
  ASSERT_TRUE(alone.Run().ok());
  EXPECT_TRUE(testing::SameBits(alone.out(), {first.begin(), first.begin() + alone.Width()}));
}

// Numbers that are none change nobody else's row, and end nothing.
TEST(AttentionCascade, LivesThroughNoNumbers) {
  const DecodeShape shape{KvType::kF16, 64, 1, 2, kCodedTokens};
  CascadeBatch batch(shape, {331}, {320}, {{8, 20, 40}}, {}, 3);
  ASSERT_TRUE(batch.Seal().ok());
  batch.SetQueries(NAN);
  const Status status = batch.Run();
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(batch.arrived(), std::vector<uint32_t>(batch.arrived().size()));
}

TEST(AttentionCascade, SaysWhatItCannotDo) {
  const DecodeShape shape{KvType::kF16, 64, 1, 2, kCodedTokens};
  CascadeBatch batch(shape, {40}, {32}, {{8, 20, 40}}, {}, 3);
  DecodeShape int8 = batch.coded_shape();
  int8.type = KvType::kInt8;
  EXPECT_EQ(
      AttendCascade(int8, batch.coded_pages(), batch.CodedStep(), batch.open(), {}, nullptr).code(),
      tinyserve::Code::kUnsupported);
  Cascade long_rows{};
  long_rows.pages_max = 30000;
  const Status status = AttendCascade(batch.coded_shape(), batch.coded_pages(), batch.CodedStep(),
                                      batch.open(), long_rows, nullptr);
  EXPECT_NE(status.message().find("bytes of shared memory"), std::string::npos) << status.message();
}

}  // namespace
}  // namespace tinyserve::cuda
