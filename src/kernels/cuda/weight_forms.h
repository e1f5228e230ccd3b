// The forms of weights inside kernels: how a line is read, multiplied and decoded. Included by .cu
// files alone.
#ifndef TINYSERVE_KERNELS_CUDA_WEIGHT_FORMS_H_
#define TINYSERVE_KERNELS_CUDA_WEIGHT_FORMS_H_

#include <math.h>

#include "kernels/cuda/products.h"
#include "kernels/cuda/simt.h"

namespace tinyserve::cuda {

using Words = Line<uint32_t>;

struct ScaleAndMin {
  float scale = 0, min = 0;
};

// Activations of kCols columns that meet one line of codes. `c`: the line's place in its row.
template <uint32_t kCols>
struct CodeChunk {
  uint32_t words[kCols / 4];
  float scale;
  int sum;

  TS_DEVICE void Load(const GeneratedProduct& p, uint32_t row, uint32_t c) {
    const Global<const uint32_t> codes(p.coded.codes, "activation codes");
    TS_UNROLL
    for (uint32_t i = 0; i < kCols / 16; ++i) {
      const auto line =
          codes.template Get<Words>(uint64_t{row} * (p.weights.cols / 4) + c * (kCols / 4) + 4 * i);
      TS_UNROLL
      for (uint32_t k = 0; k < 4; ++k) words[4 * i + k] = line.at[k];
    }
    const uint64_t block = uint64_t{row} * (p.weights.cols / 32) + c * kCols / 32;
    scale = Global<const float>(p.coded.scales, "activation scales").Get(block);
    const uint32_t halves = Global<const uint32_t>(p.coded.sums, "activation sums").Get(block);
    const int low = static_cast<int16_t>(halves & 0xffff),
              high = static_cast<int16_t>(halves >> 16);
    sum = kCols == 32 ? low + high : c % 2 == 0 ? low : high;
  }
};

template <uint32_t kCols>
struct FloatChunk {
  float x[kCols];

  TS_DEVICE void Load(const GeneratedProduct& p, uint32_t row, uint32_t c) {
    const Global<const float> floats(p.floats, "activations");
    TS_UNROLL
    for (uint32_t i = 0; i < kCols / 4; ++i) {
      const auto line =
          floats.template Get<Line<float>>(uint64_t{row} * p.weights.cols + c * kCols + 4 * i);
      TS_UNROLL
      for (uint32_t k = 0; k < 4; ++k) x[4 * i + k] = line.at[k];
    }
  }
};

struct alignas(4) TwoHalves {
  F16 at[2];
};
struct alignas(8) TwoFloats {
  float at[2];
};

// A code of four in a word, signed.
TS_DEVICE float CodeAt(uint32_t word, uint32_t i) {
  return static_cast<float>(static_cast<int8_t>(word >> (8 * i) & 0xff));
}

// Two halves in a word; what lies beyond the largest counts as that.
constexpr float kF16Max = 65504.0f;
TS_DEVICE float ClampToF16(float x) {
  return x > kF16Max ? kF16Max : x < -kF16Max ? -kF16Max : x;  // what is no number stays none
}
TS_DEVICE uint32_t HalfPair(float low, float high) {
  return ToF16(ClampToF16(low)).bits | static_cast<uint32_t>(ToF16(ClampToF16(high)).bits) << 16;
}

// Each form has: kCols of a line; Acts of such; Scale(view, line of the matrix); Dot(), which adds
// a line's product to y; Values(), the line's weights as floats.
template <bool kMin>
struct NibbleForm {
  static constexpr uint32_t kCols = 32;
  using Acts = CodeChunk<kCols>;

  TS_DEVICE static ScaleAndMin Scale(const Global<const F16>& scales, uint64_t line) {
    if constexpr (!kMin) return {Float(scales.Get(line)), 0};
    const auto both = scales.template Get<TwoHalves>(2 * line);
    return {Float(both.at[0]), Float(both.at[1])};
  }
  TS_DEVICE static float Dot(const Words& w, const ScaleAndMin& s, const Acts& x, float y) {
    int dot = 0;
    TS_UNROLL
    for (uint32_t i = 0; i < 4; ++i) {
      dot = Dp4a(static_cast<int>(w.at[i] & 0x0f0f0f0f), static_cast<int>(x.words[i]), dot);
      dot =
          Dp4a(static_cast<int>(w.at[i] >> 4 & 0x0f0f0f0f), static_cast<int>(x.words[4 + i]), dot);
    }
    if constexpr (!kMin) return fmaf(static_cast<float>(dot - 8 * x.sum), s.scale * x.scale, y);
    y = fmaf(static_cast<float>(dot), s.scale * x.scale, y);
    return fmaf(s.min, x.scale * static_cast<float>(x.sum), y);
  }
  TS_DEVICE static void Values(const Words& w, const ScaleAndMin& s, float (&out)[kCols]) {
    TS_UNROLL
    for (uint32_t i = 0; i < 16; ++i) {
      const uint32_t byte = w.at[i / 4] >> (8 * (i % 4)) & 0xff;
      const float low = static_cast<float>(byte & 15), high = static_cast<float>(byte >> 4);
      out[i] = kMin ? fmaf(low, s.scale, s.min) : (low - 8) * s.scale;
      out[i + 16] = kMin ? fmaf(high, s.scale, s.min) : (high - 8) * s.scale;
    }
  }
};

template <bool kMin>
struct ByteForm {
  static constexpr uint32_t kCols = 16;
  using Acts = CodeChunk<kCols>;

