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

// y += w * x over `steps` columns (or pairs), of M rows by the strips of a panel.
template <class C, int M>
TS_INLINE void ColumnTile(const uint8_t* panel, const uint8_t* acts, uint64_t act_row_bytes,
                          uint32_t steps, VF (&y)[M][kStrips]) {
  for (uint32_t s = 0; s < steps; ++s, panel += kStrips * C::kBytes, acts += 4) {
    Prefetch(panel + kPrefetchBytes);
    decltype(C::LoadColumn(panel)) w[kStrips];
    TS_UNROLL
    for (uint32_t p = 0; p < kStrips; ++p) w[p] = C::LoadColumn(panel + p * C::kBytes);
    TS_UNROLL
    for (int m = 0; m < M; ++m) {
      TS_UNROLL
      for (uint32_t p = 0; p < kStrips; ++p) {
        y[m][p] = C::Step(y[m][p], w[p], acts + (uint64_t)m * act_row_bytes);
      }
    }
  }
}

}  // namespace
}  // namespace tinyserve
