// What the cascade's approximate logits and ranks share, whatever they are kept in: sums over the
// keys' upper plane.
#ifndef TINYSERVE_KERNELS_CPU_CASCADE_UPPER_INL_
#define TINYSERVE_KERNELS_CPU_CASCADE_UPPER_INL_

#include "kernels/cpu/cascade_call.inl"

namespace tinyserve {
namespace {

// What of a candidate gives approximate logits: the upper plane, distances and their scale, and
// with them the mean value and the other scales, which are read later.
TS_INLINE void PrefetchUpper(const uint8_t* page, uint32_t low_at) {
  for (uint32_t b = 0; b < low_at; b += kLineBytes) PrefetchLine(page + b);
}

// Where the candidates lie. The first of them are asked for here: nothing else would.
TS_PHASE void FindCandidates(const CascadeCall& call) {
  const CascadeScratch& s = call.s;
  for (uint32_t i = 0; i < kCandidatesAhead; ++i) {
    s.candidates[call.candidates + i] = s.candidates[call.candidates - 1];
  }
  for (uint32_t i = 0; i < call.candidates + kCandidatesAhead; ++i) {
    s.page[i] = call.Page(s.candidates[i]);
    if (i < kCandidatesAhead) PrefetchUpper(s.page[i], call.at.low_at);
  }
}

// c + the four products u8 * s8 of each lane, of which pairs are summed apart on a target without
// byte dots.
TS_INLINE VI AddUpperProducts(VI c, VI upper, VI q) {
  return kHasByteDot ? DotBytes(c, upper, q) : AddInt16(c, PairDot(upper, q));
}
TS_INLINE VI WidenUpperSums(VI sums) {
  return kHasByteDot ? sums : DotInt16(ZeroInt(), sums, SetInt16(1));
}

// Where the four bytes of channels 16 * group .. + 3 lie, as int32, once two vectors of words are
// packed to bytes; those of the next channels follow at PackedNext.
TS_INLINE constexpr uint32_t PackedDword(uint32_t group) {
  const uint32_t channel = group * 16, block = channel / (2 * kWordLanes) * (kWordLanes / 2);
  return block + channel % kWordLanes / 8 * 4 + channel / kWordLanes % 2 * 2;
}
TS_INLINE constexpr uint32_t PackedNext(uint32_t i) { return i / 2 * 4 + i % 2; }

// q times the page's distances over 2^15 as bytes, in the order of PackedDword. Returns their sums
// by head.
template <uint32_t kHeads>
TS_INLINE V4 ScaleQueries(const uint8_t* page, const PlanesLayout& at, const int16_t* q,
                          int8_t (*q8)[kPlanesHeadDimMax]) {
  const uint8_t* distances = page + at.distances_at;
  const uint32_t channels = at.channels;
  VI total[4];
  TS_UNROLL for (uint32_t h = 0; h < 4; ++h) total[h] = ZeroInt();
  for (uint32_t c = 0; c < channels; c += 2 * kWordLanes) {
    const uint32_t left = channels - c;
    const bool second = left > kWordLanes;
    const VI low = LoadWordsUnsigned(distances + c, left);
    const VI high =
        second ? LoadWordsUnsigned(distances + c + kWordLanes, left - kWordLanes) : ZeroInt();
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      const int16_t* codes = q + (uint64_t)h * channels + c;
      const VI bytes = PackWords(MulHighWords(LoadInt(codes), low),
                                 MulHighWords(LoadInt(codes + (second ? kWordLanes : 0)), high));
      StoreInt(q8[h] + c, bytes);
      if constexpr (kHasByteDot) {
        total[h] = DotBytes(total[h], SetByte(1), bytes);
      } else {
        total[h] = AddInt16(total[h], PairDot(SetByte(1), bytes));
      }
    }
  }
  if (!kHasByteDot) {
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) total[h] = WidenUpperSums(total[h]);
  }
  return _mm_cvtepi32_ps(FoldFourInt(total[0], total[1], total[2], total[3]));
}

// Where a vector holds all tokens, there are registers for a second sum of them: a dot waits for
// the one before it.
constexpr uint32_t kUpperChains = 2 / kTokenVectors;

// Adds up over channels the page's upper codes (0 .. 3) times q8, by token.
template <uint32_t kHeads, uint32_t kChannels>
TS_INLINE void AddUpperCodes(const uint8_t* upper, uint32_t runtime_channels,
                             const int8_t (*q8)[kPlanesHeadDimMax], VI (&chains)[kHeads][2]) {
  const uint32_t groups = (kChannels != 0 ? kChannels : runtime_channels) / 16;
  const VI three = SetByte(3);
  const auto add = [&](uint32_t group) __attribute__((always_inline)) {
    const uint32_t at = PackedDword(group);
    TS_UNROLL for (uint32_t i = 0; i < 4; ++i) {
      TS_UNROLL for (uint32_t v = 0; v < kTokenVectors; ++v) {
        const VI packed = LoadInt(upper + group * 64 + v * kVectorBytes);
        const VI codes = And(ShiftRight(packed, 2 * (int)i), three);
        TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
          const VI q = BroadcastInt(q8[h] + 4 * (at + PackedNext(i)));
          VI& sum = chains[h][v + (kUpperChains == 2 ? i % 2 : 0)];
          sum = AddUpperProducts(sum, codes, q);
          Pin(sum);
        }
      }
    }
  };
  if constexpr (kChannels != 0) {
    TS_UNROLL for (uint32_t group = 0; group < kChannels / 16; ++group) add(group);
  } else {
    for (uint32_t group = 0; group < groups; ++group) add(group);
  }
}

// ---- ranks of tokens ----

// Ranks of tokens are bins of 1/8 octave up to 2^4, which no weight reaches, from kLowestRank to
// kHighestRank; 255 is left to pages that are forced.
constexpr int32_t kLowestBin = (127 + 4) * 8 - 255;
constexpr uint8_t kLowestRank = 1, kHighestRank = 254;

TS_INLINE uint32_t RankOf(float weight) {
  int32_t bits;
  __builtin_memcpy(&bits, &weight, sizeof bits);
  const int32_t rank = (bits >> 20) - kLowestBin;
  return rank < kLowestRank ? kLowestRank : Smaller((uint32_t)rank, kHighestRank);
}

// Tokens of pages that are forced get the highest rank of all; what whole vectors read past the
// last token is 0.
TS_INLINE void ForceRanks(const CascadeCall& call, uint32_t tokens) {
  const CascadeScratch& s = call.s;
  // Candidates are in order: those that are forced are the first and the last.
  const auto force = [&](uint32_t i) __attribute__((always_inline)) {
    _mm_storeu_si128((__m128i*)(s.rank + i * kPlanesTokens), _mm_set1_epi8((char)255));
  };
  const uint32_t candidates = call.candidates, newest = call.args.count - call.args.recent;
  for (uint32_t i = 0; i < candidates && s.candidates[i] < call.args.sink; ++i) force(i);
  for (uint32_t i = candidates; i > 0 && s.candidates[i - 1] >= newest; --i) force(i - 1);
  for (uint32_t t = tokens; t < RoundUp(tokens, kVectorBytes); ++t) s.rank[t] = 0;
}

}  // namespace
}  // namespace tinyserve

#endif  // TINYSERVE_KERNELS_CPU_CASCADE_UPPER_INL_
