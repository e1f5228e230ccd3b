// What a spectator sees of the requests that run.
#include <algorithm>

#include "engine/engine_impl.h"

namespace tinyserve {

PageReads EngineImpl::WatchPages(std::string_view client, RequestId request) {
  std::lock_guard lock(mutex_);
  return watch_.Ask(client, request, NowSeconds());
}

// After a step, before its requests end.
void EngineImpl::ShowPages() {
  std::lock_guard lock(mutex_);
  for (PageWatch::Watch& watch : watch_.Alive(NowSeconds())) {
    const Job* shown = nullptr;
    uint32_t position = 0;
    for (const ScheduledRow& row : step_.rows) {
      const Job* job = jobs_.at(row.id).get();
      if (row.prompt || row.length != 1 || job->request.client != watch.client) continue;
      const bool wanted =
          watch.request == 0 ? shown == nullptr || row.id > shown->id : row.id == watch.request;
      if (!wanted) continue;
      shown = job;
      position = row.first_position;
    }
    watch.seen.running.clear();
    for (const auto& [id, job] : jobs_) {
      if (!job->running || job->request.client != watch.client) continue;
      watch.seen.running.push_back({.id = id,
                                    .prompt_tokens = job->prompt_tokens,
                                    .generated_tokens = job->generated(),
                                    .session = job->request.session});
    }
    std::sort(watch.seen.running.begin(), watch.seen.running.end(),
              [](const RunningRequest& a, const RunningRequest& b) { return a.id < b.id; });
    if (shown != nullptr) ShowPagesOf(*shown, HeldOf(*shown, position), &watch.seen);
  }
}

void EngineImpl::ShowPagesOf(const Job& job, uint32_t position, PageReads* seen) const {
  const KvCache& cache = *executor_->cache();
  seen->request = job.id;
  seen->tokens = position + 1;
  seen->page_tokens = cache.page_tokens();
  seen->layers = info_.layers;
  seen->kv_heads = backend_->config().kv_heads;
  seen->selector = executor_->selector_resolved(job.selector);
  const uint32_t pages = (position + cache.page_tokens()) / cache.page_tokens();
  // Raw pages beside coded ones are always read, and not told of.
  const uint32_t raw_from = cache.coded(0) ? cache.RawBegin(position) / cache.page_tokens() : pages;
  const uint32_t words = (pages + 63) / 64;
  seen->bits.assign(uint64_t{seen->layers} * seen->kv_heads * words, 0);
  for (uint32_t layer = 0; layer < seen->layers; ++layer) {
    for (uint32_t head = 0; head < seen->kv_heads; ++head) {
      const std::span<const uint64_t> read = executor_->PagesRead(job.slot, layer, head, position);
      uint64_t* bits = seen->bits.data() + (uint64_t{layer} * seen->kv_heads + head) * words;
      for (uint32_t page = 0; page < pages; ++page) {
        const bool is_read = read.empty() || page >= raw_from ||
                             (page / 64 < read.size() && (read[page / 64] >> page % 64 & 1) != 0);
        bits[page / 64] |= uint64_t{is_read} << page % 64;
      }
    }
  }
}

}  // namespace tinyserve
