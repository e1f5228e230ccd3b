#include "kernels/ref/planes.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/ref/coding.h"
#include "page/planes.h"
#include "tensor/convert.h"

namespace tinyserve::ref {
namespace {

// The scale of signed bytes for numbers up to `top`, rounded up to a bfloat16.
uint16_t ValueScale(float top) {
  if (top < kTiny) return 0;
  const float scale = top * (1.0f / 127.0f);
  uint32_t bits;
  std::memcpy(&bits, &scale, sizeof bits);
  return static_cast<uint16_t>((bits + 0xffffu) >> 16);
}

// Where the bits of channel c are: byte and shift within a group's bytes.
struct CrumbPlace {
  uint32_t byte, shift;
};
CrumbPlace PlaceOf(uint32_t c) { return {c % 4, c % 16 / 4 * 2}; }

// The 8-bit code of a key.
uint32_t KeyCode(const PlanesLayout& at, const uint8_t* page, uint32_t slot, uint32_t c) {
  const uint32_t group = c / 16;
  const CrumbPlace place = PlaceOf(c);
  const uint8_t* low = page + at.low_at + slot * at.low_bytes;
  const uint32_t upper =
      page[at.upper_at + (group * kPlanesTokens + slot) * 4 + place.byte] >> place.shift & 3u;
  const uint32_t nibble = low[group * 8 + c % 8] >> (c % 16 < 8 ? 0 : 4) & 15u;
  const uint32_t crumb = low[at.channels / 2 + group * 4 + place.byte] >> place.shift & 3u;
  return upper << 6 | crumb << 4 | nibble;
}

void SetKeyCode(const PlanesLayout& at, uint8_t* page, uint32_t slot, uint32_t c, uint32_t code) {
  const uint32_t group = c / 16;
  const CrumbPlace place = PlaceOf(c);
  uint8_t* low = page + at.low_at + slot * at.low_bytes;
  page[at.upper_at + (group * kPlanesTokens + slot) * 4 + place.byte] |=
      static_cast<uint8_t>((code >> 6) << place.shift);
  low[group * 8 + c % 8] |= static_cast<uint8_t>((code & 15u) << (c % 16 < 8 ? 0 : 4));
  low[at.channels / 2 + group * 4 + place.byte] |=
      static_cast<uint8_t>((code >> 4 & 3u) << place.shift);
}

// The spread of a page's keys [16][channels], written to `spread`, and their distances, to `page`.
void CodeSpread(const std::vector<float>& keys, uint32_t head_dim, const PlanesLayout& at,
                uint8_t* spread, uint8_t* page) {
  const uint32_t channels = at.channels;
  std::vector<float> mean(channels), distance(channels);
  float top = 0;
  for (uint32_t c = 0; c < channels; ++c) {
    const auto key = [&](uint32_t t) { return keys[uint64_t{t} * channels + c]; };
    float half[8];
    for (uint32_t i = 0; i < 8; ++i) half[i] = key(i) + key(i + 8);
    mean[c] = (((half[0] + half[1]) + (half[2] + half[3])) +
               ((half[4] + half[5]) + (half[6] + half[7]))) *
              (1.0f / kPlanesTokens);
    top = std::max(top, std::fabs(mean[c]));
  }
  const float to_mean = ToCodes(top, 127);
  SpreadScales scales = {.mean = to_mean == 0 ? 0 : top * (1.0f / 127.0f), .radius = 0};
  auto* mean_codes = reinterpret_cast<int8_t*>(spread + sizeof scales);
  uint8_t* distance_codes = page + at.distances_at;
  top = 0;
  for (uint32_t c = 0; c < channels; ++c) {
    mean_codes[c] = static_cast<int8_t>(Code(mean[c] * to_mean, -127, 127));
    const float middle = static_cast<float>(mean_codes[c]) * scales.mean;
    for (uint32_t t = 0; t < kPlanesTokens; ++t) {
      distance[c] = std::max(distance[c], std::fabs(keys[uint64_t{t} * channels + c] - middle));
    }
    top = std::max(top, distance[c]);
  }
  const float to_distance = ToCodes(top, 255);
  const float unit = to_distance == 0 ? 0 : top * (1.0f / 255.0f);
  uint32_t squares = 0;
  for (uint32_t c = 0; c < channels; ++c) {
    distance_codes[c] = static_cast<uint8_t>(Code(std::ceil(distance[c] * to_distance), 0, 255));
    squares += uint32_t{distance_codes[c]} * distance_codes[c];
  }
  scales.radius = unit * std::sqrt(static_cast<float>(squares) / static_cast<float>(head_dim));
  Write(scales, spread);
  Write(unit, page + at.scales_at + offsetof(PlanesScales, distance));
}

// Mean and largest distance of channel c, as decoded.
float ReadMean(const uint8_t* spread, uint32_t c) {
  const auto scales = Read<SpreadScales>(spread);
  return static_cast<float>(static_cast<int8_t>(spread[sizeof scales + c])) * scales.mean;
}
float ReadDistance(const PlanesLayout& at, const uint8_t* page, uint32_t c) {
  const auto unit = Read<float>(page + at.scales_at + offsetof(PlanesScales, distance));
  return static_cast<float>(page[at.distances_at + c]) * unit;
}

void CodeKeys(const std::vector<float>& keys, const PlanesLayout& at, const uint8_t* spread,
              uint8_t* page) {
  for (uint32_t c = 0; c < at.channels; ++c) {
    const float mean = ReadMean(spread, c), distance = ReadDistance(at, page, c);
    const float to_codes = distance == 0 ? 0 : kPlanesTop / distance;
    for (uint32_t t = 0; t < kPlanesTokens; ++t) {
      const float offset = keys[uint64_t{t} * at.channels + c] - mean;
      const int code = Code(offset * to_codes, -128, 127) + 128;
      SetKeyCode(at, page, t, c, static_cast<uint32_t>(code));
    }
  }
}

void CodeValues(const std::vector<float>& values, const PlanesLayout& at, uint8_t* page) {
  std::vector<float> mean(at.channels);
  for (uint32_t t = 0; t < kPlanesTokens; ++t) {
    const float* v = values.data() + uint64_t{t} * at.channels;
    float top = 0;
    for (uint32_t c = 0; c < at.channels; ++c) top = std::max(top, std::fabs(v[c]));
    const uint16_t bits = ValueScale(top);
    const float scale = BF16ToF32(bits), to_codes = scale == 0 ? 0 : 1.0f / scale;
    Write(bits, page + at.scales_at + offsetof(PlanesScales, values) + 2 * t);
    auto* row = reinterpret_cast<int8_t*>(page + at.v_at + t * at.channels);
    for (uint32_t c = 0; c < at.channels; ++c) {
      row[c] = static_cast<int8_t>(Code(v[c] * to_codes, -127, 127));
      mean[c] = std::fma(static_cast<float>(row[c]), scale, mean[c]);
    }
  }
  float top = 0;
  for (float& m : mean) {
    m *= 1.0f / kPlanesTokens;
    top = std::max(top, std::fabs(m));
  }
  const float to_codes = ToCodes(top, 127);
  Write(to_codes == 0 ? 0.0f : top * (1.0f / 127.0f),
        page + at.scales_at + offsetof(PlanesScales, mean_value));
  for (uint32_t c = 0; c < at.channels; ++c) {
    page[at.mean_v_at + c] = static_cast<uint8_t>(Code(mean[c] * to_codes, -127, 127));
  }
}

}  // namespace

void SealPlanes(const KvShape& shape, const PageNumbers& numbers, uint8_t* page, uint8_t* spread) {
  const PlanesLayout at = PlanesLayoutOf(shape.head_dim);
  std::memset(page, 0, at.page_bytes);
  CodeSpread(numbers.keys, shape.head_dim, at, spread, page);
  CodeKeys(numbers.keys, at, spread, page);
  CodeValues(numbers.values, at, page);
}

void ReadPlanes(uint32_t head_dim, const uint8_t* page, const uint8_t* spread, uint32_t slot,
                float* k, float* v) {
  const PlanesLayout at = PlanesLayoutOf(head_dim);
  const float scale =
      BF16ToF32(Read<uint16_t>(page + at.scales_at + offsetof(PlanesScales, values) + 2 * slot));
  const auto* row = reinterpret_cast<const int8_t*>(page + at.v_at + slot * at.channels);
  for (uint32_t c = 0; c < head_dim; ++c) {
    const int code = static_cast<int>(KeyCode(at, page, slot, c)) - 128;
    k[c] = ReadMean(spread, c) +
           ReadDistance(at, page, c) * (static_cast<float>(code) * (1.0f / kPlanesTop));
    v[c] = static_cast<float>(row[c]) * scale;
  }
}

// ---- the cascade --------------------------------------------------------------------------------

namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// One call: everything by page and token of the sequence, in f32.
class Cascade {
 public:
  explicit Cascade(const CascadeArgs& args)
      : args_(args),
        at_(PlanesLayoutOf(args.shape.head_dim)),
        dim_(args.shape.head_dim),
        tokens_(args.count * kPlanesTokens) {}

