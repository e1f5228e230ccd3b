// Coded pages of every kind: written from open ones, and read as floats by kernels that read every
// key.
#ifndef TINYSERVE_KERNELS_CPU_CODED_INL_
#define TINYSERVE_KERNELS_CPU_CODED_INL_

#include "kernels/cpu/planes.inl"
#include "kernels/cpu/ranges.inl"
#include "page/coded.h"

namespace tinyserve {
namespace {

// One page as a unit of f32: keys [channel][16], values [16][padded dim]. `spread`: that of its
// record, or its range.
TS_INLINE void UnpackPage(const KvShape& shape, const uint8_t* page, const uint8_t* spread,
                          float* k, float* v) {
  if (IsRanged(shape.type)) return UnpackRanges(shape, page, spread, k, v);
  UnpackPlanes(page, spread, shape.head_dim, k, v);
}

// Floats of kBlockUnits unpacked pages.
TS_INLINE uint64_t UnpackedFloats(uint32_t dim) {
  return (uint64_t)kBlockTokens * (dim + RoundUp(dim, kLanes));
}

// The units of up to kBlockTokens tokens of coded pages, unpacked to `floats`.
TS_INLINE void UnpackUnits(const KvShape& shape, const KvSlab& slab, const KvSlab& records,
                           const MetaLayout& layout, const uint32_t* pages, uint32_t count,
                           float* floats, Unit<PageF32>* units) {
  const uint32_t dim = shape.head_dim;
  float* v = floats + (uint64_t)kBlockTokens * dim;
  for (uint32_t u = 0; u < count; ++u) {
    units[u].k = floats + (uint64_t)u * kUnitTokens * dim;
    units[u].v = v + (uint64_t)u * kUnitTokens * RoundUp(dim, kLanes);
    UnpackPage(shape, PageAt(slab, pages[u]), PageAt(records, pages[u]) + layout.spread_at,
               (float*)units[u].k, (float*)units[u].v);
  }
}

// ---- entries of the table ----

void SealPage(const SealArgs* args) {
  const bool ranged = IsRanged(args->shape.type);
  if (args->shape.head_dim > CodedHeadDimMax(args->shape.type)) __builtin_trap();
  switch (args->open.type) {
    case KvType::kF32:
      return ranged ? SealRanges<PageF32>(*args) : SealPlanes<PageF32>(*args);
    case KvType::kF16:
      return ranged ? SealRanges<PageF16>(*args) : SealPlanes<PageF16>(*args);
    case KvType::kBF16:
      return ranged ? SealRanges<PageBF16>(*args) : SealPlanes<PageBF16>(*args);
    default:
      __builtin_trap();
  }
}

}  // namespace
}  // namespace tinyserve

#endif  // TINYSERVE_KERNELS_CPU_CODED_INL_
