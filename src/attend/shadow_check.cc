#include "attend/shadow_check.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"

namespace tinyserve {
namespace {

constexpr uint32_t kPieceTokens = 256;  // that one call of a kernel attends to

uint64_t RoundUp64(uint64_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

Result<std::unique_ptr<ShadowCheck>> ShadowCheck::Create(const KvCache* cache,
                                                         const Kernels* kernels, uint32_t heads,
                                                         float scale, uint32_t threads) {
  std::unique_ptr<ShadowCheck> s(new ShadowCheck);
  s->cache_ = cache;
  s->kernels_ = kernels;
  s->heads_ = heads;
  s->scale_ = scale;
  for (uint32_t g = 0; g < cache->groups(); ++g) {
    const uint32_t group = heads / cache->shape(g).kv_heads;
    for (const KvShape& shape : {cache->shape(g), cache->open_shape(g)}) {
      s->decode_bytes_ = std::max(
          s->decode_bytes_, RoundUp64(kernels->decode_scratch_bytes(&shape, group, kPieceTokens)));
      s->partial_floats_ = std::max<uint64_t>(s->partial_floats_, group * (shape.head_dim + 2ull));
    }
  }
  s->stride_ = s->decode_bytes_ + RoundUp64(s->partial_floats_ * sizeof(float)) +
               2 * RoundUp64(s->partial_floats_ * sizeof(double));
  TS_ASSIGN_OR_RETURN(s->scratch_, Buffer::Allocate(s->stride_ * threads));
  s->list_pages_ = cache->sequence_tokens_max() / cache->page_tokens() + 1;
  TS_ASSIGN_OR_RETURN(s->lists_,
                      Buffer::Allocate(uint64_t{kPicksMax} * s->list_pages_ * sizeof(uint32_t)));
  s->list_counts_.resize(kPicksMax);
  s->measured_.resize(kPicksMax);
  s->picks_.reserve(kPicksMax);
  return s;
}

void ShadowCheck::Offer(uint32_t selector, uint32_t run, uint32_t row, uint32_t first_layer,
                        uint32_t layers, uint32_t kv_heads) {
  if (share_ <= 0 || first_layer >= layers || picks_.size() == kPicksMax) return;
  const double drawn =
      static_cast<double>(random_.Next() >> 11) / 9007199254740992.0;  // [0, 1), 2^53
  if (drawn >= share_) return;
  const uint64_t place = random_.Next() % (uint64_t{layers - first_layer} * kv_heads);
  list_counts_[picks_.size()] = 0;
  picks_.push_back({.selector = selector,
                    .run = run,
                    .row = row,
                    .layer = first_layer + static_cast<uint32_t>(place / kv_heads),
                    .kv_head = static_cast<uint32_t>(place % kv_heads)});
}

void ShadowCheck::Keep(uint32_t run, uint32_t row, uint32_t layer, uint32_t kv_head,
                       std::span<const uint32_t> pages) {
  for (size_t i = 0; i < picks_.size(); ++i) {
    const Pick& pick = picks_[i];
    if (pick.run != run || pick.row != row || pick.layer != layer || pick.kv_head != kv_head)
      continue;
    TS_CHECK(pages.size() <= list_pages_);
    std::copy(pages.begin(), pages.end(), lists_.as<uint32_t>() + i * list_pages_);
    list_counts_[i] = static_cast<uint32_t>(pages.size());
  }
}

void ShadowCheck::Clear(const Sums& sums, uint32_t group, uint32_t head_dim) const {
  std::fill(sums.m, sums.m + group, -std::numeric_limits<double>::infinity());
  std::fill(sums.d, sums.d + group, 0.0);
  std::fill(sums.o, sums.o + uint64_t{group} * head_dim, 0.0);
}

void ShadowCheck::Add(const Query& query, uint32_t kv_head, const PageView& view, bool open,
                      uint32_t thread, const Sums& sums) const {
  const KvShape shape = open ? cache_->open_shape(query.group) : cache_->shape(query.group);
  const KvSlab slab = open ? cache_->open_slab(query.group, query.layer_in_group, kv_head)
                           : cache_->slab(query.group, query.layer_in_group, kv_head);
  const uint32_t g = heads_ / shape.kv_heads, piece = kPieceTokens / shape.page_tokens;
  uint8_t* scratch = scratch_.data() + thread * stride_;
  float* at = reinterpret_cast<float*>(scratch + decode_bytes_);
  const Partial partial{.m = at, .d = at + g, .o = at + 2 * g};
  for (uint32_t first = 0; first < view.count; first += piece) {
    const uint32_t count = std::min(piece, view.count - first);
    const bool last = first + count == view.count;
    const DecodeArgs args{.shape = shape,
                          .slab = slab,
                          .records = cache_->records(query.group, query.layer_in_group, kv_head),
                          .layout = cache_->meta_layout(query.group),
                          .view = {.pages = view.pages + first,
                                   .count = count,
                                   .last_tokens = last ? view.last_tokens : shape.page_tokens,
                                   .space = MemorySpace::kHost},
                          .group = g,
                          .scale = scale_,
                          .q = query.q,
                          .out = partial,
                          .scratch = scratch,
                          .next_slab = {},
                          .next_view = {}};
    kernels_->attend_decode(&args);
    for (uint32_t h = 0; h < g; ++h) {
      const double m = std::max<double>(sums.m[h], partial.m[h]);
      const double old = std::exp(sums.m[h] - m), more = std::exp(partial.m[h] - m);
      sums.m[h] = m;
      sums.d[h] = sums.d[h] * old + partial.d[h] * more;
      for (uint32_t c = 0; c < shape.head_dim; ++c) {
        double& o = sums.o[uint64_t{h} * shape.head_dim + c];
        o = o * old + partial.o[uint64_t{h} * shape.head_dim + c] * more;
      }
    }
  }
}

void ShadowCheck::Measure(uint32_t pick, const Query& query, uint32_t thread) {
  const uint32_t kv_head = picks_[pick].kv_head, tokens = query.position + 1;
  const KvShape shape = cache_->shape(query.group);
  const uint32_t g = heads_ / shape.kv_heads, head_dim = shape.head_dim;
  const bool coded = cache_->coded(query.group);
  uint8_t* at = scratch_.data() + thread * stride_ + decode_bytes_ +
                RoundUp64(partial_floats_ * sizeof(float));
  const auto sums_at = [&](uint8_t* memory) {
    auto* d = reinterpret_cast<double*>(memory);
    return Sums{.m = d, .d = d + g, .o = d + 2 * g};
  };
  const Sums read = sums_at(at), all = sums_at(at + RoundUp64(partial_floats_ * sizeof(double)));
  for (const Sums& sums : {read, all}) Clear(sums, g, head_dim);
  // The raw tokens beside coded pages are always read.
  const uint32_t raw = cache_->RawBegin(query.position);
  if (coded) {
    const PageView window = cache_->OpenView(query.slot, query.group, raw, tokens);
    for (const Sums& sums : {read, all}) Add(query, kv_head, window, true, thread, sums);
  }
  const uint32_t last = coded ? shape.page_tokens : query.position % shape.page_tokens + 1;
  const PageView chosen{.pages = lists_.as<uint32_t>() + uint64_t{pick} * list_pages_,
                        .count = list_counts_[pick],
                        .last_tokens = last,
                        .space = MemorySpace::kHost};
  Add(query, kv_head, chosen, false, thread, read);
  if (!coded || raw > 0) {
    const PageView held = cache_->View(query.slot, query.group, coded ? raw : tokens);
    Add(query, kv_head, held, false, thread, all);
  }
  double missed = 0, difference = 0, norm = 0;
  for (uint32_t h = 0; h < g; ++h) {
    const double share = read.d[h] * std::exp(read.m[h] - all.m[h]) / all.d[h];
    missed += std::clamp(1 - share, 0.0, 1.0) / g;
    for (uint64_t c = uint64_t{h} * head_dim; c < uint64_t{h + 1} * head_dim; ++c) {
      const double dense = all.o[c] / all.d[h];
      difference += (query.out[c] - dense) * (query.out[c] - dense);
      norm += dense * dense;
    }
  }
  measured_[pick] = {.missed_mass = missed, .output_error = std::sqrt(difference / norm)};
}

void ShadowCheck::Count(uint32_t pick) {
  const Measured& measured = measured_[pick];
  // A model whose numbers are none ends its requests; an output of zeros has no relative error.
  if (!std::isfinite(measured.missed_mass) || !std::isfinite(measured.output_error)) return;
  const uint32_t selector = picks_[pick].selector;
  if (selector >= figures_.size()) figures_.resize(selector + 1);
  figures_[selector].missed_mass.Add(measured.missed_mass);
  figures_[selector].output_error.Add(measured.output_error);
}

}  // namespace tinyserve
