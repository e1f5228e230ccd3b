#include "engine/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "base/check.h"
#include "base/random.h"

namespace tinyserve {
namespace {

// Tokens of less weight, where the best has 1, are never drawn: beyond what f32 sums keep.
constexpr float kLeastWeight = 1e-13f;
// Where only the best tokens are kept, those of less weight are looked at only if the others do not
// do: most often some dozens of many thousands are left.
constexpr float kLikelyWeight = 1.0f / 4096;
// Tokens whose weights are summed together for a draw.
constexpr size_t kBlock = 64;

// e^x for -31 <= x <= 0, to 2e-7: by Taylor's series about the nearest power of two, without a
// branch or a call, so that the compiler makes vectors of it.
inline float Exp(float x) {
  constexpr float kRounding = 12582912.0f;  // 1.5 * 2^23: a sum's last bit is worth 1
  const float rounded = x * 1.44269504f + kRounding;
  const float n = rounded - kRounding;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float y = 1.0f / 720;
  for (const float term : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) y = y * r + term;
  const int32_t power = std::bit_cast<int32_t>(rounded) - std::bit_cast<int32_t>(kRounding);
  return y * std::bit_cast<float>((power + 127) << 23);
}

Status Range(const char* name, double value, double low, double high, bool low_open) {
  const bool inside = (low_open ? value > low : value >= low) && value <= high;  // false for NaN
  if (inside) return Status();
  return Status(Code::kInvalidArgument, fmt::format("{} is {}: allowed is {}{}, {}]", name, value,
                                                    low_open ? "(" : "[", low, high));
}

// Of seed and position: a uniform number in [0, 1) without any state.
double UniformAt(uint64_t seed, uint64_t position) {
  const uint64_t z = MixBits(MixBits(seed + kGoldenGamma * (position + 1)));
  return static_cast<double>(z >> 11) * 0x1.0p-53;
}

}  // namespace

Status CheckSampling(const SamplingOptions& o, uint32_t vocab) {
  TS_RETURN_IF_ERROR(Range("temperature", o.temperature, 0, 100, false));
  TS_RETURN_IF_ERROR(Range("top_p", o.top_p, 0, 1, true));
  TS_RETURN_IF_ERROR(Range("min_p", o.min_p, 0, 1, false));
  TS_RETURN_IF_ERROR(Range("repetition_penalty", o.repetition_penalty, 0, 100, true));
  TS_RETURN_IF_ERROR(Range("presence_penalty", o.presence_penalty, -2, 2, false));
  TS_RETURN_IF_ERROR(Range("frequency_penalty", o.frequency_penalty, -2, 2, false));
  for (const auto& [token, bias] : o.logit_bias) {
    if (token < 0 || static_cast<uint32_t>(token) >= vocab) {
      return Status(
          Code::kInvalidArgument,
          fmt::format("logit_bias names token {}: allowed are 0 to {}", token, vocab - 1));
    }
    TS_RETURN_IF_ERROR(Range("logit_bias", bias, -100, 100, false));
  }
  return Status();
}

int32_t Argmax(std::span<const float> logits) {
  // Sixteen running maxima: the compiler keeps them in vectors.
  std::array<float, 16> best;
  best.fill(-INFINITY);
  size_t i = 0;
  for (; i + 16 <= logits.size(); i += 16) {
    for (size_t j = 0; j < 16; ++j) best[j] = logits[i + j] > best[j] ? logits[i + j] : best[j];
  }
  float top = -INFINITY;
  for (float b : best) top = std::max(top, b);
  for (; i < logits.size(); ++i) top = logits[i] > top ? logits[i] : top;
  const auto at = std::find(logits.begin(), logits.end(), top);
  return at == logits.end() ? 0 : static_cast<int32_t>(at - logits.begin());
}

void RuleOut(std::span<const uint32_t> allowed, std::span<float> logits) {
  for (size_t first = 0; first < logits.size(); first += 32) {
    const uint32_t word = allowed[first / 32];
    if (word == ~uint32_t{0}) continue;
    const size_t count = std::min<size_t>(32, logits.size() - first);
    for (size_t i = 0; i < count; ++i) {
      if ((word >> i & 1) == 0) logits[first + i] = -INFINITY;
    }
  }
}

Sampler::Sampler(const SamplingOptions& options, uint32_t vocab, std::span<const int32_t> prompt)
    : options_(options),
      penalties_(options.repetition_penalty != 1.0f || options.presence_penalty != 0.0f ||
                 options.frequency_penalty != 0.0f) {
  for (const auto& [token, bias] : options.logit_bias) EditOf(token)->bias += bias;
  if (penalties_) {
    for (int32_t token : prompt) EditOf(token)->seen = true;
  }
  if (options.temperature == 0) return;
  weights_.resize(vocab);
  block_sums_.resize((vocab + kBlock - 1) / kBlock);
  if (KeepsBest()) candidates_.reserve(vocab);
}

DrawRule Sampler::RuleWith(std::span<const int32_t> banned, std::vector<LogitEdit>* edits) const {
  DrawRule rule{.on_device = true,
                .temperature = options_.temperature,
                .min_p = options_.min_p,
                .seed = options_.seed,
                .top_p = options_.top_p,
                .top_k = options_.top_k,
                .repetition = options_.repetition_penalty,
                .presence = options_.presence_penalty,
                .frequency = options_.frequency_penalty,
                .first_edit = static_cast<uint32_t>(edits->size())};
  edits->insert(edits->end(), edits_.begin(), edits_.end());
  for (const int32_t token : banned) {
    const auto found = edit_of_.find(token);
    if (found == edit_of_.end()) {
      edits->push_back({.token = token, .bias = -INFINITY});
    } else {
      (*edits)[rule.first_edit + found->second].bias = -INFINITY;
    }
  }
  rule.edits = static_cast<uint32_t>(edits->size()) - rule.first_edit;
  return rule;
}

LogitEdit* Sampler::EditOf(int32_t token) {
  const auto [at, is_new] = edit_of_.try_emplace(token, edits_.size());
  if (is_new) edits_.push_back({.token = token});
  return &edits_[at->second];
}

void Sampler::Observe(int32_t token) {
  if (!penalties_) return;
  LogitEdit* edit = EditOf(token);
  edit->seen = true;
  ++edit->generated;
}

void Sampler::AdjustLogits(std::span<float> logits) const {
  for (const LogitEdit& edit : edits_) {
    float* logit = &logits[static_cast<size_t>(edit.token)];
    *logit += edit.bias;
    // Repetition: CTRL (arXiv 1909.05858) 4.1; presence and frequency count generated tokens only.
    if (edit.seen) {
      *logit =
          *logit > 0 ? *logit / options_.repetition_penalty : *logit * options_.repetition_penalty;
    }
    if (edit.generated > 0) {
      *logit -= options_.presence_penalty +
                options_.frequency_penalty * static_cast<float>(edit.generated);
    }
  }
}

int32_t Sampler::Sample(std::span<float> logits, uint64_t position,
                        std::span<const int32_t> banned) {
  AdjustLogits(logits);
  for (int32_t token : banned) logits[static_cast<size_t>(token)] = -INFINITY;
  if (options_.temperature == 0) return Argmax(logits);
  return Draw(logits, position);
}

void Sampler::Weigh(std::span<const float> logits, float top) {
  const float to_power = 1.0f / options_.temperature;
  for (size_t t = 0; t < logits.size(); ++t) {
    const float x = (logits[t] - top) * to_power;
    const float weight = Exp(x > -31.0f ? x : -31.0f);  // NaN too
    weights_[t] = weight >= kLeastWeight ? weight : 0.0f;
  }
}

double Sampler::SumBlocks() {
  double total = 0;
  for (size_t b = 0; b < block_sums_.size(); ++b) {
    const size_t end = std::min(weights_.size(), (b + 1) * kBlock);
    std::array<float, 16> sums{};
    size_t t = b * kBlock;
    for (; t + 16 <= end; t += 16) {
      for (size_t j = 0; j < 16; ++j) sums[j] += weights_[t + j];
    }
    float sum = 0;
    for (float of_lane : sums) sum += of_lane;
    for (; t < end; ++t) sum += weights_[t];
    block_sums_[b] = sum;
    total += sum;
  }
  return total;
}

void Sampler::GatherFrom(std::span<const float> logits, float least) {
  candidates_.clear();
  for (size_t t = 0; t < logits.size(); ++t) {
    if (weights_[t] >= least) candidates_.push_back({logits[t], static_cast<int32_t>(t)});
  }
}

// Leaves the candidates in no order.
bool Sampler::KeepBest(double total, bool all) {
  const auto better = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
  };
  if (options_.top_k > 0) {
    if (candidates_.size() < options_.top_k && !all) return false;
    if (candidates_.size() > options_.top_k) {
      std::nth_element(candidates_.begin(), candidates_.begin() + (options_.top_k - 1),
                       candidates_.end(), better);
      candidates_.resize(options_.top_k);
    }
    total = 0;
    for (const Candidate& c : candidates_) total += WeightOf(c);
  }
  if (options_.top_p >= 1.0f) return true;
  std::sort(candidates_.begin(), candidates_.end(), better);
  // The smallest set of best tokens whose mass reaches top_p (arXiv 1904.09751, 3.1).
  double mass = 0;
  size_t keep = 0;
  while (keep < candidates_.size() && mass < options_.top_p * total)
    mass += WeightOf(candidates_[keep++]);
  if (mass < options_.top_p * total && !all) return false;
  candidates_.resize(keep);
  return true;
}

