// Choices that stay in force for some positions, emulated, against the selector `hierarchical` of
// the CPU: which pages every query reads, whatever the rows of a step.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "device/device_choices.h"
#include "device/device_plan.h"
#include "kernels/targets.h"
#include "tests/simt/coded_batch.h"
#include "tests/simt/emulator.h"

namespace tinyserve::cuda {
namespace {

struct Case {
  KvType type;
  uint32_t dim, group, page;
  const char* options;           // of the selector
  uint32_t first = 0, last = 0;  // positions
};

// One sequence of many tokens; what is made of its full pages, and rows at any of its positions.
class Rig {
 public:
  explicit Rig(const Case& c)
      : case_(c),
        shape_{IsCoded(c.type) ? KvType::kF16 : c.type, c.dim, 2, c.group, c.page},
        batch_(shape_, IsCoded(c.type) ? c.type : KvType::kPlanes, {c.last + 1},
               {IsCoded(c.type) ? (c.last + 1) / 64 * 64 : 0}, 3),
        spec_(*ParseSelector(std::string("hierarchical:") + c.options)),
        selector_(*DeviceSelectorOf(spec_, c.type)),
        in_force_(1) {
    const Codec* codec = *FindCodec(c.type == KvType::kInt8     ? "int8"
                                    : c.type == KvType::kInt4   ? "int4"
                                    : c.type == KvType::kK8V4   ? "k8v4"
                                    : c.type == KvType::kPlanes ? "planes"
                                                                : "f16");
    cache_ = *KvCache::Create({{.layers = 1, .kv_heads = 2, .head_dim = c.dim}},
                              {.codec = codec,
                               .page_tokens = c.page,
                               .block_tokens = 64,
                               .memory_bytes = 4 << 20,
                               .sequences_max = 1,
                               .sequence_tokens_max = c.last + 1,
                               .uncommitted_tokens_max = 64},
                              RefKernels());
    const tinyserve_shape of{.struct_size = sizeof of,
                             .layers = 1,
                             .kv_heads = 2,
                             .group = c.group,
                             .head_dim = c.dim,
                             .page_tokens = c.page,
                             .pages_max = (c.last + 1) / c.page + 1,
                             .record_kinds = codec->metadata,
                             .record_channels = c.dim};
    cpu_ = *Selector::Open(spec_, of);
    item_bytes_ = cpu_->summary_bytes();
    head_stride_ = uint64_t{item_bytes_} * batch_.slab_pages();
    summaries_.assign(2 * head_stride_, 0xff);
    states_.assign(2, std::vector<uint64_t>(cpu_->state_bytes() / 8 + 1));
    testing::Random random(11);
    q_.resize((c.last + 1) * batch_.Width());
    for (float& x : q_) x = random.Signed();
    pages_max_ = (c.last + 1) / c.page + 1;
    kept_.assign(ChoicesInForce::kPlaces * 2 * pages_max_, 0xffff);
  }

  // Of all full pages.
  Status Summarise() {
    if (IsCoded(case_.type)) TS_RETURN_IF_ERROR(batch_.Seal());
    for (uint32_t i = 0; i < (case_.last + 1) / case_.page; ++i) full_.push_back(Table()[i]);
    if (IsCoded(case_.type)) full_ = batch_.full();
    return SummariseSubPages(Stored(), Pages(), Layout(), batch_.RecordSlabs(),
                             {selector_.sub_tokens, 0}, Summaries(), {ConstArrayOf(full_)},
                             nullptr);
  }
  // What the selector makes of the same pages, as ref reads them.
  void ExpectSummaries() {
    std::vector<float> k(uint64_t{case_.page} * case_.dim), v(k);
    std::vector<uint8_t> want(item_bytes_);
    for (uint32_t head = 0; head < 2; ++head) {
      for (const uint32_t page : full_) {
        if (page == kNoPage) continue;
        for (uint32_t t = 0; t < case_.page; ++t) ReadKeys(head, page, t, &k[t * case_.dim]);
        const tinyserve_page_in in{
            .struct_size = sizeof in, .layer = 0, .kv_head = head, .k = k.data(), .v = v.data()};
        cpu_->Summarise(in, want.data());
        const uint8_t* got = summaries_.data() + head * head_stride_ + page * item_bytes_;
        ASSERT_TRUE(std::equal(want.begin(), want.end(), got)) << "head " << head;
      }
    }
  }

