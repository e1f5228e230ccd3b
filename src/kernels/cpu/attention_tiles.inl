// Tiles of 64 keys and of their values in the forms of prompt attention:
//
//   keys   [ceil(dim / kPer)][kTileKeys][kPer]       lanes: keys; sums over channels
//   values [kTileKeys / kPer][padded dim][kPer]      lanes: channels; sums over keys
#include "kernels/cpu/attention_forms.inl"

namespace tinyserve {
namespace {

// What turns numbers with the largest magnitude `top` into codes up to code_max, and back. Numbers
// too small for that get codes 0.
TS_INLINE void ScalesOf(VF top, float code_max, VF* inverse, VF* scale) {
  const VF tiny = Set(1e-30f);
  *inverse = SelectLess(top, tiny, Zero(), Div(Set(code_max), top));
  *scale = Mul(top, Set(1.0f / code_max));
}

// x * to_codes rounded to integers, in the low 22 bits of each lane; the upper ones are not theirs.
constexpr float kCodeMagic = 12582912.0f;  // 1.5 * 2^23
TS_INLINE VI LowCodes(VF x, VF to_codes) { return (VI)Fma(x, to_codes, Set(kCodeMagic)); }

// Lanes whose lower half is that of a's lanes, and the upper half the lower one of b's.
TS_INLINE VI LowHalves(VI a, VI b) {
#if defined(__AVX512F__)
  return _mm512_mask_blend_epi16(0xaaaaaaaau, a, ShiftLeft(b, 16));
#else
  return _mm256_blend_epi16(a, ShiftLeft(b, 16), 0xaa);
#endif
}

// Packs kPer vectors of low codes; member i of a lane comes from codes[i].
template <uint32_t kPer>
TS_INLINE VI PackCodes(const VI (&codes)[kPer]) {
  static_assert(kPer == 2 || kPer == 4);
  if constexpr (kPer == 2) {
    return LowHalves(codes[0], codes[1]);
  } else {
    const VI even = And(LowHalves(codes[0], codes[2]), SetInt(0x00ff00ff));
    return Or(even, ShiftLeft(And(LowHalves(codes[1], codes[3]), SetInt(0x00ff00ff)), 8));
  }
}

struct KeyTile {
  char* lanes;      // [ceil(dim / kPer)][kTileKeys] lanes
  float* scale;     // [kTileKeys]
  int32_t* offset;  // [kTileKeys] what sums start from, where the form has an offset
};

struct ValueTile {
  char* lanes;   // [kTileKeys / kPer][padded dim] lanes, in the order of ValueSteps
  float* scale;  // [kTileKeys]; 0 where there is no token
};

// The prefetching of the next tile's lines, spread over the work on this one: what is fetched in
// one go waits for itself. The making of a tile is kMakeParts of that work.
struct Pace {
  static constexpr uint32_t kMakeParts = 16;
  LinesAhead ahead;
  uint32_t lines;  // of each part

