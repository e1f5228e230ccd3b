// Exact logits of the cascade's tokens that are read in full.
#ifndef TINYSERVE_KERNELS_CPU_CASCADE_EXACT_INL_
#define TINYSERVE_KERNELS_CPU_CASCADE_EXACT_INL_

#include "kernels/cpu/cascade_call.inl"

namespace tinyserve {
namespace {

// What each head has at `p`, a row of `stride` for each; 0 past kHeads.
template <uint32_t kHeads>
TS_INLINE V4 HeadsAt(const float* p, uint64_t stride) {
  return _mm_setr_ps(p[0], kHeads > 1 ? p[stride] : 0, kHeads > 2 ? p[2 * stride] : 0,
                     kHeads > 3 ? p[3 * stride] : 0);
}
// sums += a, of each head.
template <uint32_t kHeads>
TS_INLINE void AddToHeads(V4 a, float* sums) {
  float lanes[4];
  _mm_storeu_ps(lanes, a);
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) sums[h] += lanes[h];
}

// The page's distances times q over 2^8, for exact logits: [head][channels], then zeros up to whole
// steps of ExactSums.
template <uint32_t kHeads>
TS_INLINE void ScaleQueriesExactly(const uint8_t* distances, uint32_t channels, const int16_t* q,
                                   int16_t (*out)[kPlanesHeadDimMax]) {
  for (uint32_t c = 0; c < RoundUp(channels, 16 * kCodeGroups); c += kWordLanes) {
    const VI distance = c < channels
                            ? ShiftLeftWords(LoadWordsUnsigned(distances + c, channels - c), 7)
                            : ZeroInt();
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      const VI code = LoadInt(q + (uint64_t)h * channels + Smaller(c, channels));
      StoreInt(out[h] + c, MulHighWords(code, distance));
    }
  }
}

// Sums over channels of a token's codes, less 128, times q16, a lane for each head.
template <uint32_t kHeads>
TS_INLINE V4 ExactSums(const PlanesLayout& at, const uint8_t* page, uint32_t t,
                       const int16_t (*q16)[kPlanesHeadDimMax]) {
  constexpr uint32_t kVectors = 16 * kCodeGroups / kWordLanes;
  const uint8_t* low = page + at.low_at + t * at.low_bytes;
  VI sums[4];
  TS_UNROLL for (uint32_t h = 0; h < 4; ++h) sums[h] = ZeroInt();
  for (uint32_t group = 0; group < at.channels / 16; group += kCodeGroups) {
    VI codes[kVectors];
    JoinCodes(page + at.upper_at + group * 64 + t * 4, low + at.channels / 2 + group * 4,
              low + group * 8, codes);
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      TS_UNROLL for (uint32_t v = 0; v < kVectors; ++v) {
        sums[h] = DotInt16(sums[h], codes[v], LoadInt(q16[h] + group * 16 + v * kWordLanes));
      }
    }
  }
  return _mm_cvtepi32_ps(FoldFourInt(sums[0], sums[1], sums[2], sums[3]));
}

}  // namespace
}  // namespace tinyserve

#endif  // TINYSERVE_KERNELS_CPU_CASCADE_EXACT_INL_
