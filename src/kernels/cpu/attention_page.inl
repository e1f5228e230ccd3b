// The inner layout of a page, and how tokens enter and leave it.
//
//   K part: [head_dim][page_tokens]      a vector's lanes are tokens, so a logit needs no sum over
//   lanes V part: [page_tokens][padded dim]    a vector's lanes are channels; rows are padded with
//   zeros to
//                                        whole vectors, so no kernel has a tail of channels
//
// Slots that hold no token hold anything, NaN included: kernels mask lanes of K and skip rows of V.
#ifndef TINYSERVE_KERNELS_CPU_ATTENTION_PAGE_INL_
#define TINYSERVE_KERNELS_CPU_ATTENTION_PAGE_INL_

#include "kernels/kernels.h"
#include "kernels/ref/coded.h"
#include "page/coded.h"

namespace tinyserve {
namespace {

// Pages are walked in units of 16 tokens; a unit never crosses a page. Of smaller pages, units are
// put together first.
constexpr uint32_t kUnitTokens = 16;
static_assert(kUnitTokens % kLanes == 0);
constexpr uint32_t kTokenVectors = kUnitTokens / kLanes;  // that hold a unit's tokens
constexpr uint32_t kWordLanes = 2 * kLanes;               // int16 lanes of a vector

constexpr uint32_t kLineBytes = 64;

TS_INLINE constexpr uint32_t RoundUp(uint32_t n, uint32_t to) { return (n + to - 1) / to * to; }
TS_INLINE constexpr uint32_t Smaller(uint32_t a, uint32_t b) { return a < b ? a : b; }

TS_INLINE uint32_t PaddedDim(const KvShape& shape) { return RoundUp(shape.head_dim, kLanes); }

TS_INLINE void PrefetchLine(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }

// The element types of pages, and the largest magnitudes of
//   - each of a unit's keys, [channel][page_tokens] from k: to top [kUnitTokens];
//   - a row of n values, n a multiple of kLanes.
struct PageF32 {
  using Elem = float;
  static TS_INLINE VF LoadLanes(const Elem* p) { return Load(p); }
  static TS_INLINE void StoreLanes(Elem* p, VF a) { Store(p, a); }
  static TS_INLINE void KeyTops(const Elem* k, uint32_t dim, uint32_t stride, Elem* top) {
    for (uint32_t t = 0; t < kUnitTokens; t += kLanes) {
      VF highest = Zero();
      for (uint32_t c = 0; c < dim; ++c) {
        highest = Max(highest, Abs(Load(k + (uint64_t)c * stride + t)));
      }
      Store(top + t, highest);
    }
  }
  static TS_INLINE Elem ValueTop(const Elem* v, uint32_t n) {
    VF highest = Zero();
    for (uint32_t c = 0; c < n; c += kLanes) highest = Max(highest, Abs(Load(v + c)));
    return MaxLanes(highest);
  }
};

// Halves without their sign are ordered like the integers of the same bits.
struct HalfTops {
  static TS_INLINE void KeyTops(const uint16_t* k, uint32_t dim, uint32_t stride, uint16_t* top) {
    static_assert(kUnitTokens == 16);
    const __m256i magnitude = _mm256_set1_epi16(0x7fff);
    __m256i highest = _mm256_setzero_si256();
    for (uint32_t c = 0; c < dim; ++c, k += stride) {
      const __m256i bits = _mm256_loadu_si256((const __m256i*)k);
      highest = _mm256_max_epu16(highest, _mm256_and_si256(bits, magnitude));
    }
    _mm256_storeu_si256((__m256i*)top, highest);
  }
  static TS_INLINE uint16_t ValueTop(const uint16_t* v, uint32_t n) {
    const __m128i magnitude = _mm_set1_epi16(0x7fff);
    __m128i highest = _mm_setzero_si128();
    for (uint32_t c = 0; c < n; c += 8) {
      const __m128i bits = _mm_loadu_si128((const __m128i*)(v + c));
      highest = _mm_max_epu16(highest, _mm_and_si128(bits, magnitude));
    }
    // The least of the complements, by the one instruction that folds words over lanes.
    return (uint16_t)~_mm_cvtsi128_si32(
        _mm_minpos_epu16(_mm_xor_si128(highest, _mm_set1_epi16(-1))));
  }
};
struct PageF16 : HalfTops {
  using Elem = uint16_t;
  static TS_INLINE VF LoadLanes(const Elem* p) { return LoadF16(p); }
  static TS_INLINE void StoreLanes(Elem* p, VF a) { StoreF16(p, a); }
};
struct PageBF16 : HalfTops {
  using Elem = uint16_t;
  static TS_INLINE VF LoadLanes(const Elem* p) { return LoadBF16(p); }
  static TS_INLINE void StoreLanes(Elem* p, VF a) { StoreBF16(p, a); }
};

TS_INLINE uint32_t ElemBytes(KvType type) { return type == KvType::kF32 ? 4 : 2; }

// Tokens of a view.
TS_INLINE uint32_t TokensOf(const KvShape& shape, const PageView& view) {
  return view.count == 0 ? 0 : (view.count - 1) * shape.page_tokens + view.last_tokens;
}

// Where a unit's tokens lie.
template <class Page>
struct Unit {
  using Elem = typename Page::Elem;
  const Elem* k;  // channel c of the unit's token t at k[c * page_tokens + t]
  const Elem* v;  // token t's row at v[t * padded dim]
};

template <class Page>
TS_INLINE Unit<Page> UnitAt(const KvShape& shape, const KvSlab& slab, const PageView& view,
                            uint32_t unit) {
  using Elem = typename Page::Elem;
  const uint32_t token = unit * kUnitTokens;
  const uint32_t slot = token % shape.page_tokens;
  const uint8_t* page = PageAt(slab, view.pages[token / shape.page_tokens]);
  const Elem* k = (const Elem*)page;
  const Elem* v = (const Elem*)(page + slab.v_offset);
  return {k + slot, v + (uint64_t)slot * PaddedDim(shape)};
}

TS_INLINE bool IsPartOfUnit(const KvShape& shape) { return shape.page_tokens < kUnitTokens; }
// Elements from one channel of a unit's keys to the next.
TS_INLINE uint32_t UnitStride(const KvShape& shape) {
  return IsPartOfUnit(shape) ? kUnitTokens : shape.page_tokens;
}

// Puts the units of `tokens` tokens from first_token on together, of pages of kTokens tokens, fewer
// than a unit has: to `memory`, for each unit its K part and its V part.
template <class Page, uint32_t kTokens>
TS_INLINE void JoinPages(const KvShape& shape, const KvSlab& slab, const PageView& view,
                         uint32_t first_token, uint32_t tokens, float* memory, Unit<Page>* units) {
  using Elem = typename Page::Elem;
  const uint32_t dim = shape.head_dim, v_stride = PaddedDim(shape);
  for (uint32_t t = 0; t < tokens; t += kTokens) {
    const uint32_t u = t / kUnitTokens, slot = t % kUnitTokens;
    Elem* k = (Elem*)memory + (uint64_t)u * kUnitTokens * (dim + v_stride);
    Elem* v = k + (uint64_t)kUnitTokens * dim;
    const uint8_t* page = PageAt(slab, view.pages[(first_token + t) / kTokens]);
    const Elem* from = (const Elem*)page;
    for (uint32_t c = 0; c < dim; ++c) {
      __builtin_memcpy(k + c * kUnitTokens + slot, from + c * kTokens, kTokens * sizeof(Elem));
    }
    __builtin_memcpy(v + (uint64_t)slot * v_stride, page + slab.v_offset,
                     (uint64_t)kTokens * v_stride * sizeof(Elem));
    units[u] = {k, v};
  }
}
template <class Page>
void JoinUnits(const KvShape& shape, const KvSlab& slab, const PageView& view, uint32_t first_token,
               uint32_t tokens, float* memory, Unit<Page>* units) {
  if (shape.page_tokens == 8) {
    JoinPages<Page, 8>(shape, slab, view, first_token, tokens, memory, units);
  } else {
    JoinPages<Page, 4>(shape, slab, view, first_token, tokens, memory, units);
  }
}

template <class Page>
void AppendToPages(const AppendArgs& args) {
  using Elem = typename Page::Elem;
  const KvShape& shape = args.shape;
  const uint32_t dim = shape.head_dim, v_stride = PaddedDim(shape);
  for (uint32_t i = 0; i < args.tokens; ++i) {
    const uint64_t token = (uint64_t)args.first_slot + i;
    const uint32_t slot = (uint32_t)(token % shape.page_tokens);
    uint8_t* page = PageAt(args.slab, args.pages[token / shape.page_tokens]);
    Elem* k = (Elem*)page + slot;
    Elem* v = (Elem*)(page + args.slab.v_offset) + (uint64_t)slot * v_stride;
    for (uint32_t c = 0; c < dim; c += kLanes) {
      const uint32_t n = Smaller(kLanes, dim - c);
      Page::StoreLanes(v + c, LoadFirst(args.v + i * args.stride + c, n));
      Elem column[kLanes];
      Page::StoreLanes(column, LoadFirst(args.k + i * args.stride + c, n));
      for (uint32_t j = 0; j < n; ++j) k[(uint64_t)(c + j) * shape.page_tokens] = column[j];
    }
  }
}

template <class Page>
void ReadFromPage(const KvShape& shape, const uint8_t* page, uint32_t v_offset, uint32_t slot,
                  float* k, float* v) {
  using Elem = typename Page::Elem;
  const Elem* from_k = (const Elem*)page + slot;
  const Elem* from_v = (const Elem*)(page + v_offset) + (uint64_t)slot * PaddedDim(shape);
  for (uint32_t c = 0; c < shape.head_dim; c += kLanes) {
    const uint32_t n = Smaller(kLanes, shape.head_dim - c);
    Elem column[kLanes] = {};
    for (uint32_t j = 0; j < n; ++j) column[j] = from_k[(uint64_t)(c + j) * shape.page_tokens];
    StoreFirst(k + c, n, Page::LoadLanes(column));
    StoreFirst(v + c, n, Page::LoadLanes(from_v + c));
  }
}

// ---- entries of the table ----

void PageBytes(const KvShape* shape, uint32_t* k_bytes, uint32_t* v_bytes) {
  if (IsCoded(shape->type)) return CodedPageBytes(*shape, k_bytes, v_bytes);
  const uint32_t elem = ElemBytes(shape->type) * shape->page_tokens;
  *k_bytes = RoundUp(shape->head_dim * elem, kLineBytes);
  *v_bytes = RoundUp(PaddedDim(*shape) * elem, kLineBytes);
}

void Append(const AppendArgs* args) {
  switch (args->shape.type) {
    case KvType::kF32:
      return AppendToPages<PageF32>(*args);
    case KvType::kF16:
      return AppendToPages<PageF16>(*args);
    case KvType::kBF16:
      return AppendToPages<PageBF16>(*args);
    default:
      __builtin_trap();  // tokens are written to open pages
  }
}

void ReadToken(const KvShape* shape, const uint8_t* page, uint32_t v_offset, const uint8_t* spread,
               uint32_t slot, float* k, float* v) {
  switch (shape->type) {
    case KvType::kF32:
      return ReadFromPage<PageF32>(*shape, page, v_offset, slot, k, v);
    case KvType::kF16:
      return ReadFromPage<PageF16>(*shape, page, v_offset, slot, k, v);
    case KvType::kBF16:
      return ReadFromPage<PageBF16>(*shape, page, v_offset, slot, k, v);
    default:
      return ref::ReadCoded(*shape, page, spread, slot, k, v);
  }
}

}  // namespace
}  // namespace tinyserve

#endif  // TINYSERVE_KERNELS_CPU_ATTENTION_PAGE_INL_
