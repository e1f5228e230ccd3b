// Pages coded within ranges: sealed on an emulated device as ref seals them, and read in place.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/cuda/attention_sparse.h"
#include "kernels/cuda/coded_pages.h"
#include "kernels/cuda/seal.h"
#include "tests/simt/decode_testing.h"
#include "tests/simt/emulator.h"

namespace tinyserve::cuda {
namespace {

constexpr float kTolerance = 3e-5f;  // see attention_decode_test.cc; values are up to 1 here too

struct KeyValue {
  std::vector<float> k, v;
  bool operator==(const KeyValue&) const = default;
};

// A batch of open pages whose first tokens, whole pages, are coded as well.
class CodedBatch : public DecodeBatch {
 public:
  CodedBatch(const DecodeShape& shape, KvType type, const std::vector<uint32_t>& lengths,
             const std::vector<uint32_t>& coded, uint64_t seed)
      : DecodeBatch(shape, lengths, seed),
        type_(type),
        at_(CodedPageLayoutOf(type, shape.head_dim)),
        layout_(MetaLayoutOf(kMetaRange, shape.head_dim)),
        coded_tokens_(coded) {
    const uint32_t items = (slab_pages() >> kShift) * shape.kv_heads;
    bytes_.assign(uint64_t{items} * at_.page_bytes << kShift, 0xff);
    records_.assign(uint64_t{items} * layout_.record_bytes << kShift, 0xff);
    open_tables_.assign(rows() * TablePages(), 0);
    for (uint32_t row = 0; row < rows(); ++row) {
      const uint32_t pages = coded[row] / kRangesTokens;
      for (uint32_t i = 0; i < pages; ++i) full_.push_back(table(row)[i]);
      full_.push_back(kNoPage);
      for (uint32_t i = pages; i < PagesOf(lengths[row]); ++i) {
        open_tables_[row * TablePages() + i - pages] = table(row)[i];
      }
      open_tokens_.push_back(lengths[row] - coded[row]);
    }
    partials_.assign(PartialFloats(shape, rows(), TokensMax() + 2 * kSplitTokens), NAN);
  }

  DecodeShape coded_shape() const {
    DecodeShape coded = shape();
    coded.type = type_;
    return coded;
  }
  Status Seal() {
    return SealRanges({.shape = coded_shape(),
                       .open_type = shape().type,
                       .open = pages(),
                       .pages = SlabsOf(ArrayOf(bytes_), at_.page_bytes),
                       .records = SlabsOf(ArrayOf(records_), layout_.record_bytes),
                       .range_at = layout_.spread_at,
                       .from = {ConstArrayOf(full_)},
                       .to = {ConstArrayOf(full_)}},
                      nullptr);
  }
  Status Attend(const ChosenPages* chosen = nullptr) {
    const uint32_t most = *std::max_element(coded_tokens_.begin(), coded_tokens_.end());
    return AttendCoded(coded_shape(), coded_pages(), CodedStep(), open(), chosen, most, nullptr);
  }
  Status AttendSparse(const Selection& selection) {
    const CodedPages coded = coded_pages();
    const DeviceRecords records{coded.records, shape().head_dim, 0, 0, layout_.spread_at};
    return AttendCodedSparse(coded_shape(), coded, records, CodedStep(), open(), selection,
                             nullptr);
  }
  DecodeStep CodedStep() {
    DecodeStep call = step();
    call.tokens = ConstArrayOf(coded_tokens_);
    call.partials = ArrayOf(partials_);
    return call;
  }
  OpenTokens open() const {
    return {.type = shape().type,
            .pages = pages(),
            .table_pages = TablePages(),
            .tables = ConstArrayOf(open_tables_),
            .tokens = ConstArrayOf(open_tokens_),
            .tokens_max = *std::max_element(open_tokens_.begin(), open_tokens_.end())};
  }
  CodedPages coded_pages() const {
    return {SlabsOf(ConstArrayOf(bytes_), at_.page_bytes),
            SlabsOf(ConstArrayOf(records_), layout_.record_bytes), layout_.spread_at};
  }
  // ref's scores of a row's coded pages by the device's records.
  std::vector<float> RefScores(uint32_t row, uint32_t head, ScorePool pool) {
    const uint32_t count = coded_tokens_[row] / kRangesTokens, group = shape().group;
    std::vector<float> q(Query(row, head), Query(row, head) + group * shape().head_dim);
    for (float& x : q) x *= kScale;
    std::vector<float> head_scores(uint64_t{group} * (count + 16)), scores(count);
    const ScoreArgs args{.layout = layout_,
                         .records = {records_.data() + head * HeadStride(layout_.record_bytes),
                                     HeadStride(layout_.record_bytes) * shape().kv_heads, kShift,
                                     layout_.record_bytes, 0},
                         .kind = ScoreKind::kBox,
                         .pool = pool,
                         .alpha = 0,
                         .head_dim = shape().head_dim,
                         .group = group,
                         .q = q.data(),
                         .pages = table(row),
                         .count = count,
                         .head_scores = head_scores.data(),
                         .scores = scores.data()};
    RefKernels()->score_pages(&args);
    return scores;
  }