int32_t Sampler::Draw(std::span<const float> logits, uint64_t position) {
  const int32_t best = Argmax(logits);
  const float top = logits[static_cast<size_t>(best)];
  if (!std::isfinite(top)) return best;
  Weigh(logits, top);
  const double uniform = UniformAt(options_.seed, position);
  if (!KeepsBest()) {
    for (float& weight : weights_) weight = weight >= options_.min_p ? weight : 0.0f;
    return DrawFromAll(uniform, best);
  }
  const double total = SumBlocks();
  GatherFrom(logits, kLikelyWeight);
  if (!KeepBest(total, /*all=*/false)) {
    GatherFrom(logits, kLeastWeight);
    KeepBest(total, /*all=*/true);
  }
  double left = 0;
  size_t kept = 0;
  for (const Candidate& c : candidates_) {
    if (WeightOf(c) < options_.min_p) continue;
    candidates_[kept++] = c;
    left += WeightOf(c);
  }
  candidates_.resize(kept);
  // Position order makes the draw independent of how candidates were found.
  std::sort(candidates_.begin(), candidates_.end(),
            [](const Candidate& a, const Candidate& b) { return a.token < b.token; });
  left *= uniform;
  for (const Candidate& c : candidates_) {
    left -= WeightOf(c);
    if (left < 0) return c.token;
  }
  return best;
}

int32_t Sampler::DrawFromAll(double uniform, int32_t best) {
  double left = uniform * SumBlocks();
  size_t b = 0;
  while (b < block_sums_.size() && left >= block_sums_[b]) left -= block_sums_[b++];
  for (size_t t = b * kBlock; t < weights_.size(); ++t) {
    left -= weights_[t];
    if (left < 0) return static_cast<int32_t>(t);
  }
  return best;
}

}  // namespace tinyserve
