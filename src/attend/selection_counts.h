// What selection did: counts over queries, a query being one generated token at one (layer, KV
// head) that was asked to select.
#ifndef TINYSERVE_ATTEND_SELECTION_COUNTS_H_
#define TINYSERVE_ATTEND_SELECTION_COUNTS_H_

#include <cstdint>

namespace tinyserve {

struct SelectionCounts {
  uint64_t queries = 0;
  uint64_t pages_held = 0;
  uint64_t pages_scored = 0;  // candidates of a selector that reads their records
  uint64_t pages_read = 0;
  // Of the pages that a query read whose sequence also decoded at the position before: how many,
  // and how many of them were read there too. Their ratio is the hit rate.
  uint64_t pages_followed = 0, pages_reused = 0;
  uint64_t tokens_read = 0;
  uint64_t bytes_read = 0;     // of pages, records and means
  uint64_t bytes_held = 0;     // what dense attention would have read in the same storage
  uint64_t multiply_adds = 0;  // of scores, q.k and p.v
  uint64_t failures = 0;       // of selectors: everything was read
  // Where times are asked for: of a built-in selector's scores, of choosing beside them (all that a
  // table from a shared object does), and of attention. One kernel does all that the cascade does:
  // its time is the last one.
  uint64_t score_ns = 0, select_ns = 0, attend_ns = 0;

  void Add(const SelectionCounts& other);
};

}  // namespace tinyserve

#endif  // TINYSERVE_ATTEND_SELECTION_COUNTS_H_
