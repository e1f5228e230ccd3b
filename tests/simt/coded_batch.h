// For tests: batches of sequences whose first pages are coded on an emulated device.
#ifndef TINYSERVE_TESTS_SIMT_CODED_BATCH_H_
#define TINYSERVE_TESTS_SIMT_CODED_BATCH_H_

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cuda/attention_sparse.h"
#include "kernels/cuda/coded_pages.h"
#include "kernels/cuda/seal.h"
#include "tests/simt/decode_testing.h"

namespace tinyserve::cuda {

struct KeyValue {
  std::vector<float> k, v;
  bool operator==(const KeyValue&) const = default;
};

// A batch of open pages whose first tokens, whole pages, are coded as well; `kinds` of record are
// kept beside what these are decoded with.
class CodedBatch : public DecodeBatch {
 public:
  CodedBatch(const DecodeShape& shape, KvType type, const std::vector<uint32_t>& lengths,
             const std::vector<uint32_t>& coded, uint64_t seed, uint32_t kinds = 0)
      : DecodeBatch(shape, lengths, seed),
        type_(type),
        page_bytes_(CodedPageSizeOf(type, shape.head_dim).page_bytes),
        layout_(MetaLayoutOf((IsRanged(type) ? kMetaRange : kMetaSpread) | kinds, shape.head_dim)),
        coded_tokens_(coded) {
    const uint32_t items = (slab_pages() >> kShift) * shape.kv_heads;
    bytes_.assign(uint64_t{items} * page_bytes_ << kShift, 0xff);
    records_.assign(uint64_t{items} * layout_.record_bytes << kShift, 0xff);
    open_tables_.assign(rows() * TablePages(), 0);
    for (uint32_t row = 0; row < rows(); ++row) {
      const uint32_t pages = coded[row] / kCodedTokens;
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
    const SealCodedStep step{.shape = coded_shape(),
                             .open_type = shape().type,
                             .open = pages(),
                             .pages = SlabsOf(ArrayOf(bytes_), page_bytes_),
                             .records = SlabsOf(ArrayOf(records_), layout_.record_bytes),
                             .spread_at = layout_.spread_at,
                             .from = {ConstArrayOf(full_)},
                             .to = {ConstArrayOf(full_)}};
    return (IsRanged(type_) ? SealRanges : SealPlanes)(step, nullptr);
  }
  Status Summarise() {
    return cuda::Summarise(coded_shape(), {coded_pages().slabs, 0}, layout_, RecordSlabs(),
                           {ConstArrayOf(full_)}, nullptr);
  }
  Slabs<uint8_t> RecordSlabs() { return SlabsOf(ArrayOf(records_), layout_.record_bytes); }
  Status Attend(const ChosenPages* chosen = nullptr) {
    const uint32_t most = *std::max_element(coded_tokens_.begin(), coded_tokens_.end());
    return AttendCoded(coded_shape(), coded_pages(), CodedStep(), open(), chosen, most, nullptr);
  }
  Status AttendSparse(const Selection& selection) {
    const CodedPages coded = coded_pages();
    const bool by_range = IsRanged(type_) && selection.kind == ScoreKind::kBox;
    const DeviceRecords records{coded.records, layout_.channels, layout_.box_at, layout_.moments_at,
                                by_range ? layout_.spread_at : kNoRange};
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
    return {SlabsOf(ConstArrayOf(bytes_), page_bytes_),
            SlabsOf(ConstArrayOf(records_), layout_.record_bytes), layout_.spread_at};
  }
  // ref's scores of a row's coded pages, but the sinks, by the device's records.
  std::vector<float> RefScores(uint32_t row, uint32_t head, const Selection& how) {
    const uint32_t held = coded_tokens_[row] / kCodedTokens, group = shape().group;
    const uint32_t count = held - std::min(held, how.sink);
    std::vector<float> q(Query(row, head), Query(row, head) + group * shape().head_dim);
    for (float& x : q) x *= kScale;
    std::vector<float> head_scores(uint64_t{group} * (count + 16)), scores(count);
    const ScoreArgs args{.layout = layout_,
                         .records = RecordSlab(head),
                         .kind = how.kind,
                         .pool = how.pool,
                         .alpha = how.alpha,
                         .head_dim = shape().head_dim,
                         .group = group,
                         .q = q.data(),
                         .pages = table(row) + how.sink,
                         .count = count,
                         .head_scores = head_scores.data(),
                         .scores = scores.data()};
    RefKernels()->score_pages(&args);
    return scores;
  }

  // As they lie on the device.
  const uint8_t* Page(uint32_t head, uint32_t page) const {
    return bytes_.data() + ItemOf(head, page, page_bytes_);
  }
  const uint8_t* Record(uint32_t head, uint32_t page) const {
    return records_.data() + ItemOf(head, page, layout_.record_bytes);
  }
  KvSlab CodedSlab(uint32_t head) const {
    return SlabOf(bytes_, head, page_bytes_, CodedPageSizeOf(type_, shape().head_dim).v_at);
  }
  KvSlab RecordSlab(uint32_t head) const { return SlabOf(records_, head, layout_.record_bytes, 0); }
  const MetaLayout& layout() const { return layout_; }
  uint32_t page_bytes() const { return page_bytes_; }

  // What ref makes of an open page, its record of every kind that is kept.
  struct RefPage {
    testing::Buffer bytes, record;
  };
  RefPage RefSeal(uint32_t head, uint32_t page) const {
    const KvShape open{shape().type, 1, shape().head_dim, kCodedTokens};
    const KvShape coded{type_, 1, shape().head_dim, kCodedTokens};
    uint32_t k_bytes, v_bytes;
    RefKernels()->page_bytes(&coded, &k_bytes, &v_bytes);
    RefPage ref{testing::Buffer(k_bytes + v_bytes), testing::Buffer(layout_.record_bytes)};
    const SealArgs args{.open = open,
                        .open_slab = slab(head),
                        .open_page = page,
                        .shape = coded,
                        .slab = {ref.bytes.data(), 0, 0, k_bytes + v_bytes, k_bytes},
                        .records = {ref.record.data(), 0, 0, layout_.record_bytes, 0},
                        .layout = layout_,
                        .page = 0};
    RefKernels()->seal_page(&args);
    const SummariseArgs of_page{
        .shape = coded, .slab = args.slab, .records = args.records, .layout = layout_, .page = 0};
    RefKernels()->summarise_page(&of_page);
    return ref;
  }
  // A token of such a page as ref decodes it.
  KeyValue RefRead(const RefPage& ref, uint32_t slot) const {
    const KvShape coded{type_, 1, shape().head_dim, kCodedTokens};
    uint32_t k_bytes, v_bytes;
    RefKernels()->page_bytes(&coded, &k_bytes, &v_bytes);
    KeyValue token{std::vector<float>(shape().head_dim), std::vector<float>(shape().head_dim)};
    RefKernels()->read_token(&coded, ref.bytes.data(), k_bytes,
                             ref.record.data() + layout_.spread_at, slot, token.k.data(),
                             token.v.data());
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
      const RefPage ref = RefSeal(head, table(row)[i]);
      for (uint32_t slot = 0; slot < kCodedTokens; ++slot) add(RefRead(ref, slot));
    }
    const KvShape open{shape().type, 1, shape().head_dim, kCodedTokens};
    for (uint32_t i = coded_tokens_[row]; i < lengths()[row]; ++i) {
      KeyValue token{std::vector<float>(t.head_dim), std::vector<float>(t.head_dim)};
      const KvSlab at = slab(head);
      RefKernels()->read_token(&open, PageAt(at, table(row)[i / kCodedTokens]), at.v_offset,
                               nullptr, i % kCodedTokens, token.k.data(), token.v.data());
      add(token);
    }
    t.q.assign(Query(row, head), Query(row, head) + shape().group * t.head_dim);
    return testing::Exact(t, kScale, 0, t.tokens);
  }
  std::vector<uint32_t> CodedPagesOf(uint32_t row) const {
    std::vector<uint32_t> all(coded_tokens_[row] / kCodedTokens);
    for (uint32_t i = 0; i < all.size(); ++i) all[i] = i;
    return all;
  }
  const std::vector<uint32_t>& full() const { return full_; }
  const std::vector<uint32_t>& coded_tokens() const { return coded_tokens_; }
  const std::vector<uint32_t>& open_tokens() const { return open_tokens_; }
  // ref's partial result over a row's open tokens.
  testing::OwnedPartial OpenPartial(uint32_t row, uint32_t head) const {
    testing::OwnedPartial partial(shape().group, shape().head_dim);
    if (open_tokens_[row] == 0) return partial;
    const uint32_t count = PagesOf(open_tokens_[row]);
    const DecodeArgs args{.shape = {shape().type, 1, shape().head_dim, kCodedTokens},
                          .slab = slab(head),
                          .view = {.pages = open_tables_.data() + uint64_t{row} * TablePages(),
                                   .count = count,
                                   .last_tokens = open_tokens_[row] - (count - 1) * kCodedTokens,
                                   .space = MemorySpace::kHost},
                          .group = shape().group,
                          .scale = kScale,
                          .q = Query(row, head),
                          .out = partial.View()};
    RefKernels()->attend_decode(&args);
    return partial;
  }

 private:
  static constexpr uint32_t kShift = 2;

  uint32_t TablePages() const { return PagesOf(TokensMax()) + 1; }
  uint64_t HeadStride(uint32_t item_bytes) const { return uint64_t{item_bytes} << kShift; }
  KvSlab SlabOf(const std::vector<uint8_t>& bytes, uint32_t head, uint32_t item_bytes,
                uint32_t v_at) const {
    return {const_cast<uint8_t*>(bytes.data()) + head * HeadStride(item_bytes),
            HeadStride(item_bytes) * shape().kv_heads, kShift, item_bytes, v_at};
  }
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
  uint32_t page_bytes_;
  MetaLayout layout_;
  std::vector<uint32_t> coded_tokens_, open_tokens_, open_tables_, full_;
  std::vector<uint8_t> bytes_, records_;
  std::vector<float> partials_;
};

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_TESTS_SIMT_CODED_BATCH_H_