  // A token as the device's page decodes.
  KeyValue Read(uint32_t head, uint32_t page, uint32_t slot) const {
    const uint8_t* at = bytes_.data() + ItemOf(head, page, at_.page_bytes);
    const uint8_t* range = records_.data() + ItemOf(head, page, layout_.record_bytes);
    RangeScales scales;
    std::memcpy(&scales, range, sizeof scales);
    const uint32_t dim = shape().head_dim;
    KeyValue token{std::vector<float>(dim), std::vector<float>(dim)};
    const auto number = [](uint32_t bits, const uint8_t* row, uint32_t c, float middle,
                           float reach) {
      const float half = HalfRange(bits);
      const uint32_t code = bits == 8 ? row[c] : row[c / 2] >> c % 2 * 4 & 15;
      return std::fma(static_cast<float>(code) - half, reach * (1 / half), middle);
    };
    for (uint32_t c = 0; c < dim; ++c) {
      const uint8_t* codes = range + sizeof scales + c;
      token.k[c] = number(at_.key_bits, at + slot * at_.key_row, c,
                          static_cast<float>(static_cast<int8_t>(codes[0])) * scales.key_middle,
                          static_cast<float>(codes[dim]) * scales.key_reach);
      codes = at + at_.v_middle_at + c / kRangeChannels * kRangesTokens + slot;
      token.v[c] =
          number(at_.value_bits, at + at_.v_at + slot * at_.value_row, c,
                 static_cast<float>(static_cast<int8_t>(codes[0])) * scales.value_middle,
                 static_cast<float>(codes[at_.groups * kRangesTokens]) * scales.value_reach);
    }
    return token;
  }
  // The same as ref codes and decodes it.
  KeyValue RefRead(uint32_t head, uint32_t page, uint32_t slot) const {
    const KvShape open{shape().type, 1, shape().head_dim, kRangesTokens};
    const KvShape coded{type_, 1, shape().head_dim, kRangesTokens};
    uint32_t k_bytes, v_bytes;
    RefKernels()->page_bytes(&coded, &k_bytes, &v_bytes);
    testing::Buffer bytes(k_bytes + v_bytes), record(layout_.record_bytes);
    const SealArgs args{.open = open,
                        .open_slab = slab(head),
                        .open_page = page,
                        .shape = coded,
                        .slab = {bytes.data(), 0, 0, k_bytes + v_bytes, k_bytes},
                        .records = {record.data(), 0, 0, layout_.record_bytes, 0},
                        .layout = layout_,
                        .page = 0};
    RefKernels()->seal_page(&args);
    KeyValue token{std::vector<float>(shape().head_dim), std::vector<float>(shape().head_dim)};
    RefKernels()->read_token(&coded, bytes.data(), k_bytes, record.data() + layout_.spread_at, slot,
                             token.k.data(), token.v.data());
    return token;
  }

