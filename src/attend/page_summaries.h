// Makes what is kept of full pages: records, the summaries of selectors' own, and means.
#ifndef TINYSERVE_ATTEND_PAGE_SUMMARIES_H_
#define TINYSERVE_ATTEND_PAGE_SUMMARIES_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "base/buffer.h"
#include "kernels/kernels.h"
#include "kv/kv_cache.h"
#include "select/selector.h"
#include "tinyserve/status.h"

namespace tinyserve {

class PageSummaries {
 public:
  // Errors: kOutOfMemory.
  static Result<std::unique_ptr<PageSummaries>> Create(const KvCache* cache, const Kernels* kernels,
                                                       uint32_t threads);

  // What a selector reads of pages beside records is made from now on.
  void Add(const Selector* selector);

  struct Place {
    uint32_t group, layer, layer_in_group, kv_head;
  };
  // Of a sequence's pages `first` .. `end` - 1, counted from its beginning, which have just become
  // full; where pages are coded, coded ones. `pages`: all of the sequence's.
  void Make(const Place& place, const uint32_t* pages, uint32_t first, uint32_t end,
            uint32_t thread) const;

 private:
  PageSummaries() = default;
  void MakeOwn(const Place& place, uint32_t page, uint32_t thread) const;

  const KvCache* cache_ = nullptr;
  const Kernels* kernels_ = nullptr;
  std::vector<const Selector*> selectors_;  // each place in a summary once
  std::optional<uint32_t> means_at_;        // in what is kept of a page, where means are kept
  uint64_t rows_floats_ = 0;                // of a page's keys
  Buffer scratch_;                          // [thread][keys, values][rows_floats_]
};

}  // namespace tinyserve

#endif  // TINYSERVE_ATTEND_PAGE_SUMMARIES_H_
