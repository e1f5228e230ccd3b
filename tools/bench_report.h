// What `tinyserve bench` prints: a JSON line a case for programs, tables for people.
#ifndef TINYSERVE_TOOLS_BENCH_REPORT_H_
#define TINYSERVE_TOOLS_BENCH_REPORT_H_

#include <boost/json/object.hpp>
#include <optional>
#include <string>
#include <vector>

#include "tools/bench_plan.h"
#include "tools/bench_runner.h"
#include "tools/machine_peaks.h"
#include "tools/method.h"

namespace tinyserve {

struct BenchSetup {
  std::string model, target;
  std::string base_kv;  // of the dense decodes that others are compared with
  std::string compute;
  std::string text;  // what prompts are made of; "": random tokens
  uint32_t threads = 0;
  uint32_t chunk_tokens = 0;
  std::vector<Method> methods;  // by BenchCase::selector
  MachinePeaks peaks;
  std::optional<DevicePeaks> device_peaks;  // where `peaks` are those of a device
};

struct CaseResult {
  BenchCase bench_case;
  std::vector<BenchSample> samples;  // one a round
};

// Figures of a case over its rounds. Tokens count all sequences of the batch.
struct CaseFigures {
  double tokens_per_s_median, tokens_per_s_min, tokens_per_s_max;
  double bytes_per_step;
  // NaN where the machine's peaks were not measured.
  double bandwidth_share;  // bytes / median time / measured bandwidth
  double roofline_share;   // the least time for its bytes and multiply-adds / median time
  // Of a decode on a device, over all rounds, a step; NaN else.
  double host_ms, device_ms;
  double hidden_share;  // of the host's time: that in which the device was busy
};

// REQUIRES: at least one sample, no time is 0.
CaseFigures FiguresOf(const CaseResult& result, const MachinePeaks& peaks);

// How many times as fast as the same decode under `full`, stored as base_kv, in the same rounds
// (median); NaN where the results have none.
double SpeedupOverFull(const CaseResult& result, const std::vector<CaseResult>& results,
                       const BenchSetup& setup);

// `results`: all of the run.
boost::json::object CaseJson(const CaseResult& result, const std::vector<CaseResult>& results,
                             const BenchSetup& setup);
boost::json::object SkippedJson(const SkippedCase& skipped);
boost::json::object PeaksJson(const BenchSetup& setup);
std::string PeaksTable(const BenchSetup& setup);
std::string CaseTable(const std::vector<CaseResult>& results, const BenchSetup& setup);

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_BENCH_REPORT_H_
