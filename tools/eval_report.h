// What `tinyserve eval --method` prints: a JSON line a method and context for programs, a table for
// people.
#ifndef TINYSERVE_TOOLS_EVAL_REPORT_H_
#define TINYSERVE_TOOLS_EVAL_REPORT_H_

#include <boost/json/object.hpp>
#include <string>
#include <vector>

#include "tinyserve/engine.h"

namespace tinyserve {

// Where an evaluation was made.
struct EvalSetup {
  std::string model, text, target;
  std::string base_kv;  // of the dense attention that methods are compared with
  std::string compute;
  uint32_t threads = 0, page_tokens = 0;
};

// A method at a context.
struct EvalLine {
  std::string method, resolved;  // as typed, and with every option
  std::string kv;                // how its keys and values are stored
  uint32_t context = 0;          // tokens of a window
  uint32_t window_scored = 0;    // of them, those that were scored
  bool is_long = false;          // a long decode: kl_by_position is wanted
  uint64_t windows = 0, scored_tokens = 0;
  double kl = 0, kl_p99 = 0, top1 = 0, dppl = 0, dppl_se = 0;
  double dense_perplexity = 0;
  std::vector<double> kl_by_position;  // means of kKlPeriodTokens
  uint64_t kv_bytes = 0;               // held for a sequence of `context`, metadata counted
  uint64_t dense_kv_bytes = 0;         // in f16 without metadata
  double kv_bytes_read_per_token = 0;
  double dense_bytes_read_per_token = 0;  // in f16
  double decode_tokens_per_s = 0, dense_tokens_per_s = 0;
  double speedup = 0;  // over dense attention in the same turns, median of the windows
  uint64_t selector_failures = 0;
  ShadowStats shadow;                  // no checks where nothing selected
  double hit_rate = 0;                 // NaN where nothing selected
  std::vector<LayerSelection> layers;  // where they were asked for
};

constexpr uint32_t kKlPeriodTokens = 256;

boost::json::object EvalLineJson(const EvalLine& line, const EvalSetup& setup);
// What the table is about, and the heads of its columns.
std::string EvalTableHead(const EvalSetup& setup, size_t method_columns);
std::string EvalTableRow(const EvalLine& line, size_t method_columns);

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_EVAL_REPORT_H_
