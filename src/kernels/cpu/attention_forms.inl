// The forms in which prompt attention multiplies.
//
// A form packs kPer numbers of one sum into a 32-bit lane: one f32, two int16 or four bytes. Both
// products of attention then have one shape: rows of packed numbers (queries, or weights) against a
// tile (keys, or values; attention_tiles.inl) whose lanes are outputs.
//
// Integer codes have a scale for each query row, each key and each value row: never one over
// several queries or several keys, so that a row's result depends on its own keys alone. The scale
// of a value row is folded into the weights, which are then coded with a scale of their row and
// tile.
#ifndef TINYSERVE_KERNELS_CPU_ATTENTION_FORMS_INL_
#define TINYSERVE_KERNELS_CPU_ATTENTION_FORMS_INL_

#include "kernels/cpu/attention_ahead.inl"
#include "kernels/cpu/attention_math.inl"

namespace tinyserve {
namespace {

constexpr uint32_t kTileKeys = kBlockTokens;

#if defined(__AVX512F__)
// Lanes that fit, as kLanes int16 or bytes.
TS_INLINE void StoreWords(void* p, VI a) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(a));
}
TS_INLINE void StoreBytesUnsigned(void* p, VI a) {
  _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(a));
}
#else
TS_INLINE void StoreWords(void* p, VI a) {
  const VI words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, a), 0x08);
  _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(words));
}
TS_INLINE void StoreBytesUnsigned(void* p, VI a) {
  const VI words = _mm256_permute4x64_epi64(_mm256_packus_epi32(a, a), 0x08);
  const __m128i low = _mm256_castsi256_si128(words);
  _mm_storel_epi64((__m128i*)p, _mm_packus_epi16(low, low));
}
#endif

template <bool kFirst, class A, class B>
struct ChoiceOf {
  using Type = A;
};
template <class A, class B>
struct ChoiceOf<false, A, B> {
  using Type = B;
};
template <bool kFirst, class A, class B>
using Choice = typename ChoiceOf<kFirst, A, B>::Type;

// Keeps a value in the register it has. Without it GCC 12 computes integer sums into other
// registers and copies them back, and loads tiles once for each row; fused multiply-adds it does
// well alone.
template <class V>
TS_INLINE void Pin(V& value) {
  __asm__("" : "+v"(value));
}

// Strides of the operands of a product, in bytes.
struct ProductStrides {
  uint64_t row, tile;
};

// acc[r][i] = sum over `steps` lanes of row r times vector i of the tile.
template <class Form, uint32_t kRows, uint32_t kVectors>
TS_INLINE void MultiplyLanes(const char* rows, const char* tile, ProductStrides stride,
                             uint32_t steps, typename Form::Acc (&acc)[kRows][kVectors]) {
  TS_UNROLL for (uint32_t r = 0; r < kRows; ++r) {
    TS_UNROLL for (uint32_t i = 0; i < kVectors; ++i) acc[r][i] = Form::Clear();
  }
  for (uint32_t s = 0; s < steps; ++s) {
    VI b[kVectors];
    TS_UNROLL for (uint32_t i = 0; i < kVectors; ++i) {
      b[i] = LoadInt(tile + i * kVectorBytes);
      if (Form::kPinned) Pin(b[i]);
    }
    TS_UNROLL for (uint32_t r = 0; r < kRows; ++r) {
      const VI a = BroadcastInt(rows + r * stride.row);
      TS_UNROLL for (uint32_t i = 0; i < kVectors; ++i) {
        acc[r][i] = Form::Dot(acc[r][i], a, b[i]);
        if (Form::kPinned) Pin(acc[r][i]);
      }
    }
    rows += 4;
    tile += stride.tile;
  }
}

// f32 multiply-adds, unscaled.
struct FloatForm {
  using Acc = VF;
  static constexpr bool kPinned = false;
  static constexpr uint32_t kPer = 1;
  static constexpr bool kScaled = false;
  static constexpr uint32_t kRows = 6;  // query rows of a register block
  static TS_INLINE Acc Clear() { return Zero(); }
  static TS_INLINE Acc Dot(Acc acc, VI a, VI b) { return Fma((VF)a, (VF)b, acc); }
  static TS_INLINE VF ToF32(Acc acc) { return acc; }
};

// int16 pairs into int32. Codes are as wide as the sum allows: 12 to 13 bits, so that this is
// nearly as exact as f16 itself.
struct WordForm {
  using Acc = VI;
  static constexpr bool kPinned = true;
  static constexpr uint32_t kPer = 2;
  static constexpr bool kScaled = true;
  static constexpr bool kOffset = false;
  static constexpr bool kPairSums = false;
  static constexpr uint32_t kRows = kLanes == 16 ? 6 : 4;
  static TS_INLINE Acc Clear() { return ZeroInt(); }
  static TS_INLINE Acc Dot(Acc acc, VI a, VI b) { return DotInt16(acc, a, b); }
  static TS_INLINE VF ToF32(Acc acc) { return ToFloat(acc); }
  // The largest code of both factors of a sum of n products: n * code^2 < 2^31.
  static TS_INLINE float CodeMax(uint32_t n) {
    uint32_t code = (uint32_t)Sqrt(2147483647.0f / (float)n);
    while ((uint64_t)code * code * n > 2147483647u) --code;
    return (float)Smaller(code, 32767);
  }
  static TS_INLINE float QueryMax(uint32_t dim) { return CodeMax(dim); }
  static TS_INLINE float KeyMax(uint32_t dim) { return CodeMax(dim); }
  static TS_INLINE float WeightMax() { return 5792; }  // CodeMax(kTileKeys)
  static TS_INLINE float ValueMax() { return 5792; }
  static TS_INLINE void StoreQuery(void* p, VI codes) { StoreWords(p, codes); }
};
static_assert(5792ull * 5792 * kTileKeys < 1ull << 31);

