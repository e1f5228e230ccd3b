// Coded pages: sealed on an emulated device as ref seals them, and read in place.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/simt/coded_batch.h"
#include "tests/simt/emulator.h"

namespace tinyserve::cuda {
namespace {

constexpr float kTolerance = 3e-5f;  // see attention_decode_test.cc; values are up to 1 here too

// A token as the device's page of ranges decodes.
KeyValue Read(const CodedBatch& batch, KvType type, uint32_t head, uint32_t page, uint32_t slot) {
  const uint32_t dim = batch.shape().head_dim;
  const CodedPageLayout layout = CodedPageLayoutOf(type, dim);
  const uint8_t *at = batch.Page(head, page), *range = batch.Record(head, page);
  RangeScales scales;
  std::memcpy(&scales, range, sizeof scales);
  KeyValue token{std::vector<float>(dim), std::vector<float>(dim)};
  const auto number = [](uint32_t bits, const uint8_t* row, uint32_t c, float middle, float reach) {
    const float half = HalfRange(bits);
    const uint32_t code = bits == 8 ? row[c] : row[c / 2] >> c % 2 * 4 & 15;
    return std::fma(static_cast<float>(code) - half, reach * (1 / half), middle);
  };
  for (uint32_t c = 0; c < dim; ++c) {
    const uint8_t* codes = range + sizeof scales + c;
    token.k[c] = number(layout.key_bits, at + slot * layout.key_row, c,
                        static_cast<float>(static_cast<int8_t>(codes[0])) * scales.key_middle,
                        static_cast<float>(codes[dim]) * scales.key_reach);
    codes = at + layout.v_middle_at + c / kRangeChannels * kRangesTokens + slot;
    token.v[c] =
        number(layout.value_bits, at + layout.v_at + slot * layout.value_row, c,
               static_cast<float>(static_cast<int8_t>(codes[0])) * scales.value_middle,
               static_cast<float>(codes[layout.groups * kRangesTokens]) * scales.value_reach);
  }
  return token;
}

constexpr KvType kRanges[] = {KvType::kInt8, KvType::kK8V4, KvType::kInt4};
constexpr KvType kCodedTypes[] = {KvType::kInt8, KvType::kK8V4, KvType::kInt4, KvType::kPlanes};
constexpr KvType kOpenTypes[] = {KvType::kF16, KvType::kBF16, KvType::kF32};

TEST(SealRanges, MakesRefsCodes) {
  uint32_t turn = 0;
  for (const KvType type : kRanges) {
    for (const uint32_t dim : {64u, 80u, 96u, 128u}) {
      const DecodeShape shape{kOpenTypes[turn++ % 3], dim, 2, 1, kCodedTokens};
      CodedBatch batch(shape, type, {50}, {48}, turn);
      const Status status = batch.Seal();
      ASSERT_TRUE(status.ok()) << status.message();
      for (const uint32_t page : batch.full()) {
        for (uint32_t head = 0; head < 2 && page != kNoPage; ++head) {
          for (uint32_t slot = 0; slot < kCodedTokens; ++slot) {
            ASSERT_EQ(Read(batch, type, head, page, slot),
                      batch.RefRead(batch.RefSeal(head, page), slot))
                << "dim " << dim << " head " << head << " slot " << slot;
          }
        }
      }
    }
  }
}

// Pages and spreads byte for byte, padding too: of any numbers, of zeros, of what is no number.
TEST(SealPlanes, MakesRefsBytes) {
  uint32_t turn = 0;
  for (const uint32_t dim : {64u, 80u, 96u, 128u}) {
    for (const KvType open : kOpenTypes) {
      CodedBatch batch({open, dim, 2, 1, kCodedTokens}, KvType::kPlanes, {82}, {80}, turn);
      const uint32_t element = open == KvType::kF32 ? 4 : 2;
      batch.FillOpen(0, batch.full()[1], 0, 16 * dim * element, 0);
      batch.FillOpen(1, batch.full()[2], 3 * dim * element, 5 * element, 0xff);
      simt::SetSeed(++turn);
      const Status status = batch.Seal();
      ASSERT_TRUE(status.ok()) << status.message();
      for (const uint32_t page : batch.full()) {
        for (uint32_t head = 0; head < 2 && page != kNoPage; ++head) {
          const CodedBatch::RefPage want = batch.RefSeal(head, page);
          ASSERT_EQ(std::memcmp(batch.Page(head, page), want.bytes.data(), batch.page_bytes()), 0)
              << "dim " << dim << " head " << head << " page " << page;
          ASSERT_EQ(std::memcmp(batch.Record(head, page), want.record.data(),
                                batch.layout().record_bytes),
                    0)
              << "dim " << dim << " head " << head << " page " << page;
        }
      }
    }
  }
}

TEST(AttentionCoded, ReadsCodesInPlace) {
  uint32_t turn = 0;
  for (const KvType type : kCodedTypes) {
    for (const uint32_t dim : {64u, 80u, 96u, 128u}) {
      const uint32_t group = 1 + turn * 3 % 8;
      const DecodeShape shape{kOpenTypes[turn % 3], dim, 1 + turn % 2, group, kCodedTokens};
      ++turn;
      SCOPED_TRACE("type " + std::to_string(static_cast<int>(type)) + " dim " +
                   std::to_string(dim) + " group " + std::to_string(group));
      // Several splits, none coded, an odd number of pages, nothing open, not in use.
      const std::vector<uint32_t> lengths =
          turn % 2 == 0 ? std::vector<uint32_t>{330, 20} : std::vector<uint32_t>{60, 64, 0};
      const std::vector<uint32_t> coded =
          turn % 2 == 0 ? std::vector<uint32_t>{320, 0} : std::vector<uint32_t>{48, 64, 0};
      CodedBatch batch(shape, type, lengths, coded, turn);
      ASSERT_TRUE(batch.Seal().ok());
      simt::SetSeed(turn);
      const Status status = batch.Attend();
      ASSERT_TRUE(status.ok()) << status.message();
      for (uint32_t row = 0; row < batch.rows(); ++row) {
        for (uint32_t head = 0; head < shape.kv_heads && lengths[row] > 0; ++head) {
          EXPECT_LT(batch.Distance(row, head, batch.Expected(row, head, batch.CodedPagesOf(row))),
                    kTolerance)
              << row << " " << head;
        }
      }
      EXPECT_EQ(batch.arrived(), std::vector<uint32_t>(batch.arrived().size()));
      if (HasFailure()) return;
    }
  }
}

TEST(AttentionCoded, ReadsChosenPages) {
  const DecodeShape shape{KvType::kF16, 64, 1, 3, kCodedTokens};
  CodedBatch batch(shape, KvType::kK8V4, {200}, {192}, 5);
  ASSERT_TRUE(batch.Seal().ok());
  const std::vector<uint32_t> chosen = {0, 3, 4, 11};
  std::vector<uint32_t> list, tokens = {4 * kCodedTokens};
  for (const uint32_t i : chosen) list.push_back(batch.table(0)[i]);
  const ChosenPages pages{4, ArrayOf(list), ArrayOf(tokens)};
  const Status status = batch.Attend(&pages);
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_LT(batch.Distance(0, 0, batch.Expected(0, 0, chosen)), kTolerance);
  EXPECT_GT(batch.Distance(0, 0, batch.Expected(0, 0, {0, 3, 4, 10})), 100 * kTolerance);
}

// Byte for byte, of the keys as they are decoded, and what decodes them is left as it was.
TEST(Summarise, MakesRefsRecordsOfCodedPages) {
  uint32_t turn = 0;
  for (const KvType type : kCodedTypes) {
    for (const uint32_t dim : {64u, 80u, 96u, 128u}) {
      const uint32_t kinds = turn % 3 == 0   ? kMetaBox | kMetaMoments
                             : turn % 3 == 1 ? kMetaMoments
                                             : kMetaBox;
      CodedBatch batch({kOpenTypes[turn % 3], dim, 2, 1, kCodedTokens}, type, {50}, {48}, turn,
                       kinds);
      batch.FillOpen(0, batch.full()[1], 0, 16 * dim * 2, 0);  // zeros
      simt::SetSeed(++turn);
      ASSERT_TRUE(batch.Seal().ok());
      const Status status = batch.Summarise();
      ASSERT_TRUE(status.ok()) << status.message();
      for (const uint32_t page : batch.full()) {
        for (uint32_t head = 0; head < 2 && page != kNoPage; ++head) {
          const CodedBatch::RefPage want = batch.RefSeal(head, page);
          ASSERT_EQ(std::memcmp(batch.Record(head, page), want.record.data(),
                                batch.layout().record_bytes),
                    0)
              << "type " << static_cast<int>(type) << " dim " << dim << " page " << page;
        }
      }
    }
  }
}

struct ChoiceCase {
  KvType type;
  uint32_t dim, group;
  ScoreKind kind;
  ScorePool pool;
};

// The chosen pages are the best by ref's scores of the device's records, but for rounding, and
// these are what is read.
void ExpectBestChosen(const ChoiceCase& c) {
  const DecodeShape shape{KvType::kF16, c.dim, 2, c.group, kCodedTokens};
  uint32_t kept = c.kind == ScoreKind::kMoments ? kMetaMoments : kMetaBox;
  if (kept == kMetaBox && IsRanged(c.type)) kept = 0;
  CodedBatch batch(shape, c.type, {350, 30, 170}, {336, 16, 160}, 5, kept);
  ASSERT_TRUE(batch.Seal().ok());
  if (kept != 0) {
    ASSERT_TRUE(batch.Summarise().ok());
  }
  const uint32_t pages_max = 21, items = 6;
  std::vector<uint32_t> budgets = {8, 8, 3}, lists(items * pages_max, kNoPage), tokens(items);
  std::vector<float> head_scores(uint64_t{items} * shape.group * pages_max, NAN);
  const Selection how{.kind = c.kind,
                      .pool = c.pool,
                      .alpha = 1.5f,
                      .sink = 1,
                      .recent = 0,
                      .pages_max = pages_max,
                      .budgets = ConstArrayOf(budgets),
                      .head_scores = ArrayOf(head_scores),
                      .chosen = {pages_max, ArrayOf(lists), ArrayOf(tokens)}};
  const Status status = batch.AttendSparse(how);
  ASSERT_TRUE(status.ok()) << status.message();
  for (uint32_t item = 0; item < items; ++item) {
    const uint32_t row = item / 2, head = item % 2,
                   held = static_cast<uint32_t>(batch.CodedPagesOf(row).size());
    const uint32_t want = std::min(budgets[row], held);
    ASSERT_EQ(tokens[item], want * kCodedTokens);
    std::vector<uint32_t> chosen;
    for (uint32_t i = 0; i < held; ++i) {
      const auto begin = lists.begin() + item * pages_max;
      if (std::find(begin, begin + want, batch.table(row)[i]) != begin + want) chosen.push_back(i);
    }
    ASSERT_EQ(chosen.size(), want);
    EXPECT_EQ(chosen[0], 0u);
    const std::vector<float> scores = batch.RefScores(row, head, how);
    float least = INFINITY, best = -INFINITY, size = 0;
    for (uint32_t i = 0; i < scores.size(); ++i) {
      const bool is_chosen = std::find(chosen.begin(), chosen.end(), i + how.sink) != chosen.end();
      (is_chosen ? least : best) =
          is_chosen ? std::min(least, scores[i]) : std::max(best, scores[i]);
      size = std::max(size, std::fabs(scores[i]));
    }
    EXPECT_GE(least, best - 1e-5f * size) << item;
    EXPECT_LT(batch.Distance(row, head, batch.Expected(row, head, chosen)), kTolerance) << item;
  }
}

TEST(AttentionCoded, ChoosesPagesByTheirRangesAndRecords) {
  using enum ScoreKind;
  using enum ScorePool;
  using enum KvType;
  for (const ChoiceCase& c : {ChoiceCase{kInt8, 64, 3, kBox, kMax},
                              {kK8V4, 80, 3, kBox, kSoftmax},
                              {kInt4, 128, 1, kBox, kSum},
                              {kPlanes, 64, 8, kBox, kSoftmax},
                              {kPlanes, 96, 2, kBox, kMax},
                              {kInt8, 80, 2, kMoments, kSoftmax},
                              {kK8V4, 96, 1, kMoments, kSum},
                              {kInt4, 64, 5, kMoments, kMax},
                              {kPlanes, 128, 3, kMoments, kSoftmax},
                              {kPlanes, 80, 4, kMoments, kMax}}) {
    SCOPED_TRACE("type " + std::to_string(static_cast<int>(c.type)) + " dim " +
                 std::to_string(c.dim) + " kind " + std::to_string(static_cast<int>(c.kind)));
    ExpectBestChosen(c);
    if (::testing::Test::HasFailure()) return;
  }
}

}  // namespace
}  // namespace tinyserve::cuda