  // In double, over the pages of `coded_pages` and the open tokens.
  std::vector<float> Expected(uint32_t row, uint32_t head,
                              const std::vector<uint32_t>& coded_pages) const {
    testing::Tokens t{0, shape().head_dim, shape().group, {}, {}, {}};
    const auto add = [&](const KeyValue& token) {
      t.k.insert(t.k.end(), token.k.begin(), token.k.end());
      t.v.insert(t.v.end(), token.v.begin(), token.v.end());
      ++t.tokens;
    };
    for (const uint32_t i : coded_pages) {
      for (uint32_t slot = 0; slot < kRangesTokens; ++slot) add(RefRead(head, table(row)[i], slot));
    }
    const KvShape open{shape().type, 1, shape().head_dim, kRangesTokens};
    for (uint32_t i = coded_tokens_[row]; i < lengths()[row]; ++i) {
      KeyValue token{std::vector<float>(t.head_dim), std::vector<float>(t.head_dim)};
      const KvSlab at = slab(head);
      RefKernels()->read_token(&open, PageAt(at, table(row)[i / kRangesTokens]), at.v_offset,
                               nullptr, i % kRangesTokens, token.k.data(), token.v.data());
      add(token);
    }
    t.q.assign(Query(row, head), Query(row, head) + shape().group * t.head_dim);
    return testing::Exact(t, kScale, 0, t.tokens);
  }
  std::vector<uint32_t> CodedPagesOf(uint32_t row) const {
    std::vector<uint32_t> all(coded_tokens_[row] / kRangesTokens);
    for (uint32_t i = 0; i < all.size(); ++i) all[i] = i;
    return all;
  }
  const std::vector<uint32_t>& full() const { return full_; }

 private:
  static constexpr uint32_t kShift = 2;

  uint32_t TablePages() const { return PagesOf(TokensMax()) + 1; }
  uint64_t HeadStride(uint32_t item_bytes) const { return uint64_t{item_bytes} << kShift; }
  template <class Byte>
  Slabs<Byte> SlabsOf(Array<Byte> bytes, uint32_t item_bytes) const {
    return {bytes, HeadStride(item_bytes), HeadStride(item_bytes) * shape().kv_heads, kShift,
            item_bytes};
  }
  uint64_t ItemOf(uint32_t head, uint32_t page, uint32_t item_bytes) const {
    return head * HeadStride(item_bytes) +
           (page >> kShift) * HeadStride(item_bytes) * shape().kv_heads +
           uint64_t{page & 3} * item_bytes;
  }

