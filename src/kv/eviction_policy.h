// Which prefixes that nobody holds give way first when blocks are needed.
#ifndef TINYSERVE_KV_EVICTION_POLICY_H_
#define TINYSERVE_KV_EVICTION_POLICY_H_

#include <cstdint>
#include <string_view>

#include "tinyserve/status.h"

namespace tinyserve {

enum class EvictionKind : uint8_t {
  kLru,  // what was not used for longest
  // What was used least often, aged: LFU with dynamic aging (Arlitt et al. 2000).
  kLfu,
  // Uses times the work of computing it anew: GreedyDual-Size-Frequency (Cherkasova 1998), for
  // units of one size.
  kCost,
};

// Errors: kInvalidArgument, with the names that are known: lru, lfu, cost.
Result<EvictionKind> ParseEvictionKind(std::string_view name);

// Gives each unit of the tree a worth when it is used; the one of least worth goes first, of equal
// ones that whose use is longer ago. What goes raises the worth of all that is used from then on,
// so that old fame fades. Pure.
class EvictionPolicy {
 public:
  // cross_tokens: the position at which a token's attention is as much work as its products; for
  // kCost.
  explicit EvictionPolicy(EvictionKind kind = EvictionKind::kLru, double cross_tokens = 4096)
      : kind_(kind), cross_tokens_(cross_tokens) {}

  // Of a unit that was used `uses` times, the last time at `now` of a clock that counts uses.
  // position: of its first token.
  double WorthOf(uint64_t now, uint64_t uses, uint64_t position) const;
  void Evicted(double worth) { age_ = worth; }

 private:
  EvictionKind kind_;
  double cross_tokens_;
  double age_ = 0;
};

}  // namespace tinyserve

#endif  // TINYSERVE_KV_EVICTION_POLICY_H_
