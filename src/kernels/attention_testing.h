// For the tests of the attention kernels: caches with random tokens, calls, and derived tolerances.
#ifndef TINYSERVE_KERNELS_ATTENTION_TESTING_H_
#define TINYSERVE_KERNELS_ATTENTION_TESTING_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/kernels.h"
#include "kernels/testing.h"

namespace tinyserve::testing {

inline std::vector<float> RandomFloats(size_t count, uint64_t seed, float scale = 1.0f) {
  Random random(seed);
  std::vector<float> values(count);
  for (float& value : values) value = scale * random.Signed();
  return values;
}

// Keys and values of one KV head, and queries of its group for every position: [tokens][..] rows.
struct Tokens {
  uint32_t tokens, head_dim, group;
  std::vector<float> k, v, q;
};

// Like real ones, some channels of keys carry a constant several times their spread, and the first
// value is small.
inline Tokens MakeTokens(uint32_t tokens, uint32_t head_dim, uint32_t group, uint64_t seed,
                         float q_scale = 3.0f) {
  Tokens t{tokens, head_dim, group, {}, {}, {}};
  t.k = RandomFloats(size_t{tokens} * head_dim, seed);
  t.v = RandomFloats(size_t{tokens} * head_dim, seed + 1);
  t.q = RandomFloats(size_t{tokens} * group * head_dim, seed + 2, q_scale);
  for (uint32_t i = 0; i < tokens; ++i) {
    t.k[size_t{i} * head_dim + 3] += 4;
    t.k[size_t{i} * head_dim + head_dim / 2] -= 6;
  }
  for (uint32_t c = 0; c < head_dim && tokens > 0; ++c) t.v[c] *= 0.1f;
  return t;
}

// The pages of one KV head in one table's layout, spread over small extents in shuffled order. What
// holds no token is all ones: NaN in every type.
class PagedHead {
 public:
  PagedHead(const Kernels& kernels, KvShape shape, uint32_t tokens_max, uint64_t seed)
      : kernels_(kernels), shape_(shape), bytes_(0) {
    uint32_t k_bytes, v_bytes;
    kernels.page_bytes(&shape, &k_bytes, &v_bytes);
    const uint32_t pages = tokens_max / shape.page_tokens + 2;
    slab_.page_bytes = k_bytes + v_bytes;
    slab_.v_offset = k_bytes;
    slab_.extent_shift = 1;
    slab_.extent_stride = 2ull * slab_.page_bytes + 192;
    const uint64_t bytes = (pages / 2 + 1) * slab_.extent_stride;
    bytes_ = Buffer(bytes);
    std::memset(bytes_.data(), 0xff, bytes);
    slab_.base = bytes_.data();
    for (uint32_t i = 0; i < pages; ++i) pages_.push_back(i);
    Random random(seed);
    for (uint32_t i = pages; i > 1; --i) std::swap(pages_[i - 1], pages_[random.Next() % i]);
  }

  void Append(const Tokens& t, uint32_t first, uint32_t count) {
    const size_t at = size_t{first} * t.head_dim;
    const AppendArgs args{.shape = shape_,
                          .slab = slab_,
                          .pages = pages_.data(),
                          .first_slot = first,
                          .tokens = count,
                          .k = t.k.data() + at,
                          .v = t.v.data() + at,
                          .stride = t.head_dim};
    kernels_.append(&args);
  }

  // Tokens first .. end - 1; `first` begins a page.
  PageView View(uint32_t first, uint32_t end) const {
    const uint32_t count = (end - first + shape_.page_tokens - 1) / shape_.page_tokens;
    return {.pages = pages_.data() + first / shape_.page_tokens,
            .count = count,
            .last_tokens = count == 0 ? 0 : end - first - (count - 1) * shape_.page_tokens,
            .space = MemorySpace::kHost};
  }

  // K then V of one token.
  std::vector<float> Read(uint32_t token) const {
    std::vector<float> kv(2 * shape_.head_dim);
    const uint8_t* page = PageAt(slab_, pages_[token / shape_.page_tokens]);
    kernels_.read_token(&shape_, page, slab_.v_offset, nullptr, token % shape_.page_tokens,
                        kv.data(), kv.data() + shape_.head_dim);
    return kv;
  }

