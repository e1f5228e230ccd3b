// For the tests and benchmarks of coded pages: one KV head whose pages are sealed.
#ifndef TINYSERVE_KERNELS_PLANES_TESTING_H_
#define TINYSERVE_KERNELS_PLANES_TESTING_H_

#include <algorithm>
#include <vector>

#include "kernels/attention_testing.h"
#include "page/planes.h"

namespace tinyserve::testing {

// The tokens of `t`, a multiple of 16, in coded pages; the open pages that they came from stay.
class SealedHead {
 public:
  SealedHead(const Kernels& kernels, const Tokens& t, KvType open_type, uint64_t seed,
             uint32_t kinds = kMetaSpread)
      : kernels_(kernels),
        tokens_(t),
        open_(kernels, {open_type, 1, t.head_dim, kPlanesTokens}, t.tokens, seed),
        coded_(kernels, {KvType::kPlanes, 1, t.head_dim, kPlanesTokens}, t.tokens, seed + 1),
        layout_(MetaLayoutOf(kinds | kMetaSpread, t.head_dim)),
        bytes_((t.tokens / 32 + 2) * Stride()) {
    std::fill_n(bytes_.data(), (t.tokens / 32 + 2) * Stride(), uint8_t{0xff});
    records_ = {.base = bytes_.data(),
                .extent_stride = Stride(),
                .extent_shift = 1,
                .page_bytes = layout_.record_bytes,
                .v_offset = 0};
    open_.Append(t, 0, t.tokens);
    for (uint32_t page = 0; page < pages(); ++page) Seal(page);
  }

  void Seal(uint32_t page) {
    const SealArgs args{.open = open_.shape(),
                        .open_slab = open_.slab(),
                        .open_page = open_.View(0, tokens_.tokens).pages[page],
                        .shape = coded_.shape(),
                        .slab = coded_.slab(),
                        .records = records_,
                        .layout = layout_,
                        .page = coded_.View(0, tokens_.tokens).pages[page]};
    kernels_.seal_page(&args);
  }

  // Makes the other kinds of a page's record.
  void Summarise(uint32_t page) {
    const SummariseArgs args{.shape = coded_.shape(),
                             .slab = coded_.slab(),
                             .records = records_,
                             .layout = layout_,
                             .page = View().pages[page]};
    kernels_.summarise_page(&args);
  }
  const uint8_t* Record(uint32_t page) const { return PageAt(records_, View().pages[page]); }

  uint32_t pages() const { return tokens_.tokens / kPlanesTokens; }
  PageView View() const { return coded_.View(0, tokens_.tokens); }
  const uint8_t* Page(uint32_t page) const { return PageAt(coded_.slab(), View().pages[page]); }
  const uint8_t* Spread(uint32_t page) const {
    return PageAt(records_, View().pages[page]) + layout_.spread_at;
  }
  std::vector<uint8_t> PageBytes(uint32_t page) const {
    return std::vector<uint8_t>(Page(page), Page(page) + coded_.slab().page_bytes);
  }
  std::vector<uint8_t> SpreadBytes(uint32_t page) const {
    return std::vector<uint8_t>(Spread(page),
                                Spread(page) + layout_.record_bytes - layout_.spread_at);
  }
  // What the codes stand for, in place of the tokens' keys and values.
  Tokens Decoded() const {
    Tokens decoded = tokens_;
    const uint32_t dim = tokens_.head_dim;
    for (uint32_t t = 0; t < tokens_.tokens; ++t) {
      kernels_.read_token(&coded_.shape(), Page(t / kPlanesTokens), coded_.slab().v_offset,
                          Spread(t / kPlanesTokens), t % kPlanesTokens,
                          decoded.k.data() + size_t{t} * dim, decoded.v.data() + size_t{t} * dim);
    }
    return decoded;
  }

  const Kernels& kernels() const { return kernels_; }
  const PagedHead& open() const { return open_; }
  const KvShape& shape() const { return coded_.shape(); }
  const KvSlab& slab() const { return coded_.slab(); }
  const KvSlab& records() const { return records_; }
  const MetaLayout& layout() const { return layout_; }

 private:
  uint64_t Stride() const { return 2ull * layout_.record_bytes + 64; }

  const Kernels& kernels_;
  const Tokens tokens_;
  PagedHead open_, coded_;
  MetaLayout layout_;
  Buffer bytes_;
  KvSlab records_;
};

}  // namespace tinyserve::testing

#endif  // TINYSERVE_KERNELS_PLANES_TESTING_H_
