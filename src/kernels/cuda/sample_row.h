// For kernels: one row's logits as its wishes change them, the largest of them, and weights. A
// block of 256 threads is a row.
#ifndef TINYSERVE_KERNELS_CUDA_SAMPLE_ROW_H_
#define TINYSERVE_KERNELS_CUDA_SAMPLE_ROW_H_

#include <math.h>

#include "kernels/cuda/sample.h"
#include "kernels/cuda/simt.h"

namespace tinyserve::cuda {

constexpr uint32_t kSampleThreads = 256, kSampleWarps = kSampleThreads / kWarpLanes;
constexpr uint32_t kSumTokens = 64;     // whose weights are summed together
constexpr float kLeastWeight = 1e-13f;  // of a token that may be drawn, as in the engine
constexpr uint32_t kNoToken = 0xffffffffu;

struct RowLogits {
  Global<float> logits;  // [vocab]
  Global<const uint32_t> words;
  uint32_t vocab;
  uint32_t mask_at;

  TS_DEVICE float At(uint32_t t) const {
    const bool may = mask_at == kNoMask || (words.Get(mask_at + t / 32) >> t % 32 & 1) != 0;
    return may ? logits.Get(t) : -INFINITY;
  }
};

// ---- edits --------------------------------------------------------------------------------------

struct RowEdits {
  Global<float> logits, edited;
  Global<const uint32_t> words;
  DrawLists lists;
  DrawPenalties penalties;
  uint32_t own;  // the row's own token where it counts, else kNoToken

  TS_DEVICE LogitEdit At(uint32_t i) const {
    LogitEdit edit = i < lists.edits ? words.Get<LogitEdit>(lists.edits_at + 4 * uint64_t{i})
                                     : LogitEdit{own, 0, 0, 0};
    if (edit.token != own) return edit;
    edit.seen = 1;
    ++edit.generated;
    return edit;
  }
  // By the very operations of the engine's sampler.
  TS_DEVICE float Changed(float x, const LogitEdit& edit) const {
    x += edit.bias;
    if (edit.seen != 0) x = x > 0 ? x / penalties.repetition : x * penalties.repetition;
    if (edit.generated > 0)
      x -= penalties.presence + penalties.frequency * static_cast<float>(edit.generated);
    return x;
  }
  TS_DEVICE void ApplyOne(uint32_t i) const {
    const LogitEdit edit = At(i);
    const float before = logits.Get(edit.token);
    edited.Set(i, before);
    logits.Set(edit.token, Changed(before, edit));
  }
  // Applies them all; returns how many there are, the row's own token counted where it has none.
  TS_DEVICE uint32_t Apply() const {
    TS_SHARED(uint32_t, listed, 1);
    if (ThreadIndex() == 0) listed.Set(0, 0);
    SyncBlock();
    for (uint32_t i = ThreadIndex(); i < lists.edits; i += kSampleThreads) {
      ApplyOne(i);
      if (At(i).token == own) listed.Set(0, 1);
    }
    SyncBlock();
    if (own == kNoToken || listed.Get(0) != 0) return lists.edits;
    if (ThreadIndex() == 0) ApplyOne(lists.edits);
    SyncBlock();
    return lists.edits + 1;
  }
  TS_DEVICE void TakeBack(uint32_t count) const {
    SyncBlock();
    for (uint32_t i = ThreadIndex(); i < count; i += kSampleThreads)
      logits.Set(At(i).token, edited.Get(i));
    SyncBlock();
  }
};

// ---- the largest --------------------------------------------------------------------------------

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

TS_DEVICE Best BlockBest(const RowLogits& row) {
  TS_SHARED(float, logits, kSampleWarps);
  TS_SHARED(uint32_t, tokens, kSampleWarps);
  Best best{-INFINITY, kNoToken};
  for (uint32_t t = ThreadIndex(); t < row.vocab; t += kSampleThreads)
    best = Better(best, {row.At(t), t});
  best = WarpBest(best);
  if (LaneIndex() == 0) {
    logits.Set(WarpIndex(), best.logit);
    tokens.Set(WarpIndex(), best.token);
  }
  SyncBlock();
  best = {-INFINITY, kNoToken};
  for (uint32_t w = 0; w < kSampleWarps; ++w) best = Better(best, {logits.Get(w), tokens.Get(w)});
  if (best.token == kNoToken) best.token = 0;  // nothing but NaN
  SyncBlock();
  return best;
}

// ---- weights ------------------------------------------------------------------------------------

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

// What is summed of a row: weights above `top`, in groups of kSumTokens tokens.
struct RowWeights {
  Global<float> weights;  // [vocab]
  Global<double> sums;    // [Groups()]
  uint32_t vocab;

  TS_DEVICE uint32_t Groups() const { return (vocab + kSumTokens - 1) / kSumTokens; }
  TS_DEVICE uint32_t EndOf(uint32_t group) const {
    const uint32_t end = (group + 1) * kSumTokens;
    return end < vocab ? end : vocab;
  }
  // Sets weights and sums, where weights below `least` count as none. A group's sum is made in the
  // order of the engine's sampler: sixteen sums side by side, then those after each other.
  // `with_nan`: a logit that is no number makes the sum none.
  TS_DEVICE void Weigh(const RowLogits& row, float top, float to_power, float least,
                       bool with_nan) const {
    for (uint32_t g = ThreadIndex(); g < Groups(); g += kSampleThreads) {
      const uint32_t first = g * kSumTokens, end = EndOf(g),
                     whole = first + (end - first) / 16 * 16;
      const auto weigh = [&](uint32_t t) {
        const float x = row.At(t), weight = WeightOf((x - top) * to_power);
        const float kept = weight >= least ? weight : 0.0f;
        weights.Set(t, kept);
        return with_nan && x != x ? x : kept;
      };
      float lanes[16] = {}, sum = 0;
      for (uint32_t t = first; t < whole; t += 16) {
        TS_UNROLL
        for (uint32_t j = 0; j < 16; ++j) lanes[j] += weigh(t + j);
      }
      TS_UNROLL
      for (uint32_t j = 0; j < 16; ++j) sum += lanes[j];
      for (uint32_t t = whole; t < end; ++t) sum += weigh(t);
      sums.Set(g, double{sum});
    }
    SyncBlock();
  }
  // chunks [kWarpLanes] = sums of so many neighbouring groups each; returns the sum over all.
  TS_DEVICE uint32_t ChunkGroups() const { return (Groups() + kWarpLanes - 1) / kWarpLanes; }
  TS_DEVICE double SumAll(const Shared<double>& chunks) const {
    SyncBlock();
    if (WarpIndex() == 0) {
      double sum = 0;
      const uint32_t first = LaneIndex() * ChunkGroups(), end = first + ChunkGroups();
      for (uint32_t g = first; g < end && g < Groups(); ++g) sum += sums.Get(g);
      chunks.Set(LaneIndex(), sum);
    }
    SyncBlock();
    double total = 0;
    for (uint32_t i = 0; i < kWarpLanes; ++i) total += chunks.Get(i);
    return total;
  }
};

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_SAMPLE_ROW_H_
