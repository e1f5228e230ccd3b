#include "tools/bench_plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "tools/format.h"

namespace tinyserve {
namespace {

std::vector<uint32_t> SortedUnique(std::vector<uint32_t> values) {
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  return values;
}

// Why a case cannot run, or "". Grows `plan->sequence_tokens` where it can.
std::string TryToFit(const BenchCase& c, const BenchLimits& limits, BenchPlan* plan) {
  const uint64_t tokens = uint64_t{c.depth} + c.tokens;
  if (tokens > limits.context_tokens) {
    return fmt::format("{} tokens are more than the context of {}", tokens, limits.context_tokens);
  }
  std::vector<uint32_t> room = plan->sequence_tokens;
  if (room.size() < c.batch) room.resize(c.batch, 0);
  const uint64_t rounded =
      (tokens + limits.block_tokens - 1) / limits.block_tokens * limits.block_tokens;
  uint64_t total = 0;
  for (uint32_t s = 0; s < room.size(); ++s) {
    if (s < c.batch) room[s] = std::max(room[s], static_cast<uint32_t>(rounded));
    total += room[s];
  }
  // A token costs at least one byte, so this bounds `total` before it is multiplied.
  if (total > limits.kv_bytes_max || total * limits.kv_bytes_per_token > limits.kv_bytes_max) {
    return fmt::format("its KV cache would take {}, of {} that this process may use",
                       FormatBytes(rounded * c.batch * limits.kv_bytes_per_token),
                       FormatBytes(limits.kv_bytes_max));
  }
  plan->sequence_tokens = std::move(room);
  return "";
}

}  // namespace

const char* BenchKindName(BenchKind kind) {
  return kind == BenchKind::kPrefill ? "prefill" : "decode";
}

uint64_t BenchPlan::pool_tokens() const {
  uint64_t total = 0;
  for (uint32_t tokens : sequence_tokens) total += tokens;
  return total;
}

uint64_t BenchPlan::case_tokens() const {
  uint64_t total = 0;
  for (uint32_t s = 0; s < sequence_tokens.size(); ++s) {
    uint32_t longest = 0;
    for (const BenchCase& c : cases) {
      if (s < c.batch) longest = std::max(longest, c.tokens);
    }
    total += longest;
  }
  return total;
}

BenchPlan PlanBench(const BenchWishes& wishes, const BenchLimits& limits) {
  std::vector<BenchCase> wanted;
  for (uint32_t depth : SortedUnique(wishes.depth)) {
    for (uint32_t tokens : SortedUnique(wishes.prefill)) {
      if (tokens > 0) wanted.push_back({BenchKind::kPrefill, tokens, depth, 1});
    }
    for (uint32_t batch : SortedUnique(wishes.batch)) {
      if (wishes.decode == 0) continue;
      for (uint32_t selector = 0; selector < wishes.selectors; ++selector)
        wanted.push_back({BenchKind::kDecode, wishes.decode, depth, batch, selector});
    }
  }
  BenchPlan plan;
  for (const BenchCase& c : wanted) {
    const std::string reason = TryToFit(c, limits, &plan);
    if (reason.empty()) {
      plan.cases.push_back(c);
    } else {
      plan.skipped.push_back({c, reason});
    }
  }
  return plan;
}

}  // namespace tinyserve