  CascadeCounts Run() {
    ChooseCandidates();
    ApproximateLogits();
    ChooseTokens();
    for (uint32_t t = 0; t < tokens_; ++t) {
      if (full_[t]) SetLogits(t, /*exact=*/true);
    }
    for (uint32_t h = 0; h < args_.group; ++h) AddValues(h);
    if (args_.chosen != nullptr) {
      uint32_t* chosen = args_.chosen;
      for (uint32_t p = 0; p < args_.count; ++p) {
        if (candidate_[p]) *chosen++ = p;
      }
    }
    const auto count = [](const std::vector<bool>& set) {
      return static_cast<uint32_t>(std::count(set.begin(), set.end(), true));
    };
    return {args_.count, count(candidate_), count(full_), count(value_)};
  }

 private:
  const uint8_t* Page(uint32_t page) const { return PageAt(args_.slab, args_.pages[page]); }
  const uint8_t* Spread(uint32_t page) const {
    return PageAt(args_.records, args_.pages[page]) + args_.layout.spread_at;
  }
  bool Forced(uint32_t page) const {
    return page < args_.sink || page >= args_.count - args_.recent;
  }

  void ChooseCandidates() {
    std::vector<float> pooled(args_.count), score(args_.count);
    for (uint32_t h = 0; h < args_.group; ++h) {
      for (uint32_t p = 0; p < args_.count; ++p) score[p] = PageScore(h, p);
      const float top = *std::max_element(score.begin(), score.end());
      float sum = 0;
      for (float& s : score) sum += s = std::exp(s - top);
      for (uint32_t p = 0; p < args_.count; ++p) pooled[p] += score[p] / sum;
    }
    candidate_ = Best(args_.count, args_.candidates, [&](uint32_t p) {
      uint32_t bits;
      std::memcpy(&bits, &pooled[p], sizeof bits);
      return Forced(p) ? UINT32_MAX : bits >> 16;
    });
  }

