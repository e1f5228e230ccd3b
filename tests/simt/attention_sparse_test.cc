// Page records, selection and sparse decode attention, emulated, against ref and TopPages.
#include "kernels/cuda/attention_sparse.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/cuda/seal.h"
#include "select/top_pages.h"
#include "tests/simt/decode_testing.h"
#include "tests/simt/emulator.h"

namespace tinyserve::cuda {
namespace {

constexpr float kTolerance = 2e-5f;  // of outputs; see attention_decode_test.cc
// Of scores relative to their spread: sums of 128 products in another order, and exponentials.
constexpr float kScoreTolerance = 1e-5f;

// A batch with records of its full pages, and room for what a selection writes.
class SparseBatch : public DecodeBatch {
 public:
  SparseBatch(const DecodeShape& shape, const std::vector<uint32_t>& lengths, uint32_t kinds,
              uint64_t seed)
      : DecodeBatch(shape, lengths, seed), layout_(MetaLayoutOf(kinds, shape.head_dim)) {
    head_stride_ = uint64_t{layout_.record_bytes} << kShift;
    records_.assign(head_stride_ * shape.kv_heads * (slab_pages() >> kShift), 0xff);
    for (uint32_t row = 0; row < rows(); ++row) {
      pages_max_ = std::max(pages_max_, PagesOf(lengths[row]));
      for (uint32_t i = 0; i < lengths[row] / shape.page_tokens; ++i) {
        full_.push_back(table(row)[i]);
      }
      full_.push_back(kNoPage);
    }
  }

  Status Summarise() {
    return cuda::Summarise(
        shape(), pages(), layout_,
        {ArrayOf(records_), head_stride_, ExtentStride(), kShift, layout_.record_bytes},
        {ConstArrayOf(full_)}, nullptr);
  }
  DeviceRecords records() const {
    return {{ConstArrayOf(records_), head_stride_, ExtentStride(), kShift, layout_.record_bytes},
            layout_.channels,
            layout_.box_at,
            layout_.moments_at};
  }
  KvSlab RecordSlab(uint32_t head) const {
    return {.base = const_cast<uint8_t*>(records_.data()) + head * head_stride_,
            .extent_stride = ExtentStride(),
            .extent_shift = kShift,
            .page_bytes = layout_.record_bytes,
            .v_offset = 0};
  }
  const MetaLayout& layout() const { return layout_; }
  const std::vector<uint32_t>& full() const { return full_; }

  Selection Select(const Selection& how, const std::vector<uint32_t>& budgets) {
    budgets_ = budgets;
    const uint32_t items = rows() * shape().kv_heads;
    list_pages_ = pages_max_;
    lists_.assign(uint64_t{items} * list_pages_, kNoPage);
    tokens_.assign(items, kNoPage);
    head_scores_.assign(uint64_t{items} * shape().group * pages_max_, NAN);
    Selection s = how;
    s.pages_max = pages_max_;
    s.budgets = ConstArrayOf(budgets_);
    s.head_scores = ArrayOf(head_scores_);
    s.chosen = {list_pages_, ArrayOf(lists_), ArrayOf(tokens_)};
    return s;
  }
  // What was chosen, as indices into the row's table, as far as its tokens go.
  std::vector<uint32_t> Chosen(uint32_t row, uint32_t head) const {
    const uint64_t item = uint64_t{row} * shape().kv_heads + head;
    std::vector<uint32_t> chosen;
    for (uint32_t i = 0; i < PagesOf(tokens_[item]); ++i) {
      const uint32_t* begin = table(row);
      const uint32_t* end = begin + PagesOf(lengths()[row]);
      const uint32_t page = lists_[item * list_pages_ + i];
      chosen.push_back(static_cast<uint32_t>(std::find(begin, end, page) - begin));
    }
    return chosen;
  }
  uint32_t ChosenTokens(uint32_t row, uint32_t head) const {
    return tokens_[uint64_t{row} * shape().kv_heads + head];
  }

 private:
  static constexpr uint32_t kShift = 2;
  uint64_t ExtentStride() const { return head_stride_ * shape().kv_heads; }

