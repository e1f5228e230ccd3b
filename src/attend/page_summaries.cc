#include "attend/page_summaries.h"

#include <algorithm>

#include "attend/rest_means.h"

namespace tinyserve {

Result<std::unique_ptr<PageSummaries>> PageSummaries::Create(const KvCache* cache,
                                                             const Kernels* kernels,
                                                             uint32_t threads) {
  std::unique_ptr<PageSummaries> s(new PageSummaries);
  s->cache_ = cache;
  s->kernels_ = kernels;
  if (cache->kept().summary_bytes == 0) return s;
  for (uint32_t g = 0; g < cache->groups(); ++g) {
    const KvShape shape = cache->shape(g);
    const uint64_t floats = uint64_t{shape.page_tokens} * shape.head_dim;
    s->rows_floats_ = std::max(s->rows_floats_, (floats + 15) / 16 * 16);
  }
  TS_ASSIGN_OR_RETURN(s->scratch_, Buffer::Allocate(threads * 2 * s->rows_floats_ * sizeof(float)));
  return s;
}

void PageSummaries::Add(const Selector* selector) {
  if (selector->rest_means()) means_at_ = selector->means_at();
  const auto same = [&](const Selector* s) { return s->summary_at() == selector->summary_at(); };
  if (!selector->has_summaries() || std::any_of(selectors_.begin(), selectors_.end(), same)) return;
  selectors_.push_back(selector);
}

void PageSummaries::Make(const Place& place, const uint32_t* pages, uint32_t first, uint32_t end,
                         uint32_t thread) const {
  const KvSlab records = cache_->records(place.group, place.layer_in_group, place.kv_head);
  // The spread of a coded page was written with it.
  const bool has_records =
      (cache_->meta_layout(place.group).kinds & (kMetaBox | kMetaMoments)) != 0;
  for (uint32_t i = first; i < end; ++i) {
    if (has_records) {
      const SummariseArgs args{
          .shape = cache_->shape(place.group),
          .slab = cache_->slab(place.group, place.layer_in_group, place.kv_head),
          .records = records,
          .layout = cache_->meta_layout(place.group),
          .page = pages[i]};
      kernels_->summarise_page(&args);
    }
    if (!selectors_.empty() || means_at_) MakeOwn(place, pages[i], thread);
  }
}

void PageSummaries::MakeOwn(const Place& place, uint32_t page, uint32_t thread) const {
  const KvShape shape = cache_->shape(place.group);
  const KvSlab slab = cache_->slab(place.group, place.layer_in_group, place.kv_head);
  const uint8_t* spread = nullptr;
  if (cache_->coded(place.group)) {
    spread = PageAt(cache_->records(place.group, place.layer_in_group, place.kv_head), page) +
             cache_->meta_layout(place.group).spread_at;
  }
  float* k = scratch_.as<float>() + thread * 2 * rows_floats_;
  float* v = k + rows_floats_;
  for (uint32_t t = 0; t < shape.page_tokens; ++t) {
    const uint64_t row = uint64_t{t} * shape.head_dim;
    kernels_->read_token(&shape, PageAt(slab, page), slab.v_offset, spread, t, k + row, v + row);
  }
  const tinyserve_page_in in{
      .struct_size = sizeof in, .layer = place.layer, .kv_head = place.kv_head, .k = k, .v = v};
  uint8_t* summary =
      PageAt(cache_->summaries(place.group, place.layer_in_group, place.kv_head), page);
  for (const Selector* selector : selectors_)
    selector->Summarise(in, summary + selector->summary_at());
  if (means_at_) {
    WritePageMeans(k, v, shape.page_tokens, shape.head_dim,
                   reinterpret_cast<uint16_t*>(summary + *means_at_));
  }
}

}  // namespace tinyserve