  // The rows of a step at positions first .. first + rows - 1: what each reads, [row][head].
  std::vector<std::vector<uint32_t>> Step(uint32_t first, uint32_t rows, bool fused) {
    BeginRows(first, rows);
    const uint32_t items = rows * 2;
    std::vector<uint32_t> lists(items * pages_max_, kNoPage), list_tokens(items, kNoPage);
    std::vector<float> head_scores(uint64_t{items} * case_.group * pages_max_, NAN);
    const SelectorBudget& b = spec_.budget;
    const Selection how{
        .kind = selector_.kind,
        .pool = selector_.pool,
        .alpha = 0,
        .sink = b.sink,
        .recent = b.recent,
        .pages_max = pages_max_,
        .budgets = ConstArrayOf(budgets_),
        .newer = IsCoded(case_.type) ? ConstArrayOf(newer_) : Array<const uint32_t>{},
        .head_scores = ArrayOf(head_scores),
        .chosen = {pages_max_, ArrayOf(lists), ArrayOf(list_tokens)},
        .kept = selector_.keeps_choices()
                    ? KeptChoices{ConstArrayOf(choices_),
                                  ConstArrayOf(places_),
                                  {q_.data() + first * batch_.Width(), rows * batch_.Width()},
                                  pages_max_,
                                  ArrayOf(kept_)}
                    : KeptChoices{}};
    const Status status = Attend(first, rows, fused, how);
    EXPECT_TRUE(status.ok()) << status.message();
    std::vector<std::vector<uint32_t>> read;
    for (uint32_t item = 0; item < items; ++item) {
      std::vector<uint32_t> pages;
      for (uint32_t i = 0; i < (list_tokens[item] + case_.page - 1) / case_.page; ++i) {
        const uint32_t page = lists[item * pages_max_ + i];
        pages.push_back(static_cast<uint32_t>(
            std::find(Table(), Table() + batch_.PagesOf(case_.last + 1), page) - Table()));
      }
      read.push_back(std::move(pages));
    }
    return read;
  }
  const std::vector<RowReads>& reads() const { return reads_; }
  const std::vector<float>& out() const { return out_; }

  // The CPU's choice at the next position; `scored`: pages.
  std::vector<uint32_t> Cpu(uint32_t position, uint32_t head, uint32_t* scored) {
    const uint32_t raw = IsCoded(case_.type) ? position / 64 * 64 : position + 1;
    const uint32_t count = (raw + case_.page - 1) / case_.page;
    const uint32_t open = (position + 1 - raw + case_.page - 1) / case_.page;
    std::vector<float> q(QueryAt(position, head),
                         QueryAt(position, head) + case_.group * case_.dim);
    for (float& x : q) x *= DecodeBatch::kScale;
    const ItemStorage storage{.kernels = RefKernels(),
                              .shape = {case_.type, 1, case_.dim, case_.page},
                              .slab = {},
                              .records = {},
                              .layout = {},
                              .group = case_.group,
                              .decode_scratch = nullptr,
                              .partial = nullptr,
                              .score_ns = nullptr};
    tinyserve_select_item item{};
    item.q = q.data();
    item.position = position;
    item.kv_head = head;
    item.summaries = {.base = summaries_.data() + head * head_stride_,
                      .extent_stride = 0,
                      .extent_shift = 31,
                      .item_bytes = item_bytes_};
    item.state = states_[head].data();
    item.engine = &storage;
    std::vector<float> scratch(SelectScratchFloats(case_.group, pages_max_));
    std::vector<uint32_t> chosen(count + 1);
    const Selector::Choice choice =
        cpu_->Choose(item, {Table(), count}, open, case_.page, scratch, chosen.data());
    EXPECT_FALSE(choice.failed);
    *scored = choice.scored;
    chosen.resize(choice.pages);
    return chosen;
  }
  void Forget() {
    in_force_.Forget(0);
    for (std::vector<uint64_t>& state : states_) std::fill(state.begin(), state.end(), 0);
  }

