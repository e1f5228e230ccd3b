// Products over f32 activations (and, where there is a bfloat16 dot, over bfloat16 ones).
//
// One accumulator for each output, columns in increasing order: y = fma(w[c], x[c], y).
namespace tinyserve {
namespace {

// Elements of a column of one panel: [cols][kLanes].
struct ColumnsF32 {
  static constexpr uint32_t kBytes = 4 * kLanes;
  static constexpr uint32_t kCols = 1;  // of a step; four bytes of activations
  static TS_INLINE VF Step(VF y, VF w, const uint8_t* x) {
    return Fma(w, Broadcast((const float*)x), y);
  }
  static TS_INLINE VF LoadColumn(const uint8_t* p) { return Load((const float*)p); }
};
struct ColumnsF16 : ColumnsF32 {
  static constexpr uint32_t kBytes = 2 * kLanes;
  static TS_INLINE VF LoadColumn(const uint8_t* p) { return LoadF16((const uint16_t*)p); }
};
struct ColumnsBF16 : ColumnsF32 {
  static constexpr uint32_t kBytes = 2 * kLanes;
  static TS_INLINE VF LoadColumn(const uint8_t* p) { return LoadBF16((const uint16_t*)p); }
};
#if defined(__AVX512BF16__)
// Two columns at a time, [cols / 2][kLanes][2], against bfloat16 activations.
struct ColumnPairsBF16 {
  static constexpr uint32_t kBytes = 4 * kLanes;
  static constexpr uint32_t kCols = 2;
  static TS_INLINE VF Step(VF y, VI w, const uint8_t* x) { return DotBF16(y, w, BroadcastInt(x)); }
  static TS_INLINE VI LoadColumn(const uint8_t* p) { return LoadInt(p); }
};
#endif

// y += w * x over one column (or pair), of M rows by the strips of a panel.
template <class C, int M>
TS_INLINE void ColumnStep(const uint8_t* panel, const uint8_t* acts, uint64_t act_row_bytes,
                          VF (&y)[M][kStrips]) {
  decltype(C::LoadColumn(panel)) w[kStrips];
  TS_UNROLL
  for (uint32_t s = 0; s < kStrips; ++s) w[s] = C::LoadColumn(panel + s * C::kBytes);
  TS_UNROLL
  for (int m = 0; m < M; ++m) {
    TS_UNROLL
    for (uint32_t s = 0; s < kStrips; ++s) {
      y[m][s] = C::Step(y[m][s], w[s], acts + (uint64_t)m * act_row_bytes);
    }
  }
}

// The same over `steps` columns (or pairs); what lies from `ask` on is prefetched, a kShare-th of
// what is read.
template <class C, int kShare, int M>
TS_INLINE void ColumnTile(const uint8_t* panel, const uint8_t* acts, uint64_t act_row_bytes,
                          uint32_t steps, const uint8_t* ask, VF (&y)[M][kStrips]) {
  constexpr uint32_t kStepBytes = kStrips * C::kBytes, kAtOnce = 4;
  uint32_t step = 0;
  for (; step + kAtOnce <= steps; step += kAtOnce) {
    PrefetchRange<kAtOnce * kStepBytes / kShare>(ask);
    ask += kAtOnce * kStepBytes / kShare;
    TS_UNROLL
    for (uint32_t i = 0; i < kAtOnce; ++i, panel += kStepBytes, acts += 4) {
      ColumnStep<C>(panel, acts, act_row_bytes, y);
    }
  }
  for (; step < steps; ++step, panel += kStepBytes, acts += 4) {
    ColumnStep<C>(panel, acts, act_row_bytes, y);
  }
}

}  // namespace
}  // namespace tinyserve
