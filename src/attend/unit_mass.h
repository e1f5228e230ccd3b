// How much attention the units of a sequence's tokens get: by that, some of them are dropped from
// the cache (KvCache::Drop).
#ifndef TINYSERVE_ATTEND_UNIT_MASS_H_
#define TINYSERVE_ATTEND_UNIT_MASS_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "kernels/kernels.h"
#include "kv/kv_cache.h"
#include "tinyserve/status.h"

namespace tinyserve {

// Some queries of a step are held against every unit (KvCache::share_tokens) that is full at their
// position, by dense attention, whatever they read themselves. Sums go by layer, then by query, in
// their order, so that nothing depends on how tokens are grouped into steps.
class UnitMass {
 public:
  // Errors: kOutOfMemory.
  static Result<std::unique_ptr<UnitMass>> Create(const KvCache* cache, const Kernels* kernels,
                                                  uint32_t heads, float scale, uint32_t threads);

  struct Query {
    uint32_t row;  // of the step's activations
    SequenceSlot slot;
    uint32_t position;
  };
  // Adds what the step before has measured, and ends it.
  void Settle();
  // A sequence begins in a slot: nothing is known of its units.
  void Begin(SequenceSlot slot) { sums_[slot].clear(); }
  // Queries of a layer that may be measured before they are added: those from a multiple of so many
  // on.
  static constexpr uint32_t kTogether = 16;
  // A query that is measured in this step; those of a sequence in order of position.
  void Pick(const Query& query);
  std::span<const Query> queries() const { return queries_; }

  // Measures a query, by its index, at one layer and KV head. q: [g][head_dim], not scaled. May be
  // called from several threads for different queries and heads.
  void Measure(uint32_t query, uint32_t group, uint32_t layer_in_group, uint32_t kv_head,
               const float* q, uint32_t thread);
  // Adds what was measured of a query at all KV heads of a layer.
  void AddLayer(uint32_t query, uint32_t kv_heads);

  // [full units] of a sequence: the share of the attention, 0..1, as the mean of the layers, heads
  // and queries that were measured since the unit was full; infinite where there was none. Valid
  // until the next call.
  std::span<const float> Masses(SequenceSlot slot);
  // Forgets units, by their ascending numbers; those behind them move up.
  void Drop(SequenceSlot slot, std::span<const uint32_t> units);

 private:
  struct Sum {
    double mass = 0;
    uint32_t queries = 0;
  };

  UnitMass() = default;
  // log sum exp of the logits of each of the query's heads, over the pages of a view.
  void Attend(const DecodeArgs& args, uint32_t unit, float* logs) const;
  float* ItemAt(uint32_t query, uint32_t kv_head) {
    return items_.data() + (uint64_t{query % kTogether} * kv_heads_max_ + kv_head) * units_max_;
  }

  const KvCache* cache_ = nullptr;
  const Kernels* kernels_ = nullptr;
  uint32_t heads_ = 0, kv_heads_max_ = 0, units_max_ = 0;
  float scale_ = 0;
  std::vector<std::vector<Sum>> sums_;  // [slot][unit]
  std::vector<Query> queries_;          // of the step
  std::vector<float> items_;            // [kTogether][KV head][units_max_] of the layer
  std::vector<double> layers_mass_;     // [query][units_max_] over the layers so far
  std::vector<uint32_t> layers_;        // [query] how many
  std::vector<float> masses_;           // what Masses gives
  uint64_t decode_bytes_ = 0, partial_floats_ = 0, stride_ = 0;
  Buffer scratch_;  // [thread]: a kernel's, a partial result, [g][units_max_] logs
};

}  // namespace tinyserve

#endif  // TINYSERVE_ATTEND_UNIT_MASS_H_