  TS_INLINE void Go(uint32_t parts = 1) {
    for (uint32_t i = 0; i < parts * lines; ++i) PrefetchAhead<kLineBytes>(ahead);
  }
};

// One vector of keys with the magnitudes `top`. Lanes of slots without a token get anything.
template <class Form, class Page>
TS_INLINE void MakeKeys(const typename Page::Elem* k, uint32_t dim, uint32_t stride, VF top,
                        uint32_t key, const KeyTile& tile) {
  constexpr uint32_t kPer = Form::kPer;
  char* out = tile.lanes + key * 4;
  VF to_codes, scale;
  ScalesOf(top, Form::KeyMax(dim), &to_codes, &scale);
  Store(tile.scale + key, scale);
  VI sum = ZeroInt();
  for (uint32_t c = 0; c < dim; c += kPer, out += kTileKeys * 4) {
    VI codes[kPer];
    TS_UNROLL for (uint32_t i = 0; i < kPer; ++i) {
      // Channels past the last count as 0 times that one.
      const bool present = c + i < dim;
      codes[i] = LowCodes(Page::LoadLanes(k), present ? to_codes : Zero());
      if (c + i + 1 < dim) k += stride;
      if (Form::kOffset) sum = AddInt(sum, codes[i]);
    }
    StoreInt(out, PackCodes<kPer>(codes));
  }
  if constexpr (Form::kOffset) {
    const VI magic = (VI)Set(kCodeMagic);
    const VI extra = MulInt(magic, SetInt((int32_t)RoundUp(dim, kPer)));
    StoreInt(tile.offset + key, ShiftLeft(SubInt(extra, sum), 7));
  }
}

// Half of the parts.
template <class Form, class Page>
void MakeKeyTile(const Unit<Page>* units, uint32_t tokens, uint32_t dim, uint32_t stride,
                 Pace& pace, const KeyTile& tile) {
  using Elem = typename Page::Elem;
  for (uint32_t key = 0; key < tokens; key += kUnitTokens) {
    const Elem* k = units[key / kUnitTokens].k;
    pace.Go();
    if constexpr (!Form::kScaled) {
      pace.Go();
      for (uint32_t c = 0; c < dim; ++c, k += stride) {
        float* out = (float*)tile.lanes + c * kTileKeys + key;
        for (uint32_t t = 0; t < kUnitTokens; t += kLanes) Store(out + t, Page::LoadLanes(k + t));
      }
    } else {
      Elem top[kUnitTokens];
      Page::KeyTops(k, dim, stride, top);
      pace.Go();
      for (uint32_t t = 0; t < kUnitTokens; t += kLanes) {
        MakeKeys<Form, Page>(k + t, dim, stride, Page::LoadLanes(top + t), key + t, tile);
      }
    }
  }
}

// Scales of the value rows, and in `inverse` what makes codes of them.
template <class Form, class Page>
TS_INLINE void ScaleValues(const Unit<Page>* units, uint32_t tokens, uint32_t v_stride, Pace& pace,
                           float* inverse, float* scale) {
  typename Page::Elem top[kTileKeys] = {};
  for (uint32_t t = 0; t < tokens; ++t) {
    if (t % kUnitTokens == 0) pace.Go();
    top[t] =
        Page::ValueTop(units[t / kUnitTokens].v + (uint64_t)(t % kUnitTokens) * v_stride, v_stride);
  }
  for (uint32_t t = 0; t < kTileKeys; t += kLanes) {
    VF to_codes, from_codes;
    ScalesOf(Page::LoadLanes(top + t), Form::ValueMax(), &to_codes, &from_codes);
    Store(inverse + t, to_codes);
    Store(scale + t, from_codes);
  }
}

// Lanes hold keys that are kLanes apart, so that vectors of weights pack lane by lane: lane j of
// group g holds the keys (g * kPer + i) * kLanes + j, i < kPer. Lanes that the first `keys` keys
// reach into:
template <class Form>
TS_INLINE uint32_t ValueSteps(uint32_t keys) {
  constexpr uint32_t kGroupKeys = Form::kPer * kLanes;
  return keys / kGroupKeys * kLanes + Smaller(keys % kGroupKeys, kLanes);
}

// The other half.
template <class Form, class Page>
void MakeValueTile(const Unit<Page>* units, uint32_t tokens, uint32_t v_stride, Pace& pace,
                   const ValueTile& tile) {
  using Elem = typename Page::Elem;
  constexpr uint32_t kPer = Form::kPer, kStepsPerPart = kUnitTokens / kPer;
  float inverse[kTileKeys];
  if constexpr (Form::kScaled) {
    ScaleValues<Form, Page>(units, tokens, v_stride, pace, inverse, tile.scale);
  }
  for (uint32_t step = 0; step < ValueSteps<Form>(tokens); ++step) {
    if (step % kStepsPerPart == 0) pace.Go(Form::kScaled ? 1 : 2);
    const uint32_t first = step / kLanes * kPer * kLanes + step % kLanes;
    const Elem* v[kPer];
    VF to_codes[kPer];
    TS_UNROLL for (uint32_t i = 0; i < kPer; ++i) {
      // Keys past the last token count as 0 times the first of the lane.
      const bool present = first + i * kLanes < tokens;
      const uint32_t t = present ? first + i * kLanes : first;
      v[i] = units[t / kUnitTokens].v + (uint64_t)(t % kUnitTokens) * v_stride;
      to_codes[i] = Set(Form::kScaled && present ? inverse[t] : 0.0f);
    }
    char* out = tile.lanes + (uint64_t)step * v_stride * 4;
    for (uint32_t c = 0; c < v_stride; c += kLanes, out += kVectorBytes) {
      if constexpr (!Form::kScaled) {
        Store((float*)out, Page::LoadLanes(v[0] + c));
      } else {
        VI codes[kPer];
        TS_UNROLL for (uint32_t i = 0; i < kPer; ++i) {
          codes[i] = LowCodes(Page::LoadLanes(v[i] + c), to_codes[i]);
        }
        StoreInt(out, PackCodes<kPer>(codes));
      }
    }
  }
}

}  // namespace
}  // namespace tinyserve