  MetaLayout layout_;
  uint64_t head_stride_ = 0;
  uint32_t pages_max_ = 0, list_pages_ = 0;
  std::vector<uint8_t> records_;
  std::vector<uint32_t> full_, budgets_, lists_, tokens_;
  std::vector<float> head_scores_;
};

// ref's scores of the candidates of a row.
std::vector<float> RefScores(const SparseBatch& batch, const Selection& how, uint32_t row,
                             uint32_t head) {
  const DecodeShape& shape = batch.shape();
  std::vector<uint32_t> pages;
  const uint32_t held = batch.PagesOf(batch.lengths()[row]);
  for (uint32_t i = how.sink; i + how.recent < held; ++i) pages.push_back(batch.table(row)[i]);
  std::vector<float> q(batch.Query(row, head),
                       batch.Query(row, head) + shape.group * shape.head_dim);
  // The device's are in units of log2, which matters to none of the pools but by the factor.
  for (float& x : q) x *= DecodeBatch::kScale;
  std::vector<float> head_scores((pages.size() + 15) / 16 * 16 * shape.group), scores(pages.size());
  const ScoreArgs args{.layout = batch.layout(),
                       .records = batch.RecordSlab(head),
                       .kind = how.kind,
                       .pool = how.pool,
                       .alpha = how.alpha,
                       .head_dim = shape.head_dim,
                       .group = shape.group,
                       .q = q.data(),
                       .pages = pages.data(),
                       .count = static_cast<uint32_t>(pages.size()),
                       .head_scores = head_scores.data(),
                       .scores = scores.data()};
  RefKernels()->score_pages(&args);
  return scores;
}

// The chosen pages are those that ref's scores choose, but for some within rounding of the last.
void ExpectChoice(const SparseBatch& batch, const Selection& how, uint32_t budget, uint32_t row,
                  uint32_t head) {
  const uint32_t held = batch.PagesOf(batch.lengths()[row]), forced = how.sink + how.recent;
  const std::vector<uint32_t> chosen = batch.Chosen(row, head);
  const uint32_t want = std::min(std::max(budget, forced), held);
  ASSERT_EQ(chosen.size(), want);
  ASSERT_TRUE(std::is_sorted(chosen.begin(), chosen.end()));
  ASSERT_EQ(std::adjacent_find(chosen.begin(), chosen.end()), chosen.end());
  ASSERT_LT(chosen.back(), held);
  EXPECT_EQ(batch.ChosenTokens(row, head),
            batch.lengths()[row] - (held - want) * batch.shape().page_tokens);
  if (want == held) return;
  for (uint32_t i = 0; i < how.sink; ++i) EXPECT_EQ(chosen[i], i);
  for (uint32_t i = 0; i < how.recent; ++i) EXPECT_EQ(chosen[want - 1 - i], held - 1 - i);
  if (want == forced) return;
  const std::vector<float> scores = RefScores(batch, how, row, head);
  std::vector<uint32_t> best(want - forced);
  TopPages(scores, static_cast<uint32_t>(best.size()), best.data());
  float threshold = INFINITY, spread = 0;
  for (const uint32_t i : best) threshold = std::min(threshold, scores[i]);
  for (const float score : scores) spread = std::max(spread, std::fabs(score));
  uint32_t different = 0;
  for (uint32_t i = 0; i < scores.size(); ++i) {
    const bool is_best = std::find(best.begin(), best.end(), i) != best.end();
    const bool is_chosen = std::find(chosen.begin(), chosen.end(), i + how.sink) != chosen.end();
    if (is_best == is_chosen) continue;
    ++different;
    EXPECT_LE(std::fabs(scores[i] - threshold), kScoreTolerance * spread) << "page " << i;
  }
  EXPECT_LE(different, 4u);
}

struct Case {
  DecodeShape shape;
  std::vector<uint32_t> lengths, budgets;
  ScoreKind kind;
  ScorePool pool;
  uint32_t sink, recent;
};

using Form = Status (*)(const DecodeShape&, const DevicePages&, const DeviceRecords&,
                        const DecodeStep&, const Selection&, Stream);

void RunCase(const Case& c, uint64_t seed) {
  const uint32_t kinds = kMetaBox | kMetaMoments;
  SparseBatch batch(c.shape, c.lengths, kinds, seed);
  Status status = batch.Summarise();
  ASSERT_TRUE(status.ok()) << status.message();
  const Selection how{
      .kind = c.kind, .pool = c.pool, .alpha = 1.5f, .sink = c.sink, .recent = c.recent};
  std::vector<float> fused;
  for (const Form form : {&AttendFused, &AttendInTwo}) {
    simt::SetSeed(seed + 5);
    status = form(c.shape, batch.pages(), batch.records(), batch.step(),
                  batch.Select(how, c.budgets), nullptr);
    ASSERT_TRUE(status.ok()) << status.message();
    for (uint32_t row = 0; row < batch.rows(); ++row) {
      for (uint32_t head = 0; head < c.shape.kv_heads && c.lengths[row] > 0; ++head) {
        ExpectChoice(batch, how, c.budgets[row], row, head);
        const std::vector<float> want = batch.Reference(row, head, batch.Chosen(row, head));
        EXPECT_LT(batch.Distance(row, head, want), kTolerance) << row << " " << head;
      }
    }
    if (::testing::Test::HasFailure()) return;
    // Both forms give the same, bit for bit.
    std::vector<float> used;
    for (const float x : batch.out()) used.push_back(std::isnan(x) ? 12345.0f : x);
    if (form == &AttendFused) fused = used;
    EXPECT_EQ(used, fused);
  }
}

TEST(AttentionSparse, ChoosesAndAttendsLikeRef) {
  const KvType types[] = {KvType::kF16, KvType::kBF16, KvType::kF32};
  const uint32_t dims[] = {64, 80, 96, 128}, pages[] = {16, 4, 8, 64, 32};
  const ScorePool pools[] = {ScorePool::kSoftmax, ScorePool::kMax, ScorePool::kSum};
  uint32_t turn = 0;
  for (const uint32_t dim : dims) {
    for (uint32_t group = 1; group <= 8; group += 1 + turn % 2, ++turn) {
      const uint32_t page = pages[turn % 5];
      Case c{.shape = {types[turn % 3], dim, 1 + turn % 2, group, page},
             .lengths = {page * 20 + turn % page + 1, page * 3, 0, page * 9 + 1},
             .budgets = {8, 1, 5, 5},
             .kind = turn % 2 == 0 ? ScoreKind::kBox : ScoreKind::kMoments,
             .pool = pools[turn % 3],
             .sink = turn % 3,
             .recent = 1 + turn % 2};
      // A long page is many tokens to emulate.
      if (page >= 32) c.lengths = {page * 7 + 3, page};
      SCOPED_TRACE("turn " + std::to_string(turn));
      RunCase(c, turn);
      if (HasFailure()) return;
    }
  }
}

// Several splits, and more candidates than a block scores at once.
TEST(AttentionSparse, LongContexts) {
  RunCase({.shape = {KvType::kF16, 64, 1, 3, 4},
           .lengths = {4 * 300 + 2},
           .budgets = {150},
           .kind = ScoreKind::kBox,
           .pool = ScorePool::kSoftmax,
           .sink = 1,
           .recent = 2},
          3);
}

TEST(AttentionSparse, EqualScoresChooseTheLowestPositions) {
  const DecodeShape shape{KvType::kF16, 64, 1, 2, 4};
  SparseBatch batch(shape, {4 * 170}, kMetaBox, 2);
  batch.SetQueries(0);
  ASSERT_TRUE(batch.Summarise().ok());
  const Selection how{
      .kind = ScoreKind::kBox, .pool = ScorePool::kSoftmax, .alpha = 0, .sink = 1, .recent = 2};
  std::vector<uint32_t> want(50);
  for (uint32_t i = 0; i < 50; ++i) want[i] = i < 48 ? i : 120 + i;
  for (const Form form : {&AttendFused, &AttendInTwo}) {
    const Status status =
        form(shape, batch.pages(), batch.records(), batch.step(), batch.Select(how, {50}), nullptr);
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(batch.Chosen(0, 0), want);
  }
}

TEST(AttentionSparse, AllPagesChosenIsDense) {
  const DecodeShape shape{KvType::kF16, 64, 2, 3, 16};
  SparseBatch batch(shape, {300, 70}, kMetaBox, 9);
  ASSERT_TRUE(batch.Summarise().ok());
  ASSERT_TRUE(AttendDense(shape, batch.pages(), batch.step(), 304, nullptr).ok());
  const std::vector<float> dense = batch.out();
  const Selection how{
      .kind = ScoreKind::kBox, .pool = ScorePool::kMax, .alpha = 0, .sink = 0, .recent = 1};
  for (const Form form : {&AttendFused, &AttendInTwo}) {
    const Status status = form(shape, batch.pages(), batch.records(), batch.step(),
                               batch.Select(how, {19, 100}), nullptr);
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(batch.out(), dense);
  }
}

TEST(AttentionSparse, RefusesWhatItCannotDo) {
  const DecodeShape shape{KvType::kF16, 64, 1, 1, 4};
  Selection how{.kind = ScoreKind::kBox, .pool = ScorePool::kMax, .recent = 1, .pages_max = 20000};
  how.chosen.list_pages = 20000;
  const Status status = AttendFused(shape, {}, {}, {}, how, nullptr);
  EXPECT_EQ(status.code(), Code::kUnsupported);
  EXPECT_NE(status.message().find("in two launches"), std::string::npos) << status.message();
  how.page_scores.count = 1;
  const Status given = AttendFused(shape, {}, {}, {}, how, nullptr);
  EXPECT_NE(given.message().find("two launches"), std::string::npos) << given.message();
  how.recent = 0;
  EXPECT_EQ(AttendInTwo(shape, {}, {}, {}, how, nullptr).code(), Code::kUnsupported);
}

TEST(Summarise, MakesRefsRecords) {
  const KvType types[] = {KvType::kF16, KvType::kBF16, KvType::kF32};
  uint32_t turn = 0;
  for (const uint32_t dim : {64u, 80u, 96u, 128u}) {
    for (const uint32_t page : {4u, 8u, 16u, 32u, 64u}) {
      const DecodeShape shape{types[turn++ % 3], dim, 2, 1, page};
      SparseBatch batch(shape, {page * 2 + 1},
                        turn % 4 == 0 ? kMetaMoments : kMetaBox | kMetaMoments, turn);
      const Status status = batch.Summarise();
      ASSERT_TRUE(status.ok()) << status.message();
      const KvShape kv{shape.type, 1, dim, page};
      for (const uint32_t index : batch.full()) {
        for (uint32_t head = 0; head < 2 && index != kNoPage; ++head) {
          std::vector<uint8_t> want(batch.layout().record_bytes, 0xff);
          KvSlab slab = batch.RecordSlab(head);
          const std::vector<uint8_t> got(PageAt(slab, index), PageAt(slab, index) + want.size());
          // ref writes one record of its own.
          slab = {.base = want.data(),
                  .extent_stride = 0,
                  .extent_shift = 0,
                  .page_bytes = batch.layout().record_bytes,
                  .v_offset = 0};
          const SummariseArgs args{.shape = kv,
                                   .slab = batch.slab(head),
                                   .records = slab,
                                   .layout = batch.layout(),
                                   .page = index};
          RefKernels()->summarise_page(&args);
          // Padding after the last kind is left alone here.
          const MetaLayout& at = batch.layout();
          const size_t used = ((at.kinds & kMetaBox) != 0 ? 4 : 0) * at.channels +
                              ((at.kinds & kMetaMoments) != 0 ? 4 : 0) * at.channels;
          EXPECT_TRUE(std::equal(want.begin(), want.begin() + used, got.begin()))
              << "dim " << dim << " page " << page;
        }
      }
    }
  }
}

}  // namespace
}  // namespace tinyserve::cuda
