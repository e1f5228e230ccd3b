#include "step/entropy.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

namespace tinyserve {
namespace {

// Sums in so many parts, which a compiler keeps in vector registers.
constexpr size_t kLanes = 16;

// exp(x) of x <= 0, by 2^n times a polynomial of the rest (Cephes' expf); without a branch. What is
// below exp(-87) counts as that.
inline float ExpOfNegative(float x) {
  const float t = std::max(-87.0f, x) * 1.44269504f;  // NaN: as the least
  // Rounds to a whole number: beyond 2^23 floats have no fraction.
  const float n = (t + 12582912.0f) - 12582912.0f;
  const float r = (t - n) * 0.693147181f;
  const float p =
      1 + r * (1 + r * (0.5f + r * (0.166666672f + r * (0.0416573475f + r * 0.00830136065f))));
  return p * std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
}

}  // namespace

double EntropyOf(std::span<const float> logits) {
  float tops[kLanes];
  std::fill(std::begin(tops), std::end(tops), logits[0]);
  const size_t whole = logits.size() / kLanes * kLanes;
  for (size_t i = 0; i < whole; i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane)
      tops[lane] = logits[i + lane] > tops[lane] ? logits[i + lane] : tops[lane];
  }
  for (size_t i = whole; i < logits.size(); ++i) tops[0] = std::max(tops[0], logits[i]);
  const float top = *std::max_element(std::begin(tops), std::end(tops));
  // H = log sum e^x - sum x e^x / sum e^x, of x = logit - top.
  float sums[kLanes] = {}, weighted[kLanes] = {};
  const auto add = [&](size_t lane, float logit) {
    const float x = logit - top, e = ExpOfNegative(x);
    sums[lane] += e;
    weighted[lane] += x * e;
  };
  for (size_t i = 0; i < whole; i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) add(lane, logits[i + lane]);
  }
  for (size_t i = whole; i < logits.size(); ++i) add(0, logits[i]);
  double sum = 0, mean = 0;
  for (size_t lane = 0; lane < kLanes; ++lane) {
    sum += static_cast<double>(sums[lane]);
    mean += static_cast<double>(weighted[lane]);
  }
  return std::log(sum) - mean / sum;
}

}  // namespace tinyserve