 private:
  // As DevicePlan does.
  void BeginRows(uint32_t first, uint32_t rows) {
    in_force_.BeginStep();
    choices_.assign(rows, {0, 0, 0, 0});
    places_.assign(rows, {kNoPlace, kNoPlace});
    for (auto* of : {&budgets_, &newer_, &tokens_, &open_tokens_}) of->clear();
    reads_.clear();
    for (uint32_t i = 0; i < rows; ++i) {
      const uint32_t position = first + i;
      RowReads reads = ReadsAt(*cache_, &selector_, position);
      if (reads.selects && selector_.keeps_choices()) {
        in_force_.Next(selector_,
                       {.slot = 0,
                        .life = 1,
                        .selector = 1,
                        .position = position,
                        .page_tokens = case_.page,
                        .row = i},
                       &reads, choices_.data(), places_.data());
      }
      reads_.push_back(reads);
      budgets_.push_back(reads.budget);
      newer_.push_back(reads.open);
      const uint32_t raw = IsCoded(case_.type) ? position / 64 * 64 : position + 1;
      tokens_.push_back(raw);
      open_tokens_.push_back(position + 1 - raw);
    }
  }
  Status Attend(uint32_t first, uint32_t rows, bool fused, const Selection& how) {
    const std::vector<uint32_t> table_of(rows, 0);
    std::vector<uint32_t> arrived(rows * 2, 0);
    std::vector<float> partials(PartialFloats(shape_, rows, case_.last + 1 + 2 * kSplitTokens));
    out_.assign(rows * batch_.Width(), NAN);
    DecodeStep step = batch_.step();
    step.rows = rows;
    step.table_of = ConstArrayOf(table_of);
    step.tokens = ConstArrayOf(tokens_);
    step.q = {q_.data() + first * batch_.Width(), rows * batch_.Width()};
    step.out = ArrayOf(out_);
    step.partials = ArrayOf(partials);
    step.arrived = ArrayOf(arrived);
    const DeviceRecords boxes{.slabs = ReadSummaries(),
                              .channels = case_.dim,
                              .box_at = 0,
                              .moments_at = 0,
                              .boxes = case_.page / selector_.sub_tokens,
                              .box_bytes = MetaLayoutOf(kMetaBox, case_.dim).record_bytes};
    if (!IsCoded(case_.type)) {
      return (fused ? AttendFused : AttendInTwo)(shape_, batch_.pages(), boxes, step, how, nullptr);
    }
    std::vector<uint32_t> open_tables(rows * 4, 0);
    for (uint32_t i = 0; i < rows; ++i) {
      for (uint32_t p = 0; p * case_.page < open_tokens_[i]; ++p)
        open_tables[i * 4 + p] = Table()[tokens_[i] / case_.page + p];
    }
    return AttendCodedSparse(Stored(), batch_.coded_pages(), boxes, step,
                             {.type = shape_.type,
                              .pages = batch_.pages(),
                              .table_pages = 4,
                              .tables = ConstArrayOf(open_tables),
                              .tokens = ConstArrayOf(open_tokens_),
                              .tokens_max = 64},
                             how, nullptr);
  }
  // Where pages are ranges, they lie in another order here: ref seals its own.
  void ReadKeys(uint32_t head, uint32_t page, uint32_t slot, float* keys) {
    if (IsCoded(case_.type)) {
      const KeyValue token = batch_.RefRead(batch_.RefSeal(head, page), slot);
      std::copy(token.k.begin(), token.k.end(), keys);
      return;
    }
    const KvShape kv{case_.type, 1, case_.dim, case_.page};
    const KvSlab at = batch_.slab(head);
    std::vector<float> values(case_.dim);
    RefKernels()->read_token(&kv, PageAt(at, page), at.v_offset, nullptr, slot, keys,
                             values.data());
  }
  const uint32_t* Table() const { return batch_.table(0); }
  const float* QueryAt(uint32_t position, uint32_t head) const {
    return q_.data() + position * batch_.Width() + uint64_t{head} * case_.group * case_.dim;
  }
  DecodeShape Stored() const {
    DecodeShape stored = shape_;
    stored.type = case_.type;
    return stored;
  }
  DevicePages Pages() {
    return IsCoded(case_.type) ? DevicePages{batch_.coded_pages().slabs, 0} : batch_.pages();
  }
  MetaLayout Layout() const {
    return IsCoded(case_.type) ? batch_.layout() : MetaLayoutOf(0, case_.dim);
  }
  Slabs<uint8_t> Summaries() { return {ArrayOf(summaries_), head_stride_, 0, 31, item_bytes_}; }
  Slabs<const uint8_t> ReadSummaries() const {
    return {ConstArrayOf(summaries_), head_stride_, 0, 31, item_bytes_};
  }