  float PageScore(uint32_t h, uint32_t page) const {
    const float* q = args_.q + uint64_t{h} * dim_;
    float dot = 0, squares = 0;
    for (uint32_t c = 0; c < dim_; ++c) {
      dot += q[c] * ReadMean(Spread(page), c);
      squares += q[c] * q[c];
    }
    const float far = std::sqrt(squares) * Read<SpreadScales>(Spread(page)).radius;
    return args_.scale * (dot + args_.alpha * far);
  }

  void SetLogits(uint32_t t, bool exact) {
    const uint32_t page = t / kPlanesTokens;
    for (uint32_t h = 0; h < args_.group; ++h) {
      float sum = 0;
      for (uint32_t c = 0; c < dim_; ++c) {
        uint32_t code = KeyCode(at_, Page(page), t % kPlanesTokens, c);
        if (!exact) code = (code & 192u) | 32u;
        const float offset = static_cast<float>(static_cast<int>(code) - 128);
        const float key = ReadMean(Spread(page), c) +
                          ReadDistance(at_, Page(page), c) * (offset * (1 / kPlanesTop));
        sum += args_.q[uint64_t{h} * dim_ + c] * key;
      }
      logits_[h][t] = args_.scale * sum;
    }
  }

  void ApproximateLogits() {
    logits_.assign(args_.group, std::vector<float>(tokens_, kMinusInfinity));
    for (uint32_t t = 0; t < tokens_; ++t) {
      if (candidate_[t / kPlanesTokens]) SetLogits(t, /*exact=*/false);
    }
  }

