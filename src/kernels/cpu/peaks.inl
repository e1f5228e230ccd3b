// What this machine can do at most: bytes read from memory, and multiply-adds of each kind done in
// registers.
#include "kernels/kernels.h"

namespace tinyserve {
namespace {

uint64_t ReadBytes(const uint8_t* data, uint64_t bytes) {
  constexpr uint32_t kStreams = 4;
  constexpr uint64_t kStep = kStreams * kVectorBytes;
  static_assert(4096 % kStep == 0);
  VI sums[kStreams] = {ZeroInt(), ZeroInt(), ZeroInt(), ZeroInt()};
  for (uint64_t i = 0; i < bytes; i += kStep) {
    PrefetchRange<kStep>(data + i + kPrefetchBytes);
    for (uint32_t s = 0; s < kStreams; ++s) {
      sums[s] = AddInt64(sums[s], SumBytes(LoadInt(data + i + s * kVectorBytes)));
    }
  }
  alignas(64) uint64_t lanes[kStreams][kVectorBytes / 8];
  uint64_t total = 0;
  for (uint32_t s = 0; s < kStreams; ++s) {
    StoreInt(lanes[s], sums[s]);
    for (uint64_t lane : lanes[s]) total += lane;
  }
  return total;
}

constexpr uint32_t kChains = 10;    // enough to cover the latency of every dot instruction
constexpr uint64_t kRoundDots = 8;  // steps of a round: nibble sums are widened after eight

// Runs rounds of kRoundDots steps over kChains sums; `per_step` multiply-adds each.
template <class Round>
TS_INLINE uint64_t RunRounds(uint64_t multiply_adds, uint64_t per_step, Round round) {
  const uint64_t per_round = per_step * kRoundDots * kChains;
  uint64_t done = 0;
  for (; done < multiply_adds; done += per_round) round();
  return done;
}

uint64_t RunFloatDots(uint64_t multiply_adds) {
  VF sums[kChains];
  for (VF& sum : sums) sum = Zero();
  VF a = Set(0.5f), b = Set(0.25f);
  const uint64_t done = RunRounds(multiply_adds, kLanes, [&] {
    TS_UNROLL
    for (uint64_t step = 0; step < kRoundDots; ++step) {
      TS_OPAQUE(a);
      TS_UNROLL
      for (uint32_t i = 0; i < kChains; ++i) sums[i] = Fma(a, b, sums[i]);
    }
  });
  for (VF& sum : sums) TS_OPAQUE(sum);
  return done;
}

#if defined(__AVX512BF16__)
uint64_t RunBF16Dots(uint64_t multiply_adds) {
  VF sums[kChains];
  for (VF& sum : sums) sum = Zero();
  VI a = SetInt16(0x3f00), b = SetInt16(0x3e80);
  const uint64_t done = RunRounds(multiply_adds, 2 * kLanes, [&] {
    TS_UNROLL
    for (uint64_t step = 0; step < kRoundDots; ++step) {
      TS_OPAQUE(a);
      TS_UNROLL
      for (uint32_t i = 0; i < kChains; ++i) sums[i] = DotBF16(sums[i], a, b);
    }
  });
  for (VF& sum : sums) TS_OPAQUE(sum);
  return done;
}
#endif

// Sums in int32, widened from the 16-bit pair sums at once where there is no dot instruction.
uint64_t RunByteDots(uint64_t multiply_adds) {
  VI sums[kChains];
  for (VI& sum : sums) sum = ZeroInt();
  VI a = SetByte(3), b = SetByte(-5);
  const uint64_t done = RunRounds(multiply_adds, 4 * kLanes, [&] {
    TS_UNROLL
    for (uint64_t step = 0; step < kRoundDots; ++step) {
      TS_UNROLL
      for (uint32_t i = 0; i < kChains; ++i) {
        TS_OPAQUE(a);
        if constexpr (kHasByteDot) {
          sums[i] = DotBytes(sums[i], a, b);
        } else {
          sums[i] = DotInt16(sums[i], PairDot(a, b), SetInt16(1));
        }
      }
    }
  });
  for (VI& sum : sums) TS_OPAQUE(sum);
  return done;
}

// Sums in 16 bits over a round, widened once at its end.
uint64_t RunNibbleDots(uint64_t multiply_adds) {
  if constexpr (kHasByteDot) return RunByteDots(multiply_adds);
  VI total = ZeroInt();
  VI a = SetByte(3), b = SetByte(-5);
  const uint64_t done = RunRounds(multiply_adds, 4 * kLanes, [&] {
    VI sums[kChains];
    for (VI& sum : sums) sum = ZeroInt();
    TS_UNROLL
    for (uint64_t step = 0; step < kRoundDots; ++step) {
      TS_UNROLL
      for (uint32_t i = 0; i < kChains; ++i) {
        TS_OPAQUE(a);
        sums[i] = AddInt16(sums[i], PairDot(a, b));
        TS_OPAQUE(sums[i]);
      }
    }
    for (const VI& sum : sums) total = DotInt16(total, sum, SetInt16(1));
  });
  TS_OPAQUE(total);
  return done;
}

uint64_t RunDots(DotKind kind, uint64_t multiply_adds) {
  switch (kind) {
    case DotKind::kF32:
      return RunFloatDots(multiply_adds);
    case DotKind::kU8S8:
      return RunByteDots(multiply_adds);
    case DotKind::kU4S8:
      return RunNibbleDots(multiply_adds);
    case DotKind::kBF16:
      break;
  }
#if defined(__AVX512BF16__)
  return RunBF16Dots(multiply_adds);
#else
  return 0;
#endif
}

}  // namespace
}  // namespace tinyserve