  Case case_;
  DecodeShape shape_;
  CodedBatch batch_;
  SelectorSpec spec_;
  DeviceSelector selector_;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<Selector> cpu_;
  ChoicesInForce in_force_;
  uint32_t item_bytes_ = 0, pages_max_ = 0;
  uint64_t head_stride_ = 0;
  std::vector<uint8_t> summaries_;
  std::vector<std::vector<uint64_t>> states_;  // [head]
  std::vector<float> q_, out_;                 // of all positions; of a step
  std::vector<uint16_t> kept_;
  std::vector<uint32_t> full_, budgets_, newer_, tokens_, open_tokens_;
  std::vector<RowChoice> choices_;
  std::vector<ChoicePlaces> places_;
  std::vector<RowReads> reads_;
};

// Steps of one row and of several, as generated and as replayed; the state is lost once.
void RunCase(const Case& c) {
  Rig rig(c);
  const Status made = rig.Summarise();
  ASSERT_TRUE(made.ok()) << made.message();
  rig.ExpectSummaries();
  if (::testing::Test::HasFailure()) return;
  const uint32_t steps[] = {1, 1, 1, 3, 1, 2, 1, 7, 1, 1};
  uint32_t turn = 0, chosen_anew = 0, in_force = 0;
  for (uint32_t position = c.first; position < c.last; ++turn) {
    const uint32_t rows = std::min(steps[turn % 10], c.last - position);
    if (turn == 5) rig.Forget();
    simt::SetSeed(turn);
    const auto read = rig.Step(position, rows, turn % 2 == 0);
    for (uint32_t i = 0; i < rows; ++i, ++position) {
      const RowReads reads = rig.reads()[i];
      for (uint32_t head = 0; head < 2; ++head) {
        uint32_t scored = 0;
        const std::vector<uint32_t> want = rig.Cpu(position, head, &scored);
        ASSERT_EQ(read[2 * i + head], want) << "position " << position << " head " << head;
        ASSERT_EQ(reads.budget, want.size()) << "position " << position;
        ASSERT_EQ(reads.scored, scored) << "position " << position;
      }
      ++(reads.scored > 0 ? chosen_anew : in_force);
    }
    for (const float x : rig.out()) ASSERT_FALSE(std::isnan(x));
  }
  EXPECT_GT(chosen_anew, 1u);
  EXPECT_EQ(in_force > 0, std::string(c.options).find("reuse=1,") == std::string::npos);
}

TEST(Choices, AreThoseOfTheCpu) {
  using enum KvType;
  const Case cases[] = {
      {kF16, 64, 3, 16, "ratio=0.3,min_tokens=0,min_context=16,reuse=4,sub=4", 330, 365},
      {kBF16, 80, 2, 8, "ratio=0.4,min_tokens=0,min_context=16,reuse=5,sub=2,pool=sum", 150, 185},
      {kF32, 96, 1, 4, "ratio=0.2,min_tokens=0,min_context=16,reuse=7,sub=4,sink=0,recent=1", 80,
       115},
      {kF16, 128, 8, 32, "ratio=0.5,min_tokens=0,min_context=16,reuse=1,sub=16,recent=1", 300, 310},
      {kF16, 64, 5, 4,
       "ratio=0.3,min_tokens=0,min_context=16,reuse=16,sub=2,pool=softmax,sink=2,recent=3", 100,
       140},
      // A window is full within, so that four pages become candidates at once.
      {kInt8, 64, 3, 16, "ratio=0.3,min_tokens=0,min_context=16,reuse=4,sub=4", 305, 335},
      // Open pages take of the budget what was chosen of it.
      {kK8V4, 80, 1, 16, "ratio=0.25,min_tokens=0,min_context=16,reuse=64,sub=8,recent=1", 316,
       372},
      {kInt4, 128, 2, 16, "ratio=0.6,min_tokens=0,min_context=16,reuse=6,sub=2,sink=0,recent=5",
       310, 335},
      {kPlanes, 96, 4, 16, "ratio=0.4,min_tokens=0,min_context=16,reuse=8,sub=16,pool=sum", 305,
       335}};
  for (const Case& c : cases) {
    SCOPED_TRACE("type " + std::to_string(static_cast<int>(c.type)) + " dim " +
                 std::to_string(c.dim));
    RunCase(c);
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace tinyserve::cuda
