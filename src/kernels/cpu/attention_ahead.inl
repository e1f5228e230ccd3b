// Blocks of 64 tokens, by which both kernels go through the pages, and the prefetching of the next.
#ifndef TINYSERVE_KERNELS_CPU_ATTENTION_AHEAD_INL_
#define TINYSERVE_KERNELS_CPU_ATTENTION_AHEAD_INL_

#include "kernels/cpu/attention_page.inl"

namespace tinyserve {
namespace {

constexpr uint32_t kBlockTokens = 64;
constexpr uint32_t kBlockUnits = kBlockTokens / kUnitTokens;
constexpr uint32_t kBlockPages = kBlockTokens / 4;  // at most: of the smallest page

// Walks the pages that come next, as fast as the kernels below walk theirs, in the order of memory:
// that is what hardware prefetchers can follow, and go ahead of. To go faster would push what is
// still to be read out of the first-level cache. Starts over at the end, which costs nothing, as
// the lines are then cached.
struct LinesAhead {
  const char* at;
  const char* page_end;
  const char* pages[kBlockPages];
  uint32_t count, page;
  uint32_t page_bytes;
};

TS_INLINE uint32_t LinesOf(const LinesAhead& ahead) {
  return ahead.count * (ahead.page_bytes / kLineBytes);
}

// Prefetches the next kBytes, and moves past them if `moves`.
template <uint32_t kBytes>
TS_INLINE void PrefetchAhead(LinesAhead& ahead, bool moves = true) {
  TS_UNROLL for (uint32_t b = 0; b < kBytes; b += kLineBytes) PrefetchLine(ahead.at + b);
  ahead.at += moves ? kBytes : 0;
  if (ahead.at >= ahead.page_end) {
    ahead.page = ahead.page + 1 < ahead.count ? ahead.page + 1 : 0;
    ahead.at = ahead.pages[ahead.page];
    ahead.page_end = ahead.at + ahead.page_bytes;
  }
}

// The pages of the view's tokens from first_token on, one block of them.
TS_INLINE LinesAhead PagesAhead(const KvShape& shape, const KvSlab& slab, const PageView& view,
                                uint32_t first_token) {
  const uint32_t block_pages = kBlockTokens / shape.page_tokens;
  const uint32_t first = first_token / shape.page_tokens;
  LinesAhead ahead;
  ahead.count = Smaller(block_pages, view.count - first);
  for (uint32_t i = 0; i < ahead.count; ++i) {
    ahead.pages[i] = (const char*)PageAt(slab, view.pages[first + i]);
  }
  ahead.page = 0;
  ahead.page_bytes = slab.page_bytes;
  ahead.at = ahead.pages[0];
  ahead.page_end = ahead.at + ahead.page_bytes;
  return ahead;
}

}  // namespace
}  // namespace tinyserve

#endif  // TINYSERVE_KERNELS_CPU_ATTENTION_AHEAD_INL_
