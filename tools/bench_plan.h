// Which cases `tinyserve bench` runs, and which it must leave out.
#ifndef TINYSERVE_TOOLS_BENCH_PLAN_H_
#define TINYSERVE_TOOLS_BENCH_PLAN_H_

#include <cstdint>
#include <string>
#include <vector>

namespace tinyserve {

enum class BenchKind : uint8_t { kPrefill, kDecode };

const char* BenchKindName(BenchKind kind);

// kPrefill: `tokens` prompt tokens of one sequence after `depth` tokens. kDecode: `tokens` steps of
// `batch` sequences that hold `depth` tokens each, which read what a selector chooses.
struct BenchCase {
  BenchKind kind;
  uint32_t tokens, depth, batch;
  uint32_t selector = 0;  // which one of those asked for; a prefill has the first one's storage
};

struct SkippedCase {
  BenchCase bench_case;
  std::string reason;
};

// What was asked for.
struct BenchWishes {
  std::vector<uint32_t> prefill;  // 0: none
  uint32_t decode;                // 0: none
  std::vector<uint32_t> depth, batch;
  uint32_t selectors = 1;
};

struct BenchLimits {
  uint32_t context_tokens;      // longest sequence
  uint32_t block_tokens;        // sequences are held in whole blocks
  uint64_t kv_bytes_per_token;  // over all storages: each holds every sequence
  uint64_t kv_bytes_max;
};

struct BenchPlan {
  std::vector<BenchCase> cases;  // without repeats, by depth
  std::vector<SkippedCase> skipped;
  std::vector<uint32_t> sequence_tokens;  // room that each sequence needs, in whole blocks

  uint64_t pool_tokens() const;
  // Tokens of all sequences that cases run after their depth, each sequence's longest case.
  uint64_t case_tokens() const;
};

// Every prefill at every depth, one sequence each; the decode at every depth with every batch, once
// for each selector.
BenchPlan PlanBench(const BenchWishes& wishes, const BenchLimits& limits);

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_BENCH_PLAN_H_
