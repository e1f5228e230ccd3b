// For the tests of decode attention on an emulated device: batches of sequences in paged slabs.
#ifndef TINYSERVE_TESTS_SIMT_DECODE_TESTING_H_
#define TINYSERVE_TESTS_SIMT_DECODE_TESTING_H_

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/attention_testing.h"
#include "kernels/cuda/attention_decode.h"
#include "kernels/tables.h"
#include "tests/simt/arrays.h"

namespace tinyserve::cuda {

// What a shape's numbers are stored as, rounded to the type so that tolerances speak of arithmetic.
inline float Stored(KvType type, float value) {
  if (type == KvType::kF16) return F16ToF32(F32ToF16(value));
  if (type == KvType::kBF16) return BF16ToF32(F32ToBF16(value));
  return value;
}

// Rows of a batch, each a sequence of its own length; pages shuffled over extents of four. What
// holds no token is all ones: NaN in every type.
class DecodeBatch {
 public:
  DecodeBatch(const DecodeShape& shape, const std::vector<uint32_t>& lengths, uint64_t seed)
      : shape_(shape), lengths_(lengths), kv_{shape.type, 1, shape.head_dim, shape.page_tokens} {
    uint32_t pages = 0;
    for (const uint32_t length : lengths) pages = std::max(pages, PagesOf(length));
    table_pages_ = pages + 1;
    PlacePages(seed);
    q_.resize(lengths.size() * Width());
    out_.assign(q_.size(), NAN);
    for (uint32_t row = 0; row < lengths.size(); ++row) {
      for (uint32_t head = 0; head < shape.kv_heads; ++head) AddTokens(row, head, seed, false);
    }
    arrived_.assign(lengths.size() * shape.kv_heads, 0);
    partials_.assign(PartialFloats(shape, rows(), TokensMax()), NAN);
  }

  uint32_t rows() const { return static_cast<uint32_t>(lengths_.size()); }
  uint32_t TokensMax() const { return *std::max_element(lengths_.begin(), lengths_.end()); }
  uint32_t PagesOf(uint32_t tokens) const {
    return (tokens + shape_.page_tokens - 1) / shape_.page_tokens;
  }
  uint64_t Width() const { return uint64_t{shape_.kv_heads} * shape_.group * shape_.head_dim; }
  const DecodeShape& shape() const { return shape_; }
  DevicePages pages() const {
    return {{{bytes_.data(), bytes_.size()},
             head_stride_,
             extent_stride_,
             kExtentShift,
             slab_.page_bytes},
            slab_.v_offset};
  }
  DecodeStep step() {
    return {.rows = rows(),
            .table_pages = table_pages_,
            .scale = kScale,
            .tables = ConstArrayOf(tables_),
            .tokens = ConstArrayOf(lengths_),
            .q = ConstArrayOf(q_),
            .out = ArrayOf(out_),
            .partials = ArrayOf(partials_),
            .arrived = ArrayOf(arrived_)};
  }
  const std::vector<float>& out() const { return out_; }
  const std::vector<uint32_t>& arrived() const { return arrived_; }
  const std::vector<uint32_t>& lengths() const { return lengths_; }
  const uint32_t* table(uint32_t row) const {
    return tables_.data() + uint64_t{row} * table_pages_;
  }
  KvSlab slab(uint32_t head) const {
    KvSlab slab = slab_;
    slab.base = const_cast<uint8_t*>(bytes_.data()) + head * head_stride_;
    return slab;
  }
  const float* Query(uint32_t row, uint32_t head) const {
    return q_.data() + row * Width() + uint64_t{head} * shape_.group * shape_.head_dim;
  }
  uint32_t slab_pages() const { return slab_pages_; }
  // Bytes of a page's keys, from `at` on.
  void FillOpen(uint32_t head, uint32_t page, uint32_t at, uint32_t bytes, uint8_t value) {
    std::fill_n(PageAt(slab(head), page) + at, bytes, value);
  }
  // Keys of which some stand out, so that weights differ as they do in a model.
  void MakeUneven(uint64_t seed) {
    for (uint32_t row = 0; row < rows(); ++row) {
      for (uint32_t head = 0; head < shape_.kv_heads; ++head) AddTokens(row, head, seed, true);
    }
  }
  void SetQueries(float value) { std::fill(q_.begin(), q_.end(), value); }

