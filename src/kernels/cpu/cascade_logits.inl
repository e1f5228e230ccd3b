// The cascade's approximate logits and the weights of tokens in f32.
#include "kernels/cpu/cascade_upper.inl"

namespace tinyserve {
namespace {

// ---- 2: approximate logits ----

// Sums over channels of the page's upper codes times q8, by token.
template <uint32_t kHeads, uint32_t kChannels>
TS_INLINE void UpperSums(const uint8_t* upper, uint32_t runtime_channels,
                         const int8_t (*q8)[kPlanesHeadDimMax], VI (&sums)[kHeads][kTokenVectors]) {
  VI chains[kHeads][2];
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) chains[h][0] = chains[h][1] = ZeroInt();
  AddUpperCodes<kHeads, kChannels>(upper, runtime_channels, q8, chains);
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
    if constexpr (kUpperChains == 2) {
      const VI both =
          kHasByteDot ? AddInt(chains[h][0], chains[h][1]) : AddInt16(chains[h][0], chains[h][1]);
      sums[h][0] = WidenUpperSums(both);
    } else {
      TS_UNROLL for (uint32_t v = 0; v < kTokenVectors; ++v) {
        sums[h][v] = WidenUpperSums(chains[h][v]);
      }
    }
  }
}

// What turns a page's upper codes into logits: x = sum of codes * q8 * step + base by head.
template <uint32_t kHeads>
struct ScaledQueries {
  alignas(64) int8_t q8[kHeads][kPlanesHeadDimMax];
  float step[4], base[4];
};

template <uint32_t kHeads, uint32_t kChannels>
TS_PHASE void ApproximateLogits(const CascadeCall& call, uint32_t head) {
  // Queries are scaled for some pages before the first of them is read: bytes that are read right
  // after vectors of them were written would wait for the writes to settle.
  constexpr uint32_t kAtOnce = 4;
  const CascadeScratch& s = call.s;
  const PlanesLayout at = kChannels != 0 ? PlanesLayoutOf(kChannels) : call.at;
  const uint64_t row = s.pages * kPlanesTokens;
  const int16_t* q = s.q + (uint64_t)head * at.channels;
  const float* mean_dot = s.mean_dot + head * s.pages;
  float* logits = s.logits + head * row;
  ScaledQueries<kHeads> scaled[kAtOnce];
  VF top[kHeads];
  float scale[4] = {};
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
    top[h] = Set(-__builtin_inff());
    // Levels are (2 * code - 3) / 3 of the distance: in all 2/3 (sum of codes - 3/2 sum of ones).
    scale[h] = s.q_scale[head + h] * (32768.0f * 2 / 3);
  }
  const V4 scales = _mm_loadu_ps(scale);
  for (uint32_t first = 0; first < call.candidates; first += kAtOnce) {
    const uint32_t count = Smaller(kAtOnce, call.candidates - first);
    for (uint32_t j = 0; j < count; ++j) {
      const uint32_t p = s.candidates[first + j];
      float dots[4] = {};
      TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) dots[h] = mean_dot[h * s.pages + p];
      const V4 totals = ScaleQueries<kHeads>(s.page[first + j], at, q, scaled[j].q8);
      // What a sum of codes times q8 is worth.
      const V4 steps = _mm_mul_ps(scales, _mm_set1_ps(DistanceScale(s.page[first + j], at)));
      _mm_storeu_ps(scaled[j].step, steps);
      _mm_storeu_ps(scaled[j].base, _mm_fnmadd_ps(_mm_mul_ps(steps, totals), _mm_set1_ps(1.5f),
                                                  _mm_loadu_ps(dots)));
    }
    for (uint32_t j = 0; j < count; ++j, logits += kPlanesTokens) {
      PrefetchUpper(s.page[first + j + kCandidatesAhead], at.low_at);
      VI sums[kHeads][kTokenVectors];
      UpperSums<kHeads, kChannels>(s.page[first + j], at.channels, scaled[j].q8, sums);
      TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
        const VF step = Set(scaled[j].step[h]), base = Set(scaled[j].base[h]);
        TS_UNROLL for (uint32_t v = 0; v < kTokenVectors; ++v) {
          const VF x = Fma(ToFloat(sums[h][v]), step, base);
          Store(logits + h * row + v * kLanes, x);
          top[h] = Max(top[h], x);
        }
      }
    }
  }
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) s.m[head + h] = MaxLanes(top[h]);
}

// ---- 3: weights of tokens ----

// Ranks tokens by the sums of their weights, each times its head's share.
TS_INLINE void RankWeights(const CascadeCall& call, uint32_t tokens) {
  const VI lowest = SetInt(kLowestBin);
  const uint64_t row = call.s.pages * kPlanesTokens;
  for (uint32_t t = 0; t < tokens; t += kPlanesTokens) {
    VF sums[kTokenVectors];
    TS_UNROLL for (uint32_t v = 0; v < kTokenVectors; ++v) sums[v] = Zero();
    const float* weights = call.s.logits + t;
    for (uint32_t h = 0; h < call.args.group; ++h, weights += row) {
      const VF factor = Set(call.s.share[h]);
      TS_UNROLL for (uint32_t v = 0; v < kTokenVectors; ++v) {
        const VF weight = Load(weights + v * kLanes);
        sums[v] = Fma(weight, factor, sums[v]);
      }
    }
    VI bins[kTokenVectors];
    TS_UNROLL for (uint32_t v = 0; v < kTokenVectors; ++v) {
      bins[v] = SubInt(ShiftRight((VI)sums[v], 20), lowest);
    }
    StoreSixteenClamped(call.s.rank + t, bins, kLowestRank, kHighestRank);
  }
}

// Logits of the candidates become exp(logit - m), and each token gets the bin of its weight, summed
// over the heads as shares of the softmax over candidates and open tokens.
TS_PHASE void RankTokens(const CascadeCall& call) {
  const CascadeScratch& s = call.s;
  const uint32_t tokens = call.candidates * kPlanesTokens;
  for (uint32_t h = 0; h < call.args.group; ++h) {
    float* row = s.logits + h * s.pages * kPlanesTokens;
    const float open_d = call.args.open.d[h];
    const float open_m = open_d == 0 ? -__builtin_inff() : call.args.open.m[h] * kLog2E;
    const float m = open_m > s.m[h] ? open_m : s.m[h];
    s.m[h] = m;
    VF sum = Zero();
    for (uint32_t t = 0; t < tokens; t += kLanes) {
      const VF p = ExpTwo<4>(Sub(Load(row + t), Set(m)));
      Store(row + t, p);
      sum = Add(sum, p);
    }
    s.d[h] = SumLanes(sum);
    float open = 0;
    if (open_d != 0) {
      StoreFirst(&open, 1, Mul(Set(open_d), ExpTwo<6>(Set(open_m - m))));
    }
    s.share[h] = 1.0f / (s.d[h] + open);
  }
  RankWeights(call, tokens);
  ForceRanks(call, tokens);
}

}  // namespace
}  // namespace tinyserve
