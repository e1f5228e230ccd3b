#include "kernels/ref/selection.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/ref/attention.h"
#include "tensor/convert.h"

namespace tinyserve::ref {
namespace {

constexpr float kF16Max = 65504.0f;
constexpr uint32_t kSums = 16;

// A NaN becomes `top`, as it does in the instructions of other targets.
float Clamp(float x, float top) {
  const float below = x < top ? x : top;
  return below > -top ? below : -top;
}

// The f16 next to x on the side of `sign`, x itself where it is one.
uint16_t RoundedTowards(float x, float sign) {
  x = Clamp(x, kF16Max);
  const uint16_t bits = F32ToF16(x);
  if (sign * F16ToF32(bits) >= sign * x) return bits;
  // One step away from zero or towards it; a zero has the sign of x, so it only steps away.
  return static_cast<uint16_t>((x < 0) == (sign < 0) ? bits + 1 : bits - 1);
}

float SumInOrder(const std::vector<float>& values) {
  float sums[kSums] = {};
  for (size_t t = 0; t < values.size(); ++t) sums[t % kSums] += values[t];
  float half[8];
  for (int i = 0; i < 8; ++i) half[i] = sums[i] + sums[i + 8];
  return ((half[0] + half[1]) + (half[2] + half[3])) + ((half[4] + half[5]) + (half[6] + half[7]));
}

void StoreHalf(uint16_t bits, uint8_t* row, uint32_t c) {
  std::memcpy(row + 2 * c, &bits, sizeof bits);
}

float LoadHalf(const uint8_t* row, uint32_t c) {
  uint16_t bits;
  std::memcpy(&bits, row + 2 * c, sizeof bits);
  return F16ToF32(bits);
}

// Adding 0 turns a -0 into 0: which of two zeros is the least would depend on their order.
void SummariseBox(const std::vector<float>& keys, uint32_t channels, uint32_t c, uint8_t* box) {
  const auto [low, high] = std::minmax_element(keys.begin(), keys.end());
  StoreHalf(RoundedTowards(*low + 0.0f, -1), box, c);
  StoreHalf(RoundedTowards(*high + 0.0f, 1), box, channels + c);
}

void SummariseMoments(std::vector<float> keys, uint32_t channels, uint32_t c, uint8_t* moments) {
  const float scale = 1.0f / static_cast<float>(keys.size());
  const float mean = SumInOrder(keys) * scale;
  for (float& key : keys) key = (key - mean) * (key - mean);
  const float variance = SumInOrder(keys) * scale;
  StoreHalf(F32ToF16(Clamp(mean, kF16Max)), moments, c);
  StoreHalf(F32ToF16(Clamp(variance, kF16Max)), moments, channels + c);
}

float BoxScore(const uint8_t* box, uint32_t channels, const float* q, uint32_t head_dim) {
  float sum = 0;
  for (uint32_t c = 0; c < head_dim; ++c) {
    sum += std::max(q[c] * LoadHalf(box, c), q[c] * LoadHalf(box, channels + c));
  }
  return sum;
}

float RangeScore(const uint8_t* range, uint32_t channels, const float* q, uint32_t head_dim) {
  RangeScales scales;
  std::memcpy(&scales, range, sizeof scales);
  const uint8_t* codes = range + sizeof scales;
  float middle = 0, reach = 0;
  for (uint32_t c = 0; c < head_dim; ++c) {
    middle += q[c] * static_cast<float>(static_cast<int8_t>(codes[c]));
    reach += std::fabs(q[c]) * static_cast<float>(codes[channels + c]);
  }
  return middle * scales.key_middle + reach * scales.key_reach;
}

float MomentsScore(const uint8_t* moments, uint32_t channels, const float* q, uint32_t head_dim,
                   float alpha) {
  float mean = 0, variance = 0;
  for (uint32_t c = 0; c < head_dim; ++c) {
    mean += q[c] * LoadHalf(moments, c);
    variance += q[c] * q[c] * LoadHalf(moments, channels + c);
  }
  return mean + alpha * std::sqrt(variance);
}

// Scores of one head, [count], to their share of the pooled ones.
void PoolHead(ScorePool pool, const float* head, uint32_t count, bool first, float* scores) {
  if (pool == ScorePool::kMax) {
    for (uint32_t i = 0; i < count; ++i) {
      scores[i] = first ? head[i] : std::max(scores[i], head[i]);
    }
    return;
  }
  float top = 0, scale = 1;
  if (pool == ScorePool::kSoftmax) {
    top = *std::max_element(head, head + count);
    float sum = 0;
    for (uint32_t i = 0; i < count; ++i) sum += std::exp(head[i] - top);
    scale = 1 / sum;
  }
  for (uint32_t i = 0; i < count; ++i) {
    const float term = pool == ScorePool::kSoftmax ? std::exp(head[i] - top) * scale : head[i];
    scores[i] = first ? term : scores[i] + term;
  }
}

}  // namespace

void SummarisePage(const SummariseArgs* args) {
  const KvShape& shape = args->shape;
  const MetaLayout& layout = args->layout;
  const uint8_t* page = PageAt(args->slab, args->page);
  uint8_t* record = PageAt(args->records, args->page);
  // The spread of a coded page was written with it, and decodes it.
  const uint8_t* spread = IsCoded(shape.type) ? record + layout.spread_at : nullptr;
  std::memset(record, 0, layout.spread_at);
  std::vector<float> k(shape.head_dim), v(shape.head_dim), channel(shape.page_tokens);
  std::vector<float> keys(uint64_t{shape.page_tokens} * shape.head_dim);
  for (uint32_t t = 0; t < shape.page_tokens; ++t) {
    ReadToken(&shape, page, args->slab.v_offset, spread, t, k.data(), v.data());
    std::copy(k.begin(), k.end(), keys.begin() + uint64_t{t} * shape.head_dim);
  }
  for (uint32_t c = 0; c < shape.head_dim; ++c) {
    for (uint32_t t = 0; t < shape.page_tokens; ++t) {
      channel[t] = keys[uint64_t{t} * shape.head_dim + c];
    }
    if ((layout.kinds & kMetaBox) != 0) {
      SummariseBox(channel, layout.channels, c, record + layout.box_at);
    }
    if ((layout.kinds & kMetaMoments) != 0) {
      SummariseMoments(channel, layout.channels, c, record + layout.moments_at);
    }
  }
}

void ScorePages(const ScoreArgs* args) {
  const MetaLayout& layout = args->layout;
  if (args->count == 0) return;
  const uint64_t stride = (uint64_t{args->count} + 15) / 16 * 16;
  for (uint32_t h = 0; h < args->group; ++h) {
    const float* q = args->q + uint64_t{h} * args->head_dim;
    float* head = args->head_scores + h * stride;
    for (uint32_t i = 0; i < args->count; ++i) {
      const uint8_t* record = PageAt(args->records, args->pages[i]);
      if (args->kind == ScoreKind::kMoments) {
        head[i] = MomentsScore(record + layout.moments_at, layout.channels, q, args->head_dim,
                               args->alpha);
      } else if ((layout.kinds & kMetaRange) != 0) {
        head[i] = RangeScore(record + layout.spread_at, layout.channels, q, args->head_dim);
      } else {
        head[i] = BoxScore(record + layout.box_at, layout.channels, q, args->head_dim);
      }
    }
    PoolHead(args->pool, head, args->count, h == 0, args->scores);
  }
}

}  // namespace tinyserve::ref