  KvType type_;
  CodedPageLayout at_;
  MetaLayout layout_;
  std::vector<uint32_t> coded_tokens_, open_tokens_, open_tables_, full_;
  std::vector<uint8_t> bytes_, records_;
  std::vector<float> partials_;
};

constexpr KvType kCodedTypes[] = {KvType::kInt8, KvType::kK8V4, KvType::kInt4};
constexpr KvType kOpenTypes[] = {KvType::kF16, KvType::kBF16, KvType::kF32};

TEST(SealRanges, MakesRefsCodes) {
  uint32_t turn = 0;
  for (const KvType type : kCodedTypes) {
    for (const uint32_t dim : {64u, 80u, 96u, 128u}) {
      const DecodeShape shape{kOpenTypes[turn++ % 3], dim, 2, 1, kRangesTokens};
      CodedBatch batch(shape, type, {50}, {48}, turn);
      const Status status = batch.Seal();
      ASSERT_TRUE(status.ok()) << status.message();
      for (const uint32_t page : batch.full()) {
        for (uint32_t head = 0; head < 2 && page != kNoPage; ++head) {
          for (uint32_t slot = 0; slot < kRangesTokens; ++slot) {
            ASSERT_EQ(batch.Read(head, page, slot), batch.RefRead(head, page, slot))
                << "dim " << dim << " head " << head << " slot " << slot;
          }
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
      const DecodeShape shape{kOpenTypes[turn % 3], dim, 1 + turn % 2, group, kRangesTokens};
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
  const DecodeShape shape{KvType::kF16, 64, 1, 3, kRangesTokens};
  CodedBatch batch(shape, KvType::kK8V4, {200}, {192}, 5);
  ASSERT_TRUE(batch.Seal().ok());
  const std::vector<uint32_t> chosen = {0, 3, 4, 11};
  std::vector<uint32_t> list, tokens = {4 * kRangesTokens};
  for (const uint32_t i : chosen) list.push_back(batch.table(0)[i]);
  const ChosenPages pages{4, ArrayOf(list), ArrayOf(tokens)};
  const Status status = batch.Attend(&pages);
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_LT(batch.Distance(0, 0, batch.Expected(0, 0, chosen)), kTolerance);
  EXPECT_GT(batch.Distance(0, 0, batch.Expected(0, 0, {0, 3, 4, 10})), 100 * kTolerance);
}

TEST(AttentionCoded, ChoosesPagesByTheirRanges) {
  for (const ScorePool pool : {ScorePool::kMax, ScorePool::kSoftmax}) {
    const DecodeShape shape{KvType::kF16, pool == ScorePool::kMax ? 64u : 80u, 2, 3, kRangesTokens};
    CodedBatch batch(shape, KvType::kInt8, {350, 30, 170}, {336, 16, 160}, 5);
    ASSERT_TRUE(batch.Seal().ok());
    const uint32_t pages_max = 21, items = 6;
    std::vector<uint32_t> budgets = {8, 8, 3}, lists(items * pages_max, kNoPage), tokens(items);
    std::vector<float> head_scores(uint64_t{items} * shape.group * pages_max, NAN);
    const Status status =
        batch.AttendSparse({.kind = ScoreKind::kBox,
                            .pool = pool,
                            .alpha = 0,
                            .sink = 1,
                            .recent = 0,
                            .pages_max = pages_max,
                            .budgets = ConstArrayOf(budgets),
                            .head_scores = ArrayOf(head_scores),
                            .chosen = {pages_max, ArrayOf(lists), ArrayOf(tokens)}});
    ASSERT_TRUE(status.ok()) << status.message();
    for (uint32_t item = 0; item < items; ++item) {
      const uint32_t row = item / 2, head = item % 2,
                     held = static_cast<uint32_t>(batch.CodedPagesOf(row).size());
      const uint32_t want = std::min(budgets[row], held);
      ASSERT_EQ(tokens[item], want * kRangesTokens);
      std::vector<uint32_t> chosen;
      for (uint32_t i = 0; i < held; ++i) {
        const auto begin = lists.begin() + item * pages_max;
        if (std::find(begin, begin + want, batch.table(row)[i]) != begin + want)
          chosen.push_back(i);
      }
      ASSERT_EQ(chosen.size(), want);
      EXPECT_EQ(chosen[0], 0u);
      const std::vector<float> scores = batch.RefScores(row, head, pool);
      float least = INFINITY, best = -INFINITY, size = 0;
      for (uint32_t i = 1; i < held; ++i) {
        const bool is_chosen = std::find(chosen.begin(), chosen.end(), i) != chosen.end();
        (is_chosen ? least : best) =
            is_chosen ? std::min(least, scores[i]) : std::max(best, scores[i]);
        size = std::max(size, std::fabs(scores[i]));
      }
      EXPECT_GE(least, best - 1e-5f * size) << item;
      EXPECT_LT(batch.Distance(row, head, batch.Expected(row, head, chosen)), kTolerance) << item;
    }
  }
}

}  // namespace
}  // namespace tinyserve::cuda
