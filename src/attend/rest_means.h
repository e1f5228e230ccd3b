// Attention to the pages that a query does not read, by their means (TinyServe's "approximate
// attention"): a page of n tokens counts as n keys that are all its mean key, with its mean value.
// Exact where a page's keys are equal. Otherwise too small: by Jensen's inequality n times the
// exponential of the mean logit is no more than the sum of the exponentials.
#ifndef TINYSERVE_ATTEND_REST_MEANS_H_
#define TINYSERVE_ATTEND_REST_MEANS_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "kernels/kernels.h"
#include "kv/kv_cache.h"
#include "tinyserve/status.h"

namespace tinyserve {

// Writes the means of a page's keys and values, [tokens][head_dim] each, as PageMeansBytes says.
void WritePageMeans(const float* k, const float* v, uint32_t tokens, uint32_t head_dim,
                    uint16_t* means);

class RestMeans {
 public:
  // Errors: kOutOfMemory.
  static Result<std::unique_ptr<RestMeans>> Create(const KvCache* cache, const Kernels* kernels,
                                                   uint32_t heads, float scale, uint32_t threads);

  // The query heads of a KV head, and where the means lie in what is kept of a page.
  struct Query {
    uint32_t group, layer_in_group, kv_head;
    SequenceSlot slot;
    uint32_t position;
    uint32_t means_at;
    const float* q;  // [g][head_dim], not scaled
  };
  // Pages in blocks of a query's context, of which it may read fewer. The last one may be partly
  // filled where nothing is coded; every query reads that one.
  uint32_t Pages(uint32_t group, uint32_t position) const;
  // Calls of Attend for so many pages that are not read.
  static uint32_t SplitsOf(uint32_t pages) { return (pages + kSplitPages - 1) / kSplitPages; }
  // Attends to the means of kSplitPages of the pages that are not in `read`, which are indices into
  // slabs in order of position: of those from the (split * kSplitPages)-th on.
  void Attend(const Query& query, std::span<const uint32_t> read, uint32_t split, uint32_t thread,
              const Partial& out) const;

 private:
  static constexpr uint32_t kSplitPages = 256, kScratchPageTokens = 16,
                            kScratchPages = kSplitPages / kScratchPageTokens;

  RestMeans() = default;
  // Where one thread makes pages whose tokens are means.
  struct Scratch {
    KvSlab slab;
    float* rows;  // [keys, values][kScratchPageTokens][channels]
    void* decode;
  };
  Scratch ScratchOf(const KvShape& shape, uint32_t thread) const;
  // The pages of a split into `pages` [kSplitPages]; returns how many.
  uint32_t Gather(const Query& query, std::span<const uint32_t> read, uint32_t split,
                  uint32_t* pages) const;

  const KvCache* cache_ = nullptr;
  const Kernels* kernels_ = nullptr;
  uint32_t heads_ = 0;
  float scale_ = 0;
  uint64_t page_bytes_ = 0, rows_bytes_ = 0, stride_ = 0;
  Buffer scratch_;                       // [thread][stride_]
  std::vector<uint32_t> scratch_pages_;  // 0 .. kScratchPages - 1
};

}  // namespace tinyserve

#endif  // TINYSERVE_ATTEND_REST_MEANS_H_
