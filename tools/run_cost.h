// What an answer cost: speed, memory, and how much of this machine's bandwidth it used.
#ifndef TINYSERVE_TOOLS_RUN_COST_H_
#define TINYSERVE_TOOLS_RUN_COST_H_

#include <boost/json/object.hpp>
#include <cstdint>
#include <string>

#include "tinyserve/engine.h"

namespace tinyserve {

struct RunCost {
  uint32_t prompt_tokens = 0, completion_tokens = 0;
  double prompt_tokens_per_s = 0;  // 0: not measured
  double decode_tokens_per_s = 0;  // without the first token; 0: not measured
  double load_seconds = 0;
  double first_token_seconds = 0;    // from submission; 0: there was none
  uint64_t peak_resident_bytes = 0;  // of the process
  uint64_t kv_tokens = 0;            // that the cache holds in the end
  uint64_t kv_bytes = 0;             // of them
  uint64_t kv_pool_bytes = 0;        // reserved address space; touched only as far as it is used
  double bytes_per_token = 0;        // that a decode step had to read: weights, keys and values
  double pages_read_share = 1;       // of the pages that selecting queries held
  double bandwidth_bytes_per_s = 0;  // measured; 0: it was not
  // Of the measured bandwidth; NaN where one of the two is not known.
  double bandwidth_share() const;
};

// `before`, `after`: the engine's counts around the answer, nothing else running. REQUIRES: call it
// before anything else takes memory, as it asks for the peak.
RunCost CostOf(const Usage& usage, const ModelInfo& info, const EngineStats& before,
               const EngineStats& after, double load_seconds);

// This machine's read bandwidth, in a fifth of a second or so; 0 where memory is too short for it.
double QuickBandwidth(uint32_t threads);

std::string FormatCost(const RunCost& cost);
boost::json::object CostJson(const RunCost& cost);

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_RUN_COST_H_
