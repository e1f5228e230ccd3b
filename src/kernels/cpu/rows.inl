// Operations on single rows: activations into product form, norms, rotary positions.
#include "kernels/acts.h"
#include "kernels/kernels.h"

namespace tinyserve {
namespace {

// ---- activations ----

uint64_t ActRowBytes(ActKind kind, uint32_t cols) {
  uint64_t bytes = 0;
  switch (kind) {
    case ActKind::kF32:
      bytes = (uint64_t)cols * sizeof(float);
      break;
    case ActKind::kQ8:
      bytes = (uint64_t)(cols / kActBlockCols) * sizeof(ActBlock);
      break;
    case ActKind::kBF16:
      bytes = (uint64_t)cols * sizeof(uint16_t);
      break;
  }
  return (bytes + 63) / 64 * 64;
}

TS_INLINE void MakeActBlock(const float* x, ActBlock* out) {
  constexpr uint32_t kVectors = kActBlockCols / kLanes;
  VF v[kVectors];
  VF largest = Zero();
  for (uint32_t i = 0; i < kVectors; ++i) {
    v[i] = Load(x + i * kLanes);
    largest = Max(largest, Abs(v[i]));
  }
  const float absmax = MaxLanes(largest);
  if (!(absmax >= kActAbsmaxMin)) {
    __builtin_memset(out, 0, sizeof *out);
    return;
  }
  const VF inverse = Set(127.0f / absmax);
  VI sums[2] = {ZeroInt(), ZeroInt()};
  for (uint32_t i = 0; i < kVectors; ++i) {
    const VI code = ToInt(Mul(v[i], inverse));
    StoreBytes(out->codes + i * kLanes, code);
    VI& sum = sums[i * 2 / kVectors];
    sum = AddInt(sum, code);
  }
  const int32_t low = SumLanesInt(sums[0]), high = SumLanesInt(sums[1]);
  out->scale = absmax / 127.0f;
  out->scaled_sum = out->scale * (float)(low + high);
  out->half_sums[0] = (int16_t)low;
  out->half_sums[1] = (int16_t)high;
  out->zero = 0;
}

void MakeBF16Row(const float* x, uint32_t cols, uint16_t* out) {
  uint32_t c = 0;
  for (; c + kLanes <= cols; c += kLanes) StoreBF16(out + c, Load(x + c));
  if (c == cols) return;
  uint16_t last[kLanes];
  StoreBF16(last, LoadFirst(x + c, cols - c));
  __builtin_memcpy(out + c, last, (cols - c) * sizeof last[0]);
}

void MakeActs(ActKind kind, const float* x, uint64_t x_stride, uint32_t rows, uint32_t cols,
              uint8_t* out) {
  const uint64_t row_bytes = ActRowBytes(kind, cols);
  for (uint32_t r = 0; r < rows; ++r, x += x_stride, out += row_bytes) {
    uint64_t used = 0;
    switch (kind) {
      case ActKind::kF32:
        used = (uint64_t)cols * sizeof(float);
        __builtin_memcpy(out, x, used);
        break;
      case ActKind::kQ8:
        for (uint32_t c = 0; c < cols; c += kActBlockCols, used += sizeof(ActBlock)) {
          MakeActBlock(x + c, (ActBlock*)(out + used));
        }
        break;
      case ActKind::kBF16:
        used = (uint64_t)cols * sizeof(uint16_t);
        MakeBF16Row(x, cols, (uint16_t*)out);
        break;
    }
    __builtin_memset(out + used, 0, row_bytes - used);
  }
}

// ---- norms: four vector sums, so that additions overlap, in an order fixed by `cols` ----

constexpr uint32_t kNormSums = 4;

// Sum over the row of f(x), f(0) = 0 for the lanes past its end.
template <class Function>
TS_INLINE float SumRow(const float* x, uint32_t cols, Function f) {
  VF sums[kNormSums] = {Zero(), Zero(), Zero(), Zero()};
  uint32_t c = 0;
  for (; c + kNormSums * kLanes <= cols; c += kNormSums * kLanes) {
    for (uint32_t i = 0; i < kNormSums; ++i) sums[i] = f(sums[i], Load(x + c + i * kLanes), kLanes);
  }
  for (; c < cols; c += kLanes) {
    const uint32_t n = cols - c < kLanes ? cols - c : kLanes;
    sums[0] = f(sums[0], LoadFirst(x + c, n), n);
  }
  return SumLanes(Add(Add(sums[0], sums[1]), Add(sums[2], sums[3])));
}

// out[c] = f(x[c], c), by vectors and then by a partial one; f loads what it needs with LoadAt.
template <class Function>
TS_INLINE void MapRow(const float* x, uint32_t cols, float* out, Function f) {
  uint32_t c = 0;
  for (; c + kLanes <= cols; c += kLanes) Store(out + c, f(Load(x + c), c, kLanes));
  if (c < cols) StoreFirst(out + c, cols - c, f(LoadFirst(x + c, cols - c), c, cols - c));
}

TS_INLINE VF LoadAt(const float* p, uint32_t n) { return n == kLanes ? Load(p) : LoadFirst(p, n); }

void RmsNorm(const float* x, uint64_t x_stride, uint32_t rows, uint32_t cols, const float* weight,
             float eps, float* out, uint64_t out_stride) {
  for (uint32_t r = 0; r < rows; ++r, x += x_stride, out += out_stride) {
    const float squares = SumRow(x, cols, [](VF sum, VF v, uint32_t) { return Fma(v, v, sum); });
    const VF scale = Set(1.0f / Sqrt(squares / (float)cols + eps));
    MapRow(x, cols, out,
           [&](VF v, uint32_t c, uint32_t n) { return Mul(Mul(v, scale), LoadAt(weight + c, n)); });
  }
}

void LayerNorm(const float* x, uint64_t x_stride, uint32_t rows, uint32_t cols, const float* weight,
               const float* bias, float eps, float* out, uint64_t out_stride) {
  for (uint32_t r = 0; r < rows; ++r, x += x_stride, out += out_stride) {
    const float sum = SumRow(x, cols, [](VF s, VF v, uint32_t) { return Add(s, v); });
    const VF mean = Set(sum / (float)cols);
    const float squares = SumRow(x, cols, [&](VF s, VF v, uint32_t n) {
      const VF centred = SelectFirst(n, Sub(v, mean), Zero());
      return Fma(centred, centred, s);
    });
    const VF scale = Set(1.0f / Sqrt(squares / (float)cols + eps));
    MapRow(x, cols, out, [&](VF v, uint32_t c, uint32_t n) {
      return Fma(Mul(Sub(v, mean), scale), LoadAt(weight + c, n), LoadAt(bias + c, n));
    });
  }
}

// ---- rotary positions ----

TS_INLINE void RotatePair(float* a, float* b, float cos, float sin) {
  const float x = *a, y = *b;
  *a = __builtin_fmaf(x, cos, -(y * sin));
  *b = __builtin_fmaf(y, cos, x * sin);
}

// Pairs (2i, 2i + 1) of one head.
TS_INLINE void RotateInterleaved(float* x, uint32_t pairs, const float* cos_sin) {
  uint32_t i = 0;
  for (; 2 * i + kLanes <= 2 * pairs; i += kLanes / 2) {
    Store(x + 2 * i, RotatePairs(Load(x + 2 * i), Load(cos_sin + 2 * i)));
  }
  for (; i < pairs; ++i) RotatePair(x + 2 * i, x + 2 * i + 1, cos_sin[2 * i], cos_sin[2 * i + 1]);
}

// Pairs (i, i + pairs) of one head.
TS_INLINE void RotateHalves(float* x, uint32_t pairs, const float* cos_sin) {
  uint32_t i = 0;
  for (; i + kLanes <= pairs; i += kLanes) {
    VF cos, sin;
    Deinterleave(Load(cos_sin + 2 * i), Load(cos_sin + 2 * i + kLanes), &cos, &sin);
    const VF a = Load(x + i), b = Load(x + pairs + i);
    Store(x + i, Fma(a, cos, Sub(Zero(), Mul(b, sin))));
    Store(x + pairs + i, Fma(b, cos, Mul(a, sin)));
  }
  for (; i < pairs; ++i) RotatePair(x + i, x + pairs + i, cos_sin[2 * i], cos_sin[2 * i + 1]);
}

void Rope(float* x, uint32_t heads, uint32_t head_dim, uint32_t rotary_dim, bool interleaved,
          const float* cos_sin) {
  for (uint32_t h = 0; h < heads; ++h, x += head_dim) {
    if (interleaved) {
      RotateInterleaved(x, rotary_dim / 2, cos_sin);
    } else {
      RotateHalves(x, rotary_dim / 2, cos_sin);
    }
  }
}

}  // namespace
}  // namespace tinyserve