  void ChooseTokens() {
    std::vector<float> weight(tokens_);
    for (uint32_t h = 0; h < args_.group; ++h) {
      const float open_d = args_.open.d[h], open_m = open_d == 0 ? kMinusInfinity : args_.open.m[h];
      const float top = std::max(open_m, *std::max_element(logits_[h].begin(), logits_[h].end()));
      float sum = open_d == 0 ? 0 : open_d * std::exp(open_m - top);
      for (float logit : logits_[h]) sum += std::exp(logit - top);
      for (uint32_t t = 0; t < tokens_; ++t) weight[t] += std::exp(logits_[h][t] - top) / sum;
    }
    const auto rank = [&](uint32_t t) -> uint32_t {
      if (!candidate_[t / kPlanesTokens]) return 0;
      return Forced(t / kPlanesTokens) ? UINT32_MAX : WeightBin(weight[t]) + 1;
    };
    const uint32_t least = WeightBin(args_.least_share * static_cast<float>(args_.group)) + 1;
    const auto rank_if_any = [&](uint32_t t) {
      const uint32_t of_token = rank(t);
      return of_token < least ? 0 : of_token;
    };
    full_ = Best(tokens_, args_.full_tokens, rank_if_any);
    value_ = Best(tokens_, args_.value_tokens, rank_if_any);
  }

  // Bins of 1/8 octave up to 2^4, which no weight reaches; 0 holds what is below all others.
  static uint32_t WeightBin(float weight) {
    uint32_t bits;
    std::memcpy(&bits, &weight, sizeof bits);
    const uint32_t bin = bits >> 20, lowest = (127 + 4) * 8 - 255;
    return std::min(bin > lowest ? bin - lowest : 0, 255u);
  }

  // The `n` of 0 .. count - 1 with the largest ranks, the lowest ones of equals; never rank 0.
  template <class Rank>
  static std::vector<bool> Best(uint32_t count, uint32_t n, const Rank& rank) {
    std::vector<uint32_t> order(count);
    std::iota(order.begin(), order.end(), 0u);
    std::stable_sort(order.begin(), order.end(),
                     [&](uint32_t a, uint32_t b) { return rank(a) > rank(b); });
    std::vector<bool> best(count);
    for (uint32_t i = 0; i < std::min(n, count); ++i) best[order[i]] = rank(order[i]) != 0;
    return best;
  }

  void AddValues(uint32_t h) {
    const std::vector<float>& logits = logits_[h];
    const float top = *std::max_element(logits.begin(), logits.end());
    float* o = args_.out.o + uint64_t{h} * dim_;
    std::vector<float> k(dim_), v(dim_);
    std::fill(o, o + dim_, 0.0f);
    float sum = 0;
    for (uint32_t t = 0; t < tokens_; ++t) {
      const uint32_t page = t / kPlanesTokens;
      const float weight = std::exp(logits[t] - top);
      sum += weight;
      if (value_[t]) {
        ReadPlanes(dim_, Page(page), Spread(page), t % kPlanesTokens, k.data(), v.data());
      } else if (candidate_[page]) {
        ReadMeanValue(Page(page), v.data());
      } else {
        continue;
      }
      for (uint32_t c = 0; c < dim_; ++c) o[c] += weight * v[c];
    }
    args_.out.m[h] = top;
    args_.out.d[h] = sum;
  }

  void ReadMeanValue(const uint8_t* page, float* v) const {
    const auto scale = Read<float>(page + at_.scales_at + offsetof(PlanesScales, mean_value));
    const auto* codes = reinterpret_cast<const int8_t*>(page + at_.mean_v_at);
    for (uint32_t c = 0; c < dim_; ++c) v[c] = static_cast<float>(codes[c]) * scale;
  }

  const CascadeArgs& args_;
  const PlanesLayout at_;
  const uint32_t dim_, tokens_;
  std::vector<bool> candidate_;             // by page
  std::vector<bool> full_, value_;          // by token
  std::vector<std::vector<float>> logits_;  // [head][token]
};

}  // namespace

uint64_t CascadeScratchBytes(const KvShape*, uint32_t, uint32_t) { return 0; }

CascadeCounts AttendCascade(const CascadeArgs* args) { return Cascade(*args).Run(); }

}  // namespace tinyserve::ref