  // By ref, over the given pages of a row (indices into its table, in order).
  std::vector<float> Reference(uint32_t row, uint32_t head,
                               const std::vector<uint32_t>& chosen) const {
    std::vector<uint32_t> pages;
    for (const uint32_t i : chosen) pages.push_back(table(row)[i]);
    const uint32_t last = lengths_[row] - (PagesOf(lengths_[row]) - 1) * shape_.page_tokens;
    testing::OwnedPartial partial(shape_.group, shape_.head_dim);
    const DecodeArgs args{.shape = kv_,
                          .slab = slab(head),
                          .view = {.pages = pages.data(),
                                   .count = static_cast<uint32_t>(pages.size()),
                                   .last_tokens = last,
                                   .space = MemorySpace::kHost},
                          .group = shape_.group,
                          .scale = kScale,
                          .q = Query(row, head),
                          .out = partial.View()};
    RefKernels()->attend_decode(&args);
    std::vector<testing::OwnedPartial> partials{partial};
    return testing::Merge(*RefKernels(), partials, shape_.group, shape_.head_dim);
  }
  std::vector<uint32_t> AllPages(uint32_t row) const {
    std::vector<uint32_t> all(PagesOf(lengths_[row]));
    for (uint32_t i = 0; i < all.size(); ++i) all[i] = i;
    return all;
  }
  // The largest distance of a row's result from `want`, relative to the largest value it may have.
  float Distance(uint32_t row, uint32_t head, const std::vector<float>& want) const {
    const float* got =
        out_.data() + row * Width() + uint64_t{head} * shape_.group * shape_.head_dim;
    float far = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      const float distance = std::fabs(got[i] - want[i]);
      if (!(distance <= far)) far = distance;  // NaN too
    }
    return far;
  }

  static constexpr float kScale = 0.125f;

 private:
  static constexpr uint32_t kExtentShift = 2;

  void PlacePages(uint64_t seed) {
    uint32_t k_bytes, v_bytes;
    RefKernels()->page_bytes(&kv_, &k_bytes, &v_bytes);
    slab_pages_ = (rows() * table_pages_ + 3) / 4 * 4;
    slab_ = {.base = nullptr,
             .extent_stride = 0,
             .extent_shift = kExtentShift,
             .page_bytes = k_bytes + v_bytes,
             .v_offset = k_bytes};
    head_stride_ = uint64_t{slab_.page_bytes} << kExtentShift;
    extent_stride_ = head_stride_ * shape_.kv_heads;
    slab_.extent_stride = extent_stride_;
    bytes_.assign(extent_stride_ * (slab_pages_ >> kExtentShift), 0xff);
    std::vector<uint32_t> order(slab_pages_);
    for (uint32_t i = 0; i < order.size(); ++i) order[i] = i;
    testing::Random random(seed);
    for (uint32_t i = slab_pages_; i > 1; --i) std::swap(order[i - 1], order[random.Next() % i]);
    tables_.assign(order.begin(), order.begin() + rows() * table_pages_);
  }

  void AddTokens(uint32_t row, uint32_t head, uint64_t seed, bool uneven) {
    const uint32_t dim = shape_.head_dim, tokens = lengths_[row];
    testing::Tokens t =
        testing::MakeTokens(std::max(tokens, 1u), dim, shape_.group, seed + 77 * row + 7 * head);
    testing::Random random(seed + row);
    for (uint32_t token = 0; uneven && token < tokens; ++token) {
      const float pull = random.Signed();
      if (pull < 0.7f) continue;
      const uint32_t h = token % shape_.group;  // that it stands out to
      for (uint32_t c = 0; c < dim; ++c) t.k[token * dim + c] += pull * 0.4f * t.q[h * dim + c];
    }
    std::copy_n(t.q.begin(), shape_.group * dim,
                q_.begin() + row * Width() + uint64_t{head} * shape_.group * dim);
    const AppendArgs args{.shape = kv_,
                          .slab = slab(head),
                          .pages = table(row),
                          .first_slot = 0,
                          .tokens = tokens,
                          .k = t.k.data(),
                          .v = t.v.data(),
                          .stride = dim};
    RefKernels()->append(&args);
  }

  DecodeShape shape_;
  std::vector<uint32_t> lengths_;
  KvShape kv_;
  KvSlab slab_{};
  uint32_t table_pages_ = 0, slab_pages_ = 0;
  uint64_t head_stride_ = 0, extent_stride_ = 0;
  std::vector<uint8_t> bytes_;
  std::vector<uint32_t> tables_, arrived_;
  std::vector<float> q_, out_, partials_;
};

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_TESTS_SIMT_DECODE_TESTING_H_
