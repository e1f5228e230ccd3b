#include "kernels/ref/coded.h"

#include "base/check.h"
#include "kernels/ref/attention.h"
#include "kernels/ref/coding.h"
#include "kernels/ref/planes.h"
#include "kernels/ref/ranges.h"
#include "page/coded.h"

namespace tinyserve::ref {
namespace {

// NaN becomes the largest.
float Clamp(float x) {
  constexpr float kF16Max = 65504.0f;
  const float below = x < kF16Max ? x : kF16Max;
  return below > -kF16Max ? below : -kF16Max;
}

PageNumbers ReadOpen(const SealArgs& args) {
  const uint32_t dim = args.shape.head_dim, tokens = args.shape.page_tokens;
  PageNumbers page{.channels = (dim + 15) / 16 * 16, .keys = {}, .values = {}};
  page.keys.resize(uint64_t{tokens} * page.channels);
  page.values.resize(page.keys.size());
  const uint8_t* open = PageAt(args.open_slab, args.open_page);
  for (uint32_t t = 0; t < tokens; ++t) {
    float* k = page.keys.data() + uint64_t{t} * page.channels;
    float* v = page.values.data() + uint64_t{t} * page.channels;
    ReadToken(&args.open, open, args.open_slab.v_offset, nullptr, t, k, v);
    std::transform(k, k + dim, k, Clamp);
    std::transform(v, v + dim, v, Clamp);
  }
  return page;
}

}  // namespace

void SealPage(const SealArgs* args) {
  TS_CHECK(IsCoded(args->shape.type) && args->shape.page_tokens == kCodedTokens);
  const PageNumbers numbers = ReadOpen(*args);
  uint8_t* page = PageAt(args->slab, args->page);
  uint8_t* spread = PageAt(args->records, args->page) + args->layout.spread_at;
  if (IsRanged(args->shape.type)) {
    SealRanges(args->shape, numbers, page, spread);
  } else {
    SealPlanes(args->shape, numbers, page, spread);
  }
}

void ReadCoded(const KvShape& shape, const uint8_t* page, const uint8_t* spread, uint32_t slot,
               float* k, float* v) {
  if (IsRanged(shape.type)) return ReadRanges(shape, page, spread, slot, k, v);
  ReadPlanes(shape.head_dim, page, spread, slot, k, v);
}

}  // namespace tinyserve::ref
