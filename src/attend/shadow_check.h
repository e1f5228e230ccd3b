// Quality telemetry: for a sample of generated tokens, at one (layer, KV head) each, what dense
// attention over the same stored keys and values would have given.
#ifndef TINYSERVE_ATTEND_SHADOW_CHECK_H_
#define TINYSERVE_ATTEND_SHADOW_CHECK_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "attend/log_histogram.h"
#include "base/buffer.h"
#include "base/random.h"
#include "kernels/kernels.h"
#include "kv/kv_cache.h"
#include "tinyserve/status.h"

namespace tinyserve {

// Of one selector. A check is one query: the heads that share a KV head, at one layer and token.
struct ShadowFigures {
  // The dense attention's mass that lies on tokens of pages that were not read, 0..1: mean of the
  // query heads.
  LogHistogram missed_mass;
  // |output - dense output| / |dense output|, Euclidean, over the query heads' channels.
  LogHistogram output_error;
};

class ShadowCheck {
 public:
  // Tokens of a step that are checked, at most: what a pick holds is allocated once.
  static constexpr uint32_t kPicksMax = 16;

  // Errors: kOutOfMemory.
  static Result<std::unique_ptr<ShadowCheck>> Create(const KvCache* cache, const Kernels* kernels,
                                                     uint32_t heads, float scale, uint32_t threads);

  // Of the tokens that select, 0..1. Which ones, and where, follows from a fixed seed and their
  // number: no output depends on it.
  void SetShare(double share) { share_ = share; }

  // A query that is checked: `run` and `row` as the step has them.
  struct Pick {
    uint32_t selector, run, row, layer, kv_head;
  };
  void BeginStep() { picks_.clear(); }
  // Of a row that selects in layers [first_layer, layers): picks it, or not.
  void Offer(uint32_t selector, uint32_t run, uint32_t row, uint32_t first_layer, uint32_t layers,
             uint32_t kv_heads);
  std::span<const Pick> picks() const { return picks_; }

  // Keeps the pages that a query read, as indices into slabs, the last one its own where nothing is
  // coded; nothing where it is not picked. May be called from several threads.
  void Keep(uint32_t run, uint32_t row, uint32_t layer, uint32_t kv_head,
            std::span<const uint32_t> pages);

  struct Query {
    uint32_t group, layer_in_group;
    SequenceSlot slot;
    uint32_t position;
    const float* q;    // [g][head_dim], not scaled
    const float* out;  // [g][head_dim], what was computed from the pages that were read
  };
  // Measures a pick whose pages are kept. May be called from several threads for different picks.
  void Measure(uint32_t pick, const Query& query, uint32_t thread);
  // Adds what was measured of a pick to its selector's figures.
  void Count(uint32_t pick);

  // By selector; those that were never checked may be missing at the end.
  const std::vector<ShadowFigures>& figures() const { return figures_; }
  void Reset() { figures_.clear(); }

 private:
  // Attention over some keys, in double: of each head, like Partial.
  struct Sums {
    double *m, *d, *o;
  };
  struct Measured {
    double missed_mass, output_error;
  };

  ShadowCheck() = default;
  void Clear(const Sums& sums, uint32_t group, uint32_t head_dim) const;
  // Attends to a view of the group's pages, or of raw ones, a piece at a time.
  void Add(const Query& query, uint32_t kv_head, const PageView& view, bool open, uint32_t thread,
           const Sums& sums) const;

  const KvCache* cache_ = nullptr;
  const Kernels* kernels_ = nullptr;
  uint32_t heads_ = 0;
  float scale_ = 0;
  double share_ = 0;
  SplitMix64 random_{0};
  std::vector<Pick> picks_;
  std::vector<Measured> measured_;  // [pick]
  uint32_t list_pages_ = 0;
  Buffer lists_;                       // [pick][list_pages_] pages
  std::vector<uint32_t> list_counts_;  // [pick]
  uint64_t decode_bytes_ = 0, partial_floats_ = 0, stride_ = 0;
  Buffer scratch_;  // [thread]: a kernel's, a partial result, two sums
  std::vector<ShadowFigures> figures_;
};

}  // namespace tinyserve

#endif  // TINYSERVE_ATTEND_SHADOW_CHECK_H_
