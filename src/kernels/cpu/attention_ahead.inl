// Blocks of 64 tokens, by which both kernels go through the pages, and the prefetching of the next.
#ifndef TINYSERVE_KERNELS_CPU_ATTENTION_AHEAD_INL_
#define TINYSERVE_KERNELS_CPU_ATTENTION_AHEAD_INL_

#include "kernels/cpu/attention_page.inl"

namespace tinyserve {
namespace {

constexpr uint32_t kBlockTokens = 64;
constexpr uint32_t kBlockUnits = kBlockTokens / kUnitTokens;

// Walks the lines of the pages that come next, one or two a step of the kernels below, in the order
// of memory: that is what hardware prefetchers can follow, and go ahead of. Starts over at the end,
// which costs nothing, as the lines are then cached.
struct LinesAhead {
  const char* line;
  const char* page_end;
  const char* pages[kBlockUnits];
  uint32_t count, page;
  uint32_t page_bytes;
};

template <uint32_t kLines>
TS_INLINE void PrefetchAhead(LinesAhead& ahead) {
  TS_UNROLL for (uint32_t i = 0; i < kLines; ++i) PrefetchLine(ahead.line + i * kLineBytes);
  ahead.line += kLines * kLineBytes;
  if (ahead.line >= ahead.page_end) {
    ahead.page = ahead.page + 1 < ahead.count ? ahead.page + 1 : 0;
    ahead.line = ahead.pages[ahead.page];
    ahead.page_end = ahead.line + ahead.page_bytes;
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
  ahead.line = ahead.pages[0];
  ahead.page_end = ahead.line + ahead.page_bytes;
  return ahead;
}

}  // namespace
}  // namespace tinyserve

#endif  // TINYSERVE_KERNELS_CPU_ATTENTION_AHEAD_INL_
