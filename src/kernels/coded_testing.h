// For the tests and benchmarks of coded pages: one KV head whose pages are sealed.
#ifndef TINYSERVE_KERNELS_CODED_TESTING_H_
#define TINYSERVE_KERNELS_CODED_TESTING_H_

#include <algorithm>
#include <vector>

#include "kernels/attention_testing.h"
#include "page/planes.h"

namespace tinyserve::testing {

// Tokens with everything that coding may trip over: constant channels, zeros of both signs, a page
// of zeros, large and small ones.
inline Tokens MakeOddTokens(uint32_t tokens, uint32_t head_dim, uint32_t group, uint64_t seed) {
  Tokens t = MakeTokens(tokens, head_dim, group, seed);
  for (size_t i = 0; i < t.k.size(); ++i) {
    const size_t c = i % head_dim, token = i / head_dim;
    if (c % 7 == 3) t.k[i] += 6;
    if (c % 11 == 5) t.k[i] *= 1e-4f;
    if (c % 13 == 6) t.k[i] = -3.25f;
    if (c % 5 == 0 && token % 3 == 0) t.k[i] = token % 2 == 0 ? 0.0f : -0.0f;
    if (token / 16 == 1) t.k[i] = t.v[i] = 0;
    if (token / 16 == 2) t.v[i] *= 3000.0f;
    if (token == 49) t.v[i] = 0;
  }
  return t;
}

// The kind of metadata that a coded type's pages cannot be read without.
inline uint32_t CodingKind(KvType type) { return IsRanged(type) ? kMetaRange : kMetaSpread; }

// The tokens of `t`, a multiple of 16, in coded pages; the open pages that they came from stay.
class SealedHead {
 public:
  SealedHead(const Kernels& kernels, const Tokens& t, KvType open_type, uint64_t seed,
             uint32_t kinds = 0, KvType type = KvType::kPlanes)
      : kernels_(kernels),
        tokens_(t),
        open_(kernels, {open_type, 1, t.head_dim, kPlanesTokens}, t.tokens, seed),
        coded_(kernels, {type, 1, t.head_dim, kPlanesTokens}, t.tokens, seed + 1),
        layout_(MetaLayoutOf(kinds | CodingKind(type), t.head_dim)),
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
  // Of the record, its spread or range.
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
  // Attention of the first query over tokens first .. end - 1, whole pages.
  OwnedPartial Decode(float scale, uint32_t first, uint32_t end) const {
    OwnedPartial out(tokens_.group, tokens_.head_dim);
    Scratch scratch(kernels_.decode_scratch_bytes(&shape(), tokens_.group, end - first));
    const DecodeArgs args{.shape = shape(),
                          .slab = slab(),
                          .records = records(),
                          .layout = layout(),
                          .view = {.pages = View().pages + first / kPlanesTokens,
                                   .count = (end - first) / kPlanesTokens,
                                   .last_tokens = kPlanesTokens,
                                   .space = MemorySpace::kHost},
                          .group = tokens_.group,
                          .scale = scale,
                          .q = tokens_.q.data(),
                          .out = out.View(),
                          .scratch = scratch.data()};
    kernels_.attend_decode(&args);
    if (scratch.Overrun()) out.d.assign(tokens_.group, NAN);
    return out;
  }

  // Attention of rows first .. tokens - 1, the keys before sealed_tokens in coded pages;
  // [rows][group][head_dim], empty where scratch was overrun.
  std::vector<float> Prompt(float scale, uint32_t sealed_tokens, uint32_t first, uint32_t tokens,
                            Compute compute) const {
    const uint32_t group = tokens_.group, rows = tokens - first;
    const size_t width = size_t{group} * tokens_.head_dim;
    std::vector<float> out(rows * width, NAN);
    Scratch scratch(kernels_.prompt_scratch_bytes(&open().shape(), group, rows));
    PageView coded = View();
    coded.count = sealed_tokens / kPlanesTokens;
    coded.last_tokens = kPlanesTokens;
    const PromptArgs args{.sealed = {.shape = shape(),
                                     .slab = slab(),
                                     .records = records(),
                                     .layout = layout(),
                                     .view = coded},
                          .shape = open().shape(),
                          .slab = open().slab(),
                          .view = open().View(sealed_tokens, tokens),
                          .group = group,
                          .scale = scale,
                          .first_position = first,
                          .rows = rows,
                          .q = tokens_.q.data() + first * width,
                          .q_stride = width,
                          .out = out.data(),
                          .out_stride = width,
                          .scratch = scratch.data(),
                          .compute = compute};
    kernels_.attend_prompt(&args);
    return scratch.Overrun() ? std::vector<float>() : out;
  }

  // What rows of the window from sealed_tokens on see of the first `tokens`.
  Tokens Seen(uint32_t sealed_tokens, uint32_t tokens) const {
    Tokens seen = Decoded();
    const uint32_t dim = tokens_.head_dim;
    for (uint32_t token = sealed_tokens; token < tokens; ++token) {
      const std::vector<float> raw = open().Read(token);
      std::copy_n(raw.begin(), dim, seen.k.begin() + token * dim);
      std::copy_n(raw.begin() + dim, dim, seen.v.begin() + token * dim);
    }
    return seen;
  }

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

#endif  // TINYSERVE_KERNELS_CODED_TESTING_H_
