// For kernels: which of a row's tokens are the best, by digits: so many, or those that make up a
// weight. A block of 256 threads.
#ifndef TINYSERVE_KERNELS_CUDA_SAMPLE_BEST_H_
#define TINYSERVE_KERNELS_CUDA_SAMPLE_BEST_H_

#include "kernels/cuda/order_key.h"
#include "kernels/cuda/sample_row.h"

namespace tinyserve::cuda {

// Where only the best tokens are kept, those of less weight are looked at only if the others do not
// do, as in the engine: most often some dozens of many thousands are left.
constexpr float kLikelyWeight = 1.0f / 4096;

// A token's place: its logit's key, then its id upside down, so that of equal logits the first has
// the higher place. All places differ.
constexpr uint32_t kPlaceBits = 56, kIdBits = 24;
constexpr uint64_t kNoPlace = ~uint64_t{0};

// Weights as integers, so that their sums do not depend on an order: 2^44 is 1. What is rounded is
// below 2^-20, the sum of 2^17 tokens less than 2^62.
constexpr double kWeightUnits = 17592186044416.0;
TS_DEVICE uint64_t UnitsOf(float weight) {
  return static_cast<uint64_t>(static_cast<double>(weight) * kWeightUnits + 0.5);
}

// Of bins [256], by one warp: the digit at which the bins from the highest on reach `wanted`, what
// is left to be reached in that digit, and whether all of it is wanted. found[0] = 256: they do
// not.
TS_DEVICE void FindDigit(const Shared<uint64_t>& bins, uint64_t wanted,
                         const Shared<uint64_t>& found) {
  constexpr uint32_t kDigits = 8;  // of a lane
  const uint32_t lane = LaneIndex(), top = 255 - lane * kDigits;
  uint64_t own = 0;
  for (uint32_t i = 0; i < kDigits; ++i) own += bins.Get(top - i);
  uint64_t through = own;
  TS_UNROLL
  for (uint32_t lanes = 1; lanes < kWarpLanes; lanes *= 2) {
    const uint64_t other = Shuffle(through, lane >= lanes ? lane - lanes : lane, kAllLanes);
    if (lane >= lanes) through += other;
  }
  if (lane == kWarpLanes - 1 && through < wanted) found.Set(0, 256);
  uint64_t before = through - own;
  if (before >= wanted || through < wanted) return;
  for (uint32_t i = 0; i < kDigits; ++i) {
    const uint64_t bin = bins.Get(top - i);
    if (before + bin >= wanted) {
      found.Set(0, top - i);
      found.Set(1, wanted - before);
      found.Set(2, before + bin == wanted ? 1 : 0);
      return;
    }
    before += bin;
  }
}

// The tokens of at least `least` weight, where weights are set.
struct Candidates {
  RowLogits row;
  RowWeights weights;
  float least;

  TS_DEVICE uint64_t PlaceOf(uint32_t t) const {
    const float logit = row.At(t) + 0.0f;  // -0 is as good as 0
    return uint64_t{KeyOf(logit)} << kIdBits | ((1u << kIdBits) - 1 - t);
  }
  // What(t, weight, place) of those that are at `floor` or above.
  template <class What>
  TS_DEVICE void Each(uint64_t floor, const What& what) const {
    for (uint32_t t = ThreadIndex(); t < row.vocab; t += kSampleThreads) {
      const float weight = weights.weights.Get(t);
      if (weight < least) continue;
      const uint64_t place = PlaceOf(t);
      if (place >= floor) what(t, weight, place);
    }
  }
  // The floor of the best of those above `floor` that just reach `wanted` together: as many, or
  // units of weight. kNoPlace: all of them do not. wanted > 0. All threads of the block.
  TS_DEVICE uint64_t FloorOf(uint64_t floor, uint64_t wanted, bool by_weight) const {
    TS_SHARED(uint64_t, bins, 256);
    TS_SHARED(uint64_t, found, 3);
    uint64_t prefix = 0, mask = 0;
    for (uint32_t shift = kPlaceBits; shift > 0;) {
      shift -= 8;
      for (uint32_t i = ThreadIndex(); i < 256; i += kSampleThreads) bins.Set(i, 0);
      SyncBlock();
      Each(floor, [&](uint32_t, float weight, uint64_t place) {
        if ((place & mask) != prefix) return;
        AtomicAdd(bins, place >> shift & 255, by_weight ? UnitsOf(weight) : uint64_t{1});
      });
      SyncBlock();
      if (WarpIndex() == 0) FindDigit(bins, wanted, found);
      SyncBlock();
      if (found.Get(0) > 255) return kNoPlace;
      prefix |= found.Get(0) << shift;
      mask |= uint64_t{255} << shift;
      wanted = found.Get(1);
      if (found.Get(2) != 0) break;
    }
    return prefix;
  }
  // Their weight together.
  TS_DEVICE uint64_t UnitsFrom(uint64_t floor) const {
    TS_SHARED(uint64_t, units, 1);
    if (ThreadIndex() == 0) units.Set(0, 0);
    SyncBlock();
    uint64_t own = 0;
    Each(floor, [&](uint32_t, float weight, uint64_t) { own += UnitsOf(weight); });
    AtomicAdd(units, 0, own);
    SyncBlock();
    return units.Get(0);
  }
};

// Which candidates top-k and top-p leave, where all tokens weigh `total`: those of `least` weight
// that are at `floor` or above.
struct Kept {
  float least;
  uint64_t floor;
};

// The floor that top_k and then top_p set, or kNoPlace where there are too few candidates.
TS_DEVICE uint64_t KeptFloor(const Candidates& c, const DrawScale& scale, double total, bool all) {
  uint64_t floor = 0;
  double units = total * kWeightUnits;
  if (scale.top_k > 0) {
    floor = c.FloorOf(0, scale.top_k, /*by_weight=*/false);
    if (floor == kNoPlace && !all) return kNoPlace;
    if (floor == kNoPlace) floor = 0;
    units = static_cast<double>(c.UnitsFrom(floor));
  }
  if (!(scale.top_p < 1.0f)) return floor;
  const uint64_t wanted = static_cast<uint64_t>(ceil(static_cast<double>(scale.top_p) * units));
  const uint64_t reached = c.FloorOf(floor, wanted > 0 ? wanted : 1, /*by_weight=*/true);
  return reached == kNoPlace && all ? floor : reached;
}

TS_DEVICE Kept KeepBest(const RowLogits& row, const RowWeights& weights, const DrawScale& scale,
                        double total) {
  for (float least = kLikelyWeight;; least = kLeastWeight) {
    const uint64_t floor = KeptFloor({row, weights, least}, scale, total, least == kLeastWeight);
    if (floor != kNoPlace) return {least, floor};
  }
}

// Weights of what is not kept become 0; sums are made anew, of f64.
TS_DEVICE void DropOthers(const Candidates& c, const Kept& kept, float min_p) {
  const RowWeights& of = c.weights;
  for (uint32_t g = ThreadIndex(); g < of.Groups(); g += kSampleThreads) {
    double sum = 0;
    for (uint32_t t = g * kSumTokens; t < of.EndOf(g); ++t) {
      const float weight = of.weights.Get(t);
      if (weight == 0) continue;
      if (weight >= kept.least && weight >= min_p && c.PlaceOf(t) >= kept.floor) {
        sum += static_cast<double>(weight);
      } else {
        of.weights.Set(t, 0);
      }
    }
    of.sums.Set(g, sum);
  }
  SyncBlock();
}

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_SAMPLE_BEST_H_
