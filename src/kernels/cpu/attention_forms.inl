// The forms in which prompt attention multiplies, and the tiles of keys and values in each form.
//
// A form packs kPer numbers of one sum into a 32-bit lane: one f32, two int16 or four bytes. Both
// products of attention then have one shape, rows of packed numbers (queries, or weights) against a
// tile (keys, or values) whose lanes are outputs:
//
//   keys   [ceil(dim / kPer)][kTileKeys][kPer]       lanes: keys; sums over channels
//   values [kTileKeys / kPer][padded dim][kPer]      lanes: channels; sums over keys
//
// Integer codes have a scale for each query row, each key and each value row: never one over
// several queries or several keys, so that a row's result depends on its own keys alone. The scale
// of a value row is folded into the weights, which are then coded with a scale of their row and
// tile.
#include "kernels/cpu/attention_math.inl"
#include "kernels/cpu/attention_page.inl"

namespace tinyserve {
namespace {

constexpr uint32_t kTileKeys = 64;
constexpr uint32_t kTileUnits = kTileKeys / kUnitTokens;

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

// f32 multiply-adds, unscaled.
struct FloatForm {
  using Acc = VF;
  static constexpr uint32_t kPer = 1;
  static constexpr bool kScaled = false;
  static constexpr uint32_t kRows = 6;  // query rows of a register block
  static constexpr int kExpDegree = 6;
  static TS_INLINE Acc Clear() { return Zero(); }
  static TS_INLINE Acc Dot(Acc acc, VI a, VI b) { return Fma((VF)a, (VF)b, acc); }
  static TS_INLINE VF ToF32(Acc acc) { return acc; }
};

// int16 pairs into int32. Codes are as wide as the sum allows: 12 to 13 bits, so that this is
// nearly as exact as f16 itself.
struct WordForm {
  using Acc = VI;
  static constexpr uint32_t kPer = 2;
  static constexpr bool kScaled = true;
  static constexpr bool kOffset = false;
  static constexpr uint32_t kRows = kLanes == 16 ? 6 : 4;
  static constexpr int kExpDegree = 4;
  static constexpr uint32_t kLaneMask = 0xffff;
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
  static TS_INLINE void StoreWeights(void* p, VI codes) { StoreWords(p, codes); }
};
static_assert(5792ull * 5792 * kTileKeys < 1ull << 31);

// Four u8 * s8 into int32, for targets with the dot instruction. Queries are stored as code + 128;
// what the offset adds to a sum, 128 times the sum of the key's codes, is taken off beforehand.
struct ByteForm {
  using Acc = VI;
  static constexpr uint32_t kPer = 4;
  static constexpr bool kScaled = true;
  static constexpr bool kOffset = true;
  static constexpr uint32_t kRows = kLanes == 16 ? 6 : 4;
  static constexpr int kExpDegree = 4;
  static constexpr uint32_t kLaneMask = 0xff;
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
  static TS_INLINE void StoreWeights(void* p, VI codes) { StoreBytesUnsigned(p, codes); }
};

// Keeps a value in the register it has. Without it GCC 12 computes sums into other registers and
// copies them back, and loads tiles once for each row.
template <class V>
TS_INLINE void Pin(V& value) {
  __asm__("" : "+v"(value));
}

// acc[r][i] = sum over `steps` lanes of row r times vector i of the tile. Strides in bytes.
template <class Form, uint32_t kRows, uint32_t kVectors>
TS_INLINE void MultiplyRows(const char* rows, uint64_t row_stride, const char* tile,
                            uint64_t tile_stride, uint32_t steps,
                            typename Form::Acc (&acc)[kRows][kVectors]) {
  TS_UNROLL for (uint32_t r = 0; r < kRows; ++r) {
    TS_UNROLL for (uint32_t i = 0; i < kVectors; ++i) acc[r][i] = Form::Clear();
  }
  for (uint32_t s = 0; s < steps; ++s) {
    VI b[kVectors];
    TS_UNROLL for (uint32_t i = 0; i < kVectors; ++i) {
      b[i] = LoadInt(tile + i * kVectorBytes);
      Pin(b[i]);
    }
    TS_UNROLL for (uint32_t r = 0; r < kRows; ++r) {
      const VI a = BroadcastInt(rows + r * row_stride);
      TS_UNROLL for (uint32_t i = 0; i < kVectors; ++i) {
        acc[r][i] = Form::Dot(acc[r][i], a, b[i]);
        Pin(acc[r][i]);
      }
    }
    rows += 4;
    tile += tile_stride;
  }
}

// What turns numbers with the largest magnitude `top` into codes up to code_max, and back. Numbers
// too small for that get codes 0.
TS_INLINE void ScalesOf(VF top, float code_max, VF* inverse, VF* scale) {
  const VF tiny = Set(1e-30f);
  *inverse = SelectLess(top, tiny, Zero(), Div(Set(code_max), top));
  *scale = Mul(top, Set(1.0f / code_max));
}

// Member j of a lane's kPer codes.
template <class Form>
TS_INLINE VI Member(VI codes, uint32_t j) {
  return ShiftLeft(j + 1 < Form::kPer ? And(codes, SetInt(Form::kLaneMask)) : codes,
                   (int)(j * 32 / Form::kPer));
}

struct KeyTile {
  char* lanes;      // [ceil(dim / kPer)][kTileKeys] lanes
  float* scale;     // [kTileKeys]
  int32_t* offset;  // [kTileKeys] what sums start from, where the form has an offset
};

struct ValueTile {
  char* lanes;   // [kTileKeys / kPer][padded dim] lanes
  float* scale;  // [kTileKeys]; 0 where there is no token
};

// One vector of keys. Lanes of slots without a token get anything.
template <class Form, class Page>
TS_INLINE void MakeKeys(const typename Page::Elem* k, uint32_t dim, uint32_t stride, uint32_t key,
                        const KeyTile& tile) {
  constexpr uint32_t kPer = Form::kPer;
  char* out = tile.lanes + key * 4;
  if constexpr (!Form::kScaled) {
    for (uint32_t c = 0; c < dim; ++c, k += stride, out += kTileKeys * 4) {
      Store((float*)out, Page::LoadLanes(k));
    }
  } else {
    VF top = Zero();
    for (uint32_t c = 0; c < dim; ++c) {
      top = Max(top, Abs(Page::LoadLanes(k + (uint64_t)c * stride)));
    }
    VF inverse, scale;
    ScalesOf(top, Form::KeyMax(dim), &inverse, &scale);
    Store(tile.scale + key, scale);
    VI sum = ZeroInt();
    for (uint32_t c = 0; c < dim; c += kPer, out += kTileKeys * 4) {
      VI lane = ZeroInt();
      TS_UNROLL for (uint32_t j = 0; j < kPer; ++j) {
        if (c + j >= dim) break;
        const VI codes = ToInt(Mul(Page::LoadLanes(k), inverse));
        k += stride;
        if (Form::kOffset) sum = AddInt(sum, codes);
        lane = Or(lane, Member<Form>(codes, j));
      }
      StoreInt(out, lane);
    }
    if (Form::kOffset) StoreInt(tile.offset + key, SubInt(ZeroInt(), ShiftLeft(sum, 7)));
  }
}

template <class Form, class Page>
void MakeKeyTile(const Unit<Page>* units, uint32_t tokens, uint32_t dim, uint32_t stride,
                 const KeyTile& tile) {
  for (uint32_t key = 0; key < tokens; key += kLanes) {
    MakeKeys<Form, Page>(units[key / kUnitTokens].k + key % kUnitTokens, dim, stride, key, tile);
  }
}

// Scales of the value rows, and in `inverse` what makes codes of them.
template <class Form, class Page>
TS_INLINE void ScaleValues(const Unit<Page>* units, uint32_t tokens, uint32_t v_stride,
                           float* inverse, float* scale) {
  for (uint32_t t = 0; t < kTileKeys; t += kLanes) Store(scale + t, Zero());
  for (uint32_t t = 0; t < tokens; ++t) {
    const typename Page::Elem* v =
        units[t / kUnitTokens].v + (uint64_t)(t % kUnitTokens) * v_stride;
    VF top = Zero();
    for (uint32_t c = 0; c < v_stride; c += kLanes) top = Max(top, Abs(Page::LoadLanes(v + c)));
    inverse[t] = MaxLanes(top);
  }
  for (uint32_t t = 0; t < tokens; t += kLanes) {
    const uint32_t n = Smaller(kLanes, tokens - t);
    VF inv, s;
    ScalesOf(LoadFirst(inverse + t, n), Form::ValueMax(), &inv, &s);
    StoreFirst(inverse + t, n, inv);
    StoreFirst(scale + t, n, s);
  }
}

template <class Form, class Page>
void MakeValueTile(const Unit<Page>* units, uint32_t tokens, uint32_t v_stride,
                   const ValueTile& tile) {
  using Elem = typename Page::Elem;
  constexpr uint32_t kPer = Form::kPer;
  float inverse[kTileKeys];
  if constexpr (Form::kScaled) {
    ScaleValues<Form, Page>(units, tokens, v_stride, inverse, tile.scale);
  }
  for (uint32_t t = 0; t < tokens; t += kPer) {
    const Elem* v = units[t / kUnitTokens].v + (uint64_t)(t % kUnitTokens) * v_stride;
    char* out = tile.lanes + (uint64_t)(t / kPer) * v_stride * 4;
    const uint32_t rows = Smaller(kPer, tokens - t);
    for (uint32_t c = 0; c < v_stride; c += kLanes, v += kLanes, out += kVectorBytes) {
      if constexpr (!Form::kScaled) {
        Store((float*)out, Page::LoadLanes(v));
      } else {
        VI lane = ZeroInt();
        TS_UNROLL for (uint32_t j = 0; j < kPer; ++j) {
          if (j >= rows) break;
          const VF row = Page::LoadLanes(v + (uint64_t)j * v_stride);
          lane = Or(lane, Member<Form>(ToInt(Mul(row, Set(inverse[t + j]))), j));
        }
        StoreInt(out, lane);
      }
    }
  }
}

}  // namespace
}  // namespace tinyserve