  TS_DEVICE static ScaleAndMin Scale(const Global<const F16>& scales, uint64_t line) {
    if constexpr (!kMin) return {Float(scales.Get(line / 2)), 0};
    const auto both = scales.template Get<TwoFloats>(4 * line);
    return {both.at[0], both.at[1]};
  }
  TS_DEVICE static float Dot(const Words& w, const ScaleAndMin& s, const Acts& x, float y) {
    int dot = 0;
    TS_UNROLL
    for (uint32_t i = 0; i < 4; ++i) {
      dot = Dp4a(static_cast<int>(w.at[i]), static_cast<int>(x.words[i]), dot);
    }
    y = fmaf(static_cast<float>(dot), s.scale * x.scale, y);
    if constexpr (kMin) y = fmaf(s.min, x.scale * static_cast<float>(x.sum), y);
    return y;
  }
  TS_DEVICE static void Values(const Words& w, const ScaleAndMin& s, float (&out)[kCols]) {
    TS_UNROLL
    for (uint32_t i = 0; i < kCols; ++i) out[i] = fmaf(CodeAt(w.at[i / 4], i % 4), s.scale, s.min);
  }
};

// Floats have no scales.
template <class T>
struct FloatWeights {
  static constexpr uint32_t kCols = kLineBytes / sizeof(T);
  using Acts = FloatChunk<kCols>;

  TS_DEVICE static ScaleAndMin Scale(const Global<const F16>&, uint64_t) { return {0, 0}; }
  TS_DEVICE static void Values(const Words& w, const ScaleAndMin&, float (&out)[kCols]) {
    TS_UNROLL
    for (uint32_t i = 0; i < kCols; ++i) {
      if constexpr (sizeof(T) == 4) {
        out[i] = FromBits(w.at[i]);
      } else {
        out[i] = Float(T{static_cast<uint16_t>(w.at[i / 2] >> (16 * (i % 2)))});
      }
    }
  }
  TS_DEVICE static float Dot(const Words& w, const ScaleAndMin& s, const Acts& x, float y) {
    float values[kCols];
    Values(w, s, values);
    TS_UNROLL
    for (uint32_t i = 0; i < kCols; ++i) y = fmaf(values[i], x.x[i], y);
    return y;
  }
};

// Calls f with the form's struct.
template <class F>
Status WithForm(WeightForm form, const F& f) {
  switch (form) {
    case WeightForm::kQ4:
      return f(NibbleForm<false>());
    case WeightForm::kQ4M:
      return f(NibbleForm<true>());
    case WeightForm::kQ8:
      return f(ByteForm<false>());
    case WeightForm::kQ8M:
      return f(ByteForm<true>());
    case WeightForm::kF16:
      return f(FloatWeights<F16>());
    case WeightForm::kBF16:
      return f(FloatWeights<BF16>());
    case WeightForm::kF32:
      return f(FloatWeights<float>());
  }
  return Status(Code::kUnsupported, "a form of weights outside its enumerators");
}

// ---- what becomes of a result -------------------------------------------------------------------

TS_DEVICE float Silu(float x) { return x / (1.0f + expf(-x)); }
TS_DEVICE float GeluTanh(float x) {
  const float u = 0.797884561f * (x + 0.044715f * x * x * x);
  return 0.5f * x * (1.0f + tanhf(u));
}

// Row r's results of weight rows n and n + 1 (n even); the second may be none. `scale`: of both.
TS_DEVICE void Finish(const ProductOut& to, uint32_t weight_rows, uint32_t r, uint32_t n,
                      float first, float second) {
  const Global<float> out(to.out, "products");
  const Global<const float> bias(to.bias, "bias");
  const bool biased = to.bias.count != 0, both = n + 1 < weight_rows;
  if (biased) first += bias.Get(n);
  if (biased && both) second += bias.Get(n + 1);
  const uint64_t at = uint64_t{r} * to.stride;
  switch (to.epilogue) {
    case Epilogue::kSwiGlu:
      out.Set(at + n / 2, Silu(first) * second);
      return;
    case Epilogue::kStore:
      break;
    case Epilogue::kAdd:
      first += out.Get(at + n);
      if (both) second += out.Get(at + n + 1);
      break;
    case Epilogue::kGelu:
      first = GeluTanh(first);
      second = GeluTanh(second);
      break;
  }
  out.Set(at + n, first);
  if (both) out.Set(at + n + 1, second);
}

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_WEIGHT_FORMS_H_