// Four u8 * s8 into int32, for targets with the dot instruction. Queries are stored as code + 128;
// what the offset adds to a sum, 128 times the sum of the key's codes, is taken off beforehand.
struct ByteForm {
  using Acc = VI;
  static constexpr bool kPinned = true;
  static constexpr uint32_t kPer = 4;
  static constexpr bool kScaled = true;
  static constexpr bool kOffset = true;
  static constexpr bool kPairSums = false;
  static constexpr uint32_t kRows = kLanes == 16 ? 6 : 4;
  static TS_INLINE Acc Clear() { return ZeroInt(); }
  static TS_INLINE Acc Dot(Acc acc, VI a, VI b) { return DotBytes(acc, a, b); }
  static TS_INLINE VF ToF32(Acc acc) { return ToFloat(acc); }
  static TS_INLINE float QueryMax(uint32_t) { return 127; }
  static TS_INLINE float KeyMax(uint32_t) { return 127; }
  static TS_INLINE float WeightMax() { return 255; }
  static TS_INLINE float ValueMax() { return 127; }
  static TS_INLINE void StoreQuery(void* p, VI codes) {
    StoreBytesUnsigned(p, AddInt(codes, SetInt(128)));
  }
};

// Values and weights as bytes without the dot instruction: products u8 * s8 are summed in 16 bits,
// four of them, before they are widened. So that none overflows, it is not the largest weight of a
// tile but the largest sum of four weights that share a 16-bit sum that becomes the code 255: with
// roundings at most 257, and 257 * 127 < 2^15. A weight that stands out keeps its 8 bits, and of
// many alike each needs fewer, as their errors average out.
struct PairSumForm {
  using Acc = VI;
  static constexpr uint32_t kPer = 4;
  static constexpr bool kScaled = true;
  static constexpr bool kPairSums = true;
  static TS_INLINE VF ToF32(Acc acc) { return ToFloat(acc); }
  static TS_INLINE float WeightMax() { return 255; }
  static TS_INLINE float ValueMax() { return 127; }
};

// As MultiplyLanes, for PairSumForm over a whole tile: lane s of the first half of the keys goes
// with lane s of the second half.
template <uint32_t kRows, uint32_t kVectors>
TS_INLINE void MultiplyPairs(const char* rows, const char* tile, ProductStrides stride,
                             uint32_t steps, VI (&acc)[kRows][kVectors]) {
  constexpr uint32_t kHalfLanes = kTileKeys / PairSumForm::kPer / 2;
  const VI ones = SetInt16(1);
  const char* second = tile + kHalfLanes * stride.tile;
  TS_UNROLL for (uint32_t r = 0; r < kRows; ++r) {
    TS_UNROLL for (uint32_t i = 0; i < kVectors; ++i) acc[r][i] = ZeroInt();
  }
  for (uint32_t s = 0; s < steps; ++s) {
    VI b[kVectors];
    TS_UNROLL for (uint32_t i = 0; i < kVectors; ++i) {
      b[i] = LoadInt(tile + i * kVectorBytes);
      Pin(b[i]);
    }
    TS_UNROLL for (uint32_t r = 0; r < kRows; ++r) {
      const VI a0 = BroadcastInt(rows + r * stride.row);
      const VI a1 = BroadcastInt(rows + r * stride.row + kHalfLanes * 4);
      TS_UNROLL for (uint32_t i = 0; i < kVectors; ++i) {
        const VI sums =
            AddInt16(PairDot(a0, b[i]), PairDot(a1, LoadInt(second + i * kVectorBytes)));
        acc[r][i] = DotInt16(acc[r][i], sums, ones);
        Pin(acc[r][i]);
      }
    }
    rows += 4;
    tile += stride.tile;
    second += stride.tile;
  }
}

// The pairs of forms that prompt attention is compiled for.
struct ExactForms {
  using Keys = FloatForm;
  using Values = FloatForm;
  static constexpr int kExpDegree = 6;
};
struct ByteForms {
  using Keys = ByteForm;
  using Values = ByteForm;
  static constexpr int kExpDegree = 4;
};
// Where there is no dot instruction: logits in bytes would need 16-bit sums of products too, and
// what is left of 8 bits then costs quality, but weights and values bear it.
struct WordForms {
  using Keys = WordForm;
  using Values = Choice<kLanes == 8, PairSumForm, WordForm>;
  static constexpr int kExpDegree = 4;
};

}  // namespace
}  // namespace tinyserve

#endif  // TINYSERVE_KERNELS_CPU_ATTENTION_FORMS_INL_
