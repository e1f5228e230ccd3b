#include <math.h>

#include "kernels/cuda/sample.h"
#include "kernels/cuda/simt.h"

namespace tinyserve::cuda {
namespace {

constexpr uint32_t kThreads = 256, kWarps = kThreads / kWarpLanes;
constexpr uint32_t kSumTokens = 64;     // whose weights are summed together
constexpr float kLeastWeight = 1e-13f;  // of a token that may be drawn, as in the engine
constexpr uint32_t kNone = 0xffffffffu;

struct Best {
  float logit;
  uint32_t token;
};

// The larger logit, the first of equals; NaN never wins.
TS_DEVICE Best Better(const Best& a, const Best& b) {
  const bool b_wins = b.logit > a.logit || (b.logit == a.logit && b.token < a.token);
  return b_wins ? b : a;
}

TS_DEVICE Best WarpBest(Best best) {
  TS_UNROLL
  for (uint32_t lanes = kWarpLanes / 2; lanes > 0; lanes /= 2) {
    best = Better(
        best, {ShuffleXor(best.logit, lanes, kAllLanes), ShuffleXor(best.token, lanes, kAllLanes)});
  }
  return best;
}

// e^x for -31 <= x <= 0 by the operations of the engine's sampler, so that weights have its bits.
TS_DEVICE float WeightOf(float x) {
  constexpr float kRounding = 12582912.0f;  // 1.5 * 2^23: a sum's last bit is worth 1
  x = x > -31.0f ? x : -31.0f;              // NaN too
  const float rounded = x * 1.44269504f + kRounding;
  const float n = rounded - kRounding;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float y = (1.0f / 720) * r + 1.0f / 120;
  y = y * r + 1.0f / 24;
  y = y * r + 1.0f / 6;
  y = y * r + 0.5f;
  y = y * r + 1.0f;
  y = y * r + 1.0f;
  const uint32_t power = Bits(rounded) - Bits(kRounding);
  const float weight = y * FromBits((power + 127) << 23);
  return weight >= kLeastWeight ? weight : 0.0f;
}

constexpr uint64_t kGamma = 0x9e3779b97f4a7c15u;
TS_DEVICE uint64_t Mix(uint64_t z) {  // base/random.h
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}
TS_DEVICE double UniformAt(uint64_t seed, uint64_t position) {
  const uint64_t z = Mix(Mix(seed + kGamma * (position + 1)));
  return static_cast<double>(z >> 11) * 0x1.0p-53;
}

struct RowLogits {
  Global<const float> logits;
  Global<const uint32_t> allowed;
  bool masked;

  TS_DEVICE float At(uint32_t t) const {
    const bool may = !masked || (allowed.Get(t / 32) >> t % 32 & 1) != 0;
    return may ? logits.Get(t) : -INFINITY;
  }
};

TS_DEVICE Best BlockBest(const RowLogits& row, uint32_t vocab, const Shared<float>& best_logits,
                         const Shared<uint32_t>& best_tokens) {
  Best best{-INFINITY, kNone};
  for (uint32_t t = ThreadIndex(); t < vocab; t += kThreads) best = Better(best, {row.At(t), t});
  best = WarpBest(best);
  if (LaneIndex() == 0) {
    best_logits.Set(WarpIndex(), best.logit);
    best_tokens.Set(WarpIndex(), best.token);
  }
  SyncBlock();
  best = {-INFINITY, kNone};
  for (uint32_t w = 0; w < kWarps; ++w) {
    best = Better(best, {best_logits.Get(w), best_tokens.Get(w)});
  }
  if (best.token == kNone) best.token = 0;  // nothing but NaN
  return best;
}

struct Wish {
  float temperature, min_p;
};

// The weights of one group of tokens and their sum, in the order of the engine's sampler: sixteen
// sums side by side, then those after each other.
TS_DEVICE float WeighGroup(const RowLogits& row, uint32_t vocab, uint32_t first, float top,
                           const Wish& wish, const Global<float>& weights) {
  const float to_power = 1.0f / wish.temperature;
  const uint32_t end = first + kSumTokens < vocab ? first + kSumTokens : vocab;
  const uint32_t whole = first + (end - first) / 16 * 16;
  const auto weigh = [&](uint32_t t) {
    const float weight = WeightOf((row.At(t) - top) * to_power);
    const float kept = weight >= wish.min_p ? weight : 0.0f;
    weights.Set(t, kept);
    return kept;
  };
  float sums[16] = {}, sum = 0;
  for (uint32_t t = first; t < whole; t += 16) {
    TS_UNROLL
    for (uint32_t j = 0; j < 16; ++j) sums[j] += weigh(t + j);
  }
  TS_UNROLL
  for (uint32_t j = 0; j < 16; ++j) sum += sums[j];
  for (uint32_t t = whole; t < end; ++t) sum += weigh(t);
  return sum;
}

// Passes the numbers of [first, end) while what is left reaches them; returns the place of the
// first that it does not reach, or `end`.
template <class Numbers>
TS_DEVICE uint32_t Walk(const Numbers& numbers, uint32_t first, uint32_t end, double& left) {
  for (uint32_t i = first; i < end; ++i) {
    const double number = numbers.Get(i);
    if (left < number) return i;
    left -= number;
  }
  return end;
}

// Of one row.
struct Draw {
  Global<float> weights, sums;  // [vocab], [groups]
  uint32_t vocab, groups;

