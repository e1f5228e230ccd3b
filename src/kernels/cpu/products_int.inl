// Integer products: packed codes times int8 activations.
//
// y[lane] = sum over blocks of 32 columns, in increasing order, of
//     fma(int dot, scale_w * scale_x, y), then fma(min_w, scaled_sum_x, y)
// for every tile shape, format, width and target alike: the integer part is exact, so all of them
// agree bit for bit.
namespace tinyserve {
namespace {

// Steps of four columns that may be summed in 16 bits where there is no dot instruction, at
// 2 * (largest code) * 127 each: 31496 and 32004. Nibbles take all eight of a block: 30480.
constexpr int kSteps5Bits = 4;
constexpr int kSteps6Bits = 2;

TS_INLINE VI StepDot(VI sum, VI codes, VI x) {
  if constexpr (kHasByteDot) return DotBytes(sum, codes, x);
  sum = AddInt16(sum, PairDot(codes, x));
  // Added now: a compiler that rearranges integer sums into trees keeps every product alive and
  // spills them all.
  TS_OPAQUE(sum);
  return sum;
}

// int32 sums of step sums.
TS_INLINE VI WidenSum(VI sum) {
  if constexpr (kHasByteDot) return sum;
  return DotInt16(ZeroInt(), sum, SetInt16(1));
}

template <int M, int P>
TS_INLINE void StepRows(VI (&sums)[M][P], const VI (&codes)[P], const ActBlock* const (&x)[M],
                        uint32_t col) {
  TS_UNROLL
  for (int m = 0; m < M; ++m) {
    const VI a = BroadcastInt(x[m]->codes + col);
    TS_UNROLL
    for (int p = 0; p < P; ++p) sums[m][p] = StepDot(sums[m][p], codes[p], a);
  }
}

template <int M, int P>
TS_INLINE void ClearSums(VI (&sums)[M][P]) {
  TS_UNROLL
  for (int m = 0; m < M; ++m) {
    TS_UNROLL
    for (int p = 0; p < P; ++p) sums[m][p] = ZeroInt();
  }
}

template <int M, int P>
TS_INLINE void WidenSums(VI (&sums)[M][P]) {
  TS_UNROLL
  for (int m = 0; m < M; ++m) {
    TS_UNROLL
    for (int p = 0; p < P; ++p) sums[m][p] = WidenSum(sums[m][p]);
  }
}

template <int M, int P>
TS_INLINE void NibbleSums(const uint8_t* const (&codes)[P], const ActBlock* const (&x)[M],
                          VI (&sums)[M][P]) {
  ClearSums(sums);
  TS_UNROLL
  for (uint32_t v = 0; v < 4; ++v) {
    VI low[P], high[P];
    TS_UNROLL
    for (int p = 0; p < P; ++p) {
      const VI raw = LoadInt(codes[p] + v * kVectorBytes);
      low[p] = And(raw, SetByte(15));
      high[p] = And(ShiftRight(raw, 4), SetByte(15));
    }
    StepRows(sums, low, x, 4 * v);
    StepRows(sums, high, x, 16 + 4 * v);
  }
  WidenSums(sums);
}

template <int M, int P>
TS_INLINE void FiveBitSums(const uint8_t* const (&codes)[P], const ActBlock* const (&x)[M],
                           VI (&sums)[M][P]) {
  VI part[2][M][P];
  TS_UNROLL
  for (uint32_t half = 0; half < 2; ++half) {
    ClearSums(part[half]);
    TS_UNROLL
    for (uint32_t v = kSteps5Bits * half; v < kSteps5Bits * (half + 1); ++v) {
      VI w[P];
      TS_UNROLL
      for (int p = 0; p < P; ++p) w[p] = LoadInt(codes[p] + v * kVectorBytes);
      StepRows(part[half], w, x, 4 * v);
    }
    WidenSums(part[half]);
  }
  TS_UNROLL
  for (int m = 0; m < M; ++m) {
    TS_UNROLL
    for (int p = 0; p < P; ++p) sums[m][p] = AddInt(part[0][m][p], part[1][m][p]);
  }
}

// Without a dot instruction a byte is two nibbles, low + 16 * high, each summed in 16 bits over the
// whole block.
template <int M, int P>
TS_INLINE void ByteSums(const uint8_t* const (&codes)[P], const ActBlock* const (&x)[M],
                        VI (&sums)[M][P]) {
  VI high_sums[M][P];
  ClearSums(sums);
  ClearSums(high_sums);
  TS_UNROLL
  for (uint32_t v = 0; v < 8; ++v) {
    VI low[P], high[P];
    TS_UNROLL
    for (int p = 0; p < P; ++p) {
      low[p] = LoadInt(codes[p] + v * kVectorBytes);
      if constexpr (!kHasByteDot) {
        high[p] = And(ShiftRight(low[p], 4), SetByte(15));
        low[p] = And(low[p], SetByte(15));
      }
    }
    StepRows(sums, low, x, 4 * v);
    if constexpr (!kHasByteDot) StepRows(high_sums, high, x, 4 * v);
  }
  if constexpr (!kHasByteDot) {
    TS_UNROLL
    for (int m = 0; m < M; ++m) {
      TS_UNROLL
      for (int p = 0; p < P; ++p) {
        sums[m][p] = DotInt16(WidenSum(sums[m][p]), high_sums[m][p], SetInt16(16));
      }
    }
  }
}

template <CodeKind kKind, int M, int P>
TS_INLINE void BlockSums(const uint8_t* const (&codes)[P], const ActBlock* const (&x)[M],
                         VI (&sums)[M][P]) {
  if constexpr (kKind == CodeKind::kNibbles) {
    NibbleSums(codes, x, sums);
  } else if constexpr (kKind == CodeKind::kBytes5 && !kHasByteDot) {
    FiveBitSums(codes, x, sums);
  } else {
    ByteSums(codes, x, sums);
  }
}

// Adds a block's sums[..][p] to y[..][strip], scaled.
template <class F, int M, int P>
TS_INLINE void ScaleSums(typename F::Scales& scales, const ActBlock* const (&x)[M],
                         const VI (&sums)[M][P], uint32_t p, VF (&y)[M][kStrips], uint32_t strip) {
  const VF scale = scales.NextScale();
  [[maybe_unused]] VF min;
  if constexpr (F::kHasMin) min = scales.NextMin();
  TS_UNROLL
  for (int m = 0; m < M; ++m) {
    VI sum = sums[m][p];
    if constexpr (F::kOffset != 0) {
      sum = DotInt16(sum, BroadcastInt(x[m]->half_sums), SetInt16(-F::kOffset));
    }
    VF& to = y[m][strip];
    to = Fma(ToFloat(sum), Mul(scale, Broadcast(&x[m]->scale)), to);
    if constexpr (F::kHasMin) to = Fma(min, Broadcast(&x[m]->scaled_sum), to);
  }
}

// Formats that need two sums for each output have no registers left for two strips at once: the
// strips of a block follow each other.
template <class F>
constexpr uint32_t StripsAtOnce() {
  return F::kKind == CodeKind::kBytes8 && !kHasByteDot ? 1 : kStrips;
}

// With each block of the strips' units an equal part of them, scales too, in the order of memory:
// all of it, or each of kShare tiles its share.
template <class F, int kShare>
TS_INLINE void PrefetchPart(const uint8_t** ask) {
  constexpr uint32_t kPart = kStrips * F::kUnitBytes / F::kUnitBlocks / kShare;
  PrefetchRange<kPart>(*ask);
  *ask += kPart;
}

// y of M rows by the strips of a panel over all columns. What lies from `ask` on is prefetched, a
// kShare-th of what is read.
template <class F, int kShare, int M>
TS_INLINE void CodeTile(const uint8_t* panel, const uint8_t* acts, uint64_t act_row_bytes,
                        uint32_t units, const uint8_t* ask, VF (&y)[M][kStrips]) {
  constexpr uint32_t P = StripsAtOnce<F>();
  const ActBlock* x[M];
  for (int m = 0; m < M; ++m) x[m] = (const ActBlock*)(acts + (uint64_t)m * act_row_bytes);
  for (uint32_t u = 0; u < units; ++u, panel += kStrips * F::kUnitBytes) {
    typename F::Scales scales[kStrips];
    TS_UNROLL
    for (uint32_t s = 0; s < kStrips; ++s) scales[s].Open(panel + s * F::kUnitBytes);
    for (uint32_t b = 0; b < F::kUnitBlocks; ++b) {
      PrefetchPart<F, kShare>(&ask);
      TS_UNROLL
      for (uint32_t first = 0; first < kStrips; first += P) {
        // Broadcasts of one pass must not be kept, on the stack, for the next.
        if (first != 0) __asm__ volatile("" ::: "memory");
        const uint8_t* codes[P];
        TS_UNROLL
        for (uint32_t p = 0; p < P; ++p) {
          codes[p] = F::Codes(panel + (first + p) * F::kUnitBytes, b);
        }
        VI sums[M][P];
        BlockSums<F::kKind>(codes, x, sums);
        TS_UNROLL
        for (uint32_t p = 0; p < P; ++p) ScaleSums<F>(scales[first + p], x, sums, p, y, first + p);
      }
      TS_UNROLL
      for (int m = 0; m < M; ++m) ++x[m];
    }
  }
}

// ---- Q6_K: the scales of 16 columns are integers, so they are multiplied in before the
// conversion: exact, at most 32 * 32 * 128 * 127 < 2^24 ----

struct Scales6 {
  VI low, high;  // of columns 0-15 and 16-31: int16 pairs for pair sums, int32 for dot instructions
  VI both;       // int16 pairs (low, high)
};

// `pair`: bytes 0 and 1 of each lane are the block's two scales.
TS_INLINE Scales6 LoadScales6(VI pair) {
  Scales6 s;
  if constexpr (kHasByteDot) {
    s.low = ShiftRightSigned(ShiftLeft(pair, 24), 24);
    s.high = ShiftRightSigned(ShiftLeft(pair, 16), 24);
  } else {
    s.low = SignedBytes<0, 0>(pair);
    s.high = SignedBytes<1, 1>(pair);
  }
  s.both = SignedBytes<0, 1>(pair);
  return s;
}

// Scaled sums of a block's 32 columns, offset taken off.
template <int M>
TS_INLINE void SixBitSums(const uint8_t* codes, const Scales6& scales,
                          const FormatQ6_K::Masks& masks, const ActBlock* const (&x)[M],
                          VI (&sums)[M][1]) {
  VI low_sums[M][1], high_sums[M][1];
  ClearSums(sums);
  TS_UNROLL
  for (uint32_t v = 0; v < 4; ++v) {
    if (v % kSteps6Bits == 0 && (!kHasByteDot || v == 0)) {
      ClearSums(low_sums);
      ClearSums(high_sums);
    }
    VI low[1], high[1];
    FormatQ6_K::LoadCodes(codes, v, masks, &low[0], &high[0]);
    StepRows(low_sums, low, x, 4 * v);
    StepRows(high_sums, high, x, 16 + 4 * v);
    if (kHasByteDot || v % kSteps6Bits != kSteps6Bits - 1) continue;
    TS_UNROLL
    for (int m = 0; m < M; ++m) {
      sums[m][0] = DotInt16(sums[m][0], low_sums[m][0], scales.low);
      sums[m][0] = DotInt16(sums[m][0], high_sums[m][0], scales.high);
    }
  }
  TS_UNROLL
  for (int m = 0; m < M; ++m) {
    if constexpr (kHasByteDot) {
      sums[m][0] = AddInt(MulInt(low_sums[m][0], scales.low), MulInt(high_sums[m][0], scales.high));
    }
    const VI offset = DotInt16(ZeroInt(), BroadcastInt(x[m]->half_sums), scales.both);
    sums[m][0] = SubInt(sums[m][0], ShiftLeft(offset, 5));
  }
}
static_assert(FormatQ6_K::kOffset == 1 << 5);

// y of M rows by the strips of a panel over all columns.
template <int kShare, int M>
TS_INLINE void SixBitTile(const uint8_t* panel, const uint8_t* acts, uint64_t act_row_bytes,
                          uint32_t units, const uint8_t* ask, VF (&y)[M][kStrips]) {
  using F = FormatQ6_K;
  const F::Masks masks;
  const ActBlock* x[M];
  for (int m = 0; m < M; ++m) x[m] = (const ActBlock*)(acts + (uint64_t)m * act_row_bytes);
  for (uint32_t u = 0; u < units; ++u, panel += kStrips * F::kUnitBytes) {
    for (uint32_t b = 0; b < F::kUnitBlocks; ++b) {
      PrefetchPart<F, kShare>(&ask);
      TS_UNROLL
      for (uint32_t s = 0; s < kStrips; ++s) {
        if (s != 0) __asm__ volatile("" ::: "memory");  // as above
        const uint8_t* unit = panel + s * F::kUnitBytes;
        VI pair = LoadInt(unit + F::kScalesAt + b / 2 * kVectorBytes);
        if (b % 2 == 1) pair = ShiftRight(pair, 16);
        VI sums[M][1];
        SixBitSums(F::Codes(unit, b), LoadScales6(pair), masks, x, sums);
        const VF d = LoadF16((const uint16_t*)unit);
        TS_UNROLL
        for (int m = 0; m < M; ++m) {
          y[m][s] = Fma(ToFloat(sums[m][0]), Mul(d, Broadcast(&x[m]->scale)), y[m][s]);
        }
      }
      TS_UNROLL
      for (int m = 0; m < M; ++m) ++x[m];
    }
  }
}

}  // namespace
}  // namespace tinyserve
