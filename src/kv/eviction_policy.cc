#include "kv/eviction_policy.h"

#include <fmt/format.h>

namespace tinyserve {

Result<EvictionKind> ParseEvictionKind(std::string_view name) {
  if (name == "lru") return EvictionKind::kLru;
  if (name == "lfu") return EvictionKind::kLfu;
  if (name == "cost") return EvictionKind::kCost;
  return Status(Code::kInvalidArgument,
                fmt::format("cache_policy is '{}': allowed are lru, lfu and cost", name));
}

double EvictionPolicy::WorthOf(uint64_t now, uint64_t uses, uint64_t position) const {
  switch (kind_) {
    case EvictionKind::kLru:
      return static_cast<double>(now);
    case EvictionKind::kLfu:
      return age_ + static_cast<double>(uses);
    case EvictionKind::kCost:
      break;
  }
  const double work = 1 + static_cast<double>(position) / cross_tokens_;
  return age_ + static_cast<double>(uses) * work;
}

}  // namespace tinyserve