  // Groups of a lane of the first warp; the sum over them.
  TS_DEVICE uint32_t ChunkGroups() const { return (groups + kWarpLanes - 1) / kWarpLanes; }
  TS_DEVICE double SumChunk(uint32_t lane) const {
    double sum = 0;
    const uint32_t first = lane * ChunkGroups(), end = first + ChunkGroups();
    for (uint32_t g = first; g < end && g < groups; ++g) sum += sums.Get(g);
    return sum;
  }
  // By one thread: over the chunks, the groups of one, the tokens from there on.
  TS_DEVICE uint32_t Token(const Shared<double>& chunks, double uniform, uint32_t best) const {
    double total = 0;
    for (uint32_t i = 0; i < kWarpLanes; ++i) total += chunks.Get(i);
    double left = uniform * total;
    const uint32_t chunk = Walk(chunks, 0, kWarpLanes, left);
    const uint32_t group = Walk(sums, chunk * ChunkGroups(), groups, left);
    const uint32_t token = Walk(weights, group * kSumTokens, vocab, left);
    return token < vocab ? token : best;
  }
};

// A block is a row.
TS_KERNEL SampleKernel(SampleArgs a) {
  TS_SHARED(float, best_logits, kWarps);
  TS_SHARED(uint32_t, best_tokens, kWarps);
  TS_SHARED(double, chunks, kWarpLanes);
  const uint32_t row = BlockX(), words = (a.vocab + 31) / 32;
  const uint32_t groups = (a.vocab + kSumTokens - 1) / kSumTokens;
  const bool masked = a.allowed.count != 0;
  const Global<const uint32_t> allowed(a.allowed, "allowed");
  const RowLogits logits{
      Global<const float>(a.logits, "logits").Part(uint64_t{row} * a.vocab, a.vocab),
      masked ? allowed.Part(uint64_t{row} * words, words) : allowed, masked};
  const Global<int32_t> tokens(a.tokens, "tokens");
  const Wish wish{Global<const float>(a.temperatures, "temperatures").Get(row),
                  Global<const float>(a.min_ps, "min_ps").Get(row)};
  const Best best = BlockBest(logits, a.vocab, best_logits, best_tokens);
  if (ThreadIndex() == 0 && a.tops.count != 0) Global<float>(a.tops, "tops").Set(row, best.logit);
  if (!(wish.temperature > 0) || !(fabsf(best.logit) < INFINITY)) {
    if (ThreadIndex() == 0) tokens.Set(row, static_cast<int32_t>(best.token));
    return;
  }
  const Draw draw{Global<float>(a.weights, "weights").Part(uint64_t{row} * a.vocab, a.vocab),
                  Global<float>(a.sums, "sums").Part(uint64_t{row} * groups, groups), a.vocab,
                  groups};
  for (uint32_t g = ThreadIndex(); g < groups; g += kThreads) {
    draw.sums.Set(g, WeighGroup(logits, a.vocab, g * kSumTokens, best.logit, wish, draw.weights));
  }
  SyncBlock();
  if (WarpIndex() == 0) chunks.Set(LaneIndex(), draw.SumChunk(LaneIndex()));
  SyncBlock();
  if (ThreadIndex() != 0) return;
  const double uniform = UniformAt(Global<const uint64_t>(a.seeds, "seeds").Get(row),
                                   Global<const uint64_t>(a.positions, "positions").Get(row));
  tokens.Set(row, static_cast<int32_t>(draw.Token(chunks, uniform, best.token)));
}

}  // namespace

Status Sample(const SampleArgs& args, Stream stream) {
  if (args.rows == 0 || args.vocab == 0) {
    return Status(Code::kInvalidArgument, "Sample: there must be rows and a vocabulary");
  }
  return Launch({.kernel = "Sample", .grid = {args.rows}, .threads = kThreads, .stream = stream},
                SampleKernel, args);
}

}  // namespace tinyserve::cuda
