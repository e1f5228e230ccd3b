// What the server counts, by the names that vLLM gives it, so that dashboards made for vLLM work.
#ifndef TINYSERVE_SERVER_METRICS_H_
#define TINYSERVE_SERVER_METRICS_H_

#include <cstdint>
#include <memory>
#include <string>

#include "tinyserve/engine.h"

namespace tinyserve {

// Sums over all requests so far.
struct LatencyTotals {
  uint64_t first_tokens = 0, token_gaps = 0;
  double first_token_seconds = 0, token_gap_seconds = 0;
};

// Any thread.
class Metrics {
 public:
  // `model`: the label model_name of every series.
  static std::unique_ptr<Metrics> Create(const std::string& model);
  virtual ~Metrics() = default;

  virtual void ObserveFirstToken(double seconds) = 0;  // since submission
  virtual void ObserveTokenGap(double seconds) = 0;    // between two tokens of a request
  // The kFinished of a request, `seconds` after its submission.
  virtual void ObserveFinish(const TokenEvent& event, double seconds) = 0;
  // A request whose client left.
  virtual void ObserveAbort() = 0;
  virtual void ObserveReply(int status) = 0;
  virtual void SetConnections(uint64_t open) = 0;
  // Of what ObserveFirstToken and ObserveTokenGap were told.
  virtual LatencyTotals Latencies() const = 0;

  // The Prometheus text format (version 0.0.4), with gauges as `stats` has them; null: no engine
  // yet.
  virtual std::string Text(const EngineStats* stats) = 0;
};

// "stop", "length", "abort", "error": vLLM's label of a finished request.
const char* FinishLabel(FinishReason reason);

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_METRICS_H_