  const KvShape& shape() const { return shape_; }
  const KvSlab& slab() const { return slab_; }
  const Kernels& kernels() const { return kernels_; }

 private:
  const Kernels& kernels_;
  KvShape shape_;
  KvSlab slab_;
  Buffer bytes_;
  std::vector<uint32_t> pages_;
};

// Scratch whose end is watched.
class Scratch {
 public:
  explicit Scratch(uint64_t bytes) : bytes_(bytes), buffer_(bytes + 64) {
    std::memset(buffer_.data(), 0xff, bytes + 64);
  }
  void* data() { return buffer_.data(); }
  bool Overrun() const {
    return std::any_of(buffer_.data() + bytes_, buffer_.data() + bytes_ + 64,
                       [](uint8_t byte) { return byte != 0xff; });
  }

 private:
  uint64_t bytes_;
  Buffer buffer_;
};

// Partial results of g heads with their memory.
struct OwnedPartial {
  std::vector<float> m, d, o;
  OwnedPartial(uint32_t group, uint32_t head_dim)
      : m(group, -INFINITY), d(group), o(size_t{group} * head_dim) {}
  Partial View() { return {.m = m.data(), .d = d.data(), .o = o.data()}; }
};

inline OwnedPartial Decode(const PagedHead& head, const Tokens& t, float scale, uint32_t query,
                           uint32_t first, uint32_t end) {
  OwnedPartial out(t.group, t.head_dim);
  Scratch scratch(head.kernels().decode_scratch_bytes(&head.shape(), t.group, end - first));
  const DecodeArgs args{.shape = head.shape(),
                        .slab = head.slab(),
                        .view = head.View(first, end),
                        .group = t.group,
                        .scale = scale,
                        .q = t.q.data() + size_t{query} * t.group * t.head_dim,
                        .out = out.View(),
                        .scratch = scratch.data()};
  head.kernels().attend_decode(&args);
  if (scratch.Overrun()) out.d.assign(t.group, NAN);  // fails every comparison
  return out;
}

inline std::vector<float> Merge(const Kernels& kernels, std::vector<OwnedPartial>& partials,
                                uint32_t group, uint32_t head_dim) {
  std::vector<Partial> views;
  for (OwnedPartial& partial : partials) views.push_back(partial.View());
  std::vector<float> out(size_t{group} * head_dim, NAN);
  kernels.merge_partials(views.data(), static_cast<uint32_t>(views.size()), group, head_dim,
                         out.data());
  return out;
}

// Rows first .. first + rows - 1 in calls of `chunk` rows; [rows][group][head_dim].
inline std::vector<float> Prompt(const PagedHead& head, const Tokens& t, float scale,
                                 uint32_t first, uint32_t rows, uint32_t chunk, Compute compute) {
  const size_t width = size_t{t.group} * t.head_dim, out_width = width + 3;
  std::vector<float> padded(rows * out_width, NAN), out(rows * width);
  for (uint32_t row = 0; row < rows; row += chunk) {
    const uint32_t count = std::min(chunk, rows - row);
    Scratch scratch(head.kernels().prompt_scratch_bytes(&head.shape(), t.group, count));
    const PromptArgs args{.shape = head.shape(),
                          .slab = head.slab(),
                          .view = head.View(0, first + row + count),
                          .group = t.group,
                          .scale = scale,
                          .first_position = first + row,
                          .rows = count,
                          .q = t.q.data() + (first + row) * width,
                          .q_stride = width,
                          .out = padded.data() + row * out_width,
                          .out_stride = out_width,
                          .scratch = scratch.data(),
                          .compute = compute};
    head.kernels().attend_prompt(&args);
    if (scratch.Overrun()) return {};
  }
  for (uint32_t row = 0; row < rows; ++row) {
    std::copy_n(padded.begin() + row * out_width, width, out.begin() + row * width);
  }
  return out;
}

// What the g heads of row `query` should get from tokens 0 .. keys - 1, in double; [g][head_dim].
inline std::vector<float> Exact(const Tokens& t, float scale, uint32_t query, uint32_t keys) {
  std::vector<float> out;
  for (uint32_t h = 0; h < t.group; ++h) {
    const float* q = t.q.data() + (size_t{query} * t.group + h) * t.head_dim;
    std::vector<double> weights(keys), sums(t.head_dim);
    for (uint32_t key = 0; key < keys; ++key) {
      const float* k = t.k.data() + size_t{key} * t.head_dim;
      for (uint32_t c = 0; c < t.head_dim; ++c) weights[key] += double{q[c]} * k[c];
      weights[key] *= scale;
    }
    const double top = *std::max_element(weights.begin(), weights.end());
    double d = 0;
    for (uint32_t key = 0; key < keys; ++key) {
      const double weight = std::exp(weights[key] - top);
      d += weight;
      const float* v = t.v.data() + size_t{key} * t.head_dim;
      for (uint32_t c = 0; c < t.head_dim; ++c) sums[c] += weight * v[c];
    }
    for (const double sum : sums) out.push_back(static_cast<float>(sum / d));
  }
  return out;
}

// ---- tolerances --------------------------------------------------------------------------------

// How far integer codes may lie from what they stand for: half a code of the largest magnitude.
struct CodeSteps {
  double q = 0, k = 0, v = 0, weight = 0;  // 1 / largest code; 0: f32
  double product = 0;                      // what else q.k may be off by
};

// Bound on |out - exact| of attention over tokens 0 .. keys - 1 by the g heads of row `query`:
//   - a logit is a sum of head_dim rounded products; where q and k are coded, each factor is off by
//     half a code. An error e of all logits moves weights by a factor e^(2e);
//   - weights, their sum and the sum of values are rounded once for each key and a few times more;
//   - a coded value is off by half a code of its row; a coded weight by half a code, the largest
//     code being the largest weight of its tile of 64 or a sum of a few: part of the sum of all
//     weights either way, so that 64 of them are worth 32 steps of the largest value.
inline std::vector<double> AttentionTolerance(const Tokens& t, float scale, uint32_t query,
                                              uint32_t keys, const CodeSteps& steps) {
  const double ulp = 0x1p-24;
  double v_max = 0;
  for (size_t i = 0; i < size_t{keys} * t.head_dim; ++i) {
    v_max = std::max(v_max, std::fabs(double{t.v[i]}));
  }
  std::vector<double> out;
  for (uint32_t h = 0; h < t.group; ++h) {
    const float* q = t.q.data() + (size_t{query} * t.group + h) * t.head_dim;
    double error = 0, q_max = 0, q_sum = 0;
    for (uint32_t c = 0; c < t.head_dim; ++c) {
      q_max = std::max(q_max, std::fabs(double{q[c]}));
      q_sum += std::fabs(double{q[c]});
    }
    for (uint32_t key = 0; key < keys; ++key) {
      const float* k = t.k.data() + size_t{key} * t.head_dim;
      double products = 0, k_max = 0, k_sum = 0;
      for (uint32_t c = 0; c < t.head_dim; ++c) {
        products += std::fabs(double{q[c]} * k[c]);
        k_max = std::max(k_max, std::fabs(double{k[c]}));
        k_sum += std::fabs(double{k[c]});
      }
      const double rounding = products * (t.head_dim + 8) * ulp * 2;
      const double coding = q_max * steps.q / 2 * (k_sum + t.head_dim * k_max * steps.k / 2) +
                            k_max * steps.k / 2 * q_sum;
      error = std::max(error, scale * (rounding + coding + steps.product));
    }
    const double weights = std::expm1(2 * error) + (keys + 32) * ulp * 4 + 1e-5 * (steps.q != 0);
    const double values = steps.v / 2 + 32 * steps.weight;
    out.insert(out.end(), t.head_dim, v_max * (weights + values));
  }
  return out;
}

// Signal to noise in dB.
inline double SnrDb(const std::vector<float>& got, const std::vector<float>& want) {
  double signal = 0, noise = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    signal += double{want[i]} * want[i];
    noise += (double{got[i]} - want[i]) * (double{got[i]} - want[i]);
  }
  return 10 * std::log10(signal / noise);
}

}  // namespace tinyserve::testing

#endif  // TINYSERVE_KERNELS_ATTENTION_TESTING_H_
