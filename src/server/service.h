// The server's answer to every request: who may ask, which route answers, what is counted.
#ifndef TINYSERVE_SERVER_SERVICE_H_
#define TINYSERVE_SERVER_SERVICE_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "server/api_keys.h"
#include "server/background_work.h"
#include "server/http_types.h"
#include "server/metrics.h"
#include "server/openai_request.h"
#include "server/request_origin.h"
#include "server/response_store.h"
#include "server/tool_format.h"
#include "tinyserve/engine.h"

namespace tinyserve {

struct ServiceOptions {
  std::vector<std::string> models;     // served names; the first is the one that replies carry
  std::vector<std::string> selectors;  // that the dashboard suggests: requests may name them
  OriginRules origins;
  RequestLimits limits;
  AnswerParsers parsers;
  ResponseStoreLimits responses;
  std::string config_json = "{}";  // what /config answers: effective options without secrets
  std::string version;
};

// Shared by all routes. Any thread.
class Service : public HttpHandler {
 public:
  // `keys` and `metrics` must outlive it.
  Service(ServiceOptions options, ApiKeys* keys, Metrics* metrics);

  // While the model loads: 0 to 1.
  void SetLoading(double fraction) { loading_ = fraction; }
  // From now on requests are answered. `engine` must outlive the service.
  void SetEngine(Engine* engine);
  // From now on /ready says no, so that a balancer sends no more.
  void SetStopping() { stopping_ = true; }

  std::optional<HttpReply> Refuse(HttpRequest* head) override;
  HttpReply Handle(const HttpRequest& request) override;
  HeaderList CommonHeaders(const HttpRequest& request) override;
  void Answered(const AccessRecord& record) override;
  void CountConnections(uint64_t open) override { metrics_->SetConnections(open); }

  // For the routes.
  const ServiceOptions& options() const { return options_; }
  const RequestLimits& limits() const { return limits_; }  // REQUIRES: engine() is there
  Engine* engine() const { return engine_.load(std::memory_order_acquire); }
  Metrics* metrics() const { return metrics_; }
  ResponseStore* responses() const { return responses_.get(); }
  BackgroundWork* background() const { return background_.get(); }
  double loading() const { return loading_; }
  bool stopping() const { return stopping_; }
  // Says whose a request is. Prompts of clients with different keys share nothing, nor do those of
  // one that gives different salts of its own.
  void SetOwner(const HttpRequest& http, const std::string& cache_salt, Request* request) const;
  // Of the engine's requests and sessions.
  std::string ClientOf(const HttpRequest& request) const;
  int64_t created() const { return created_; }  // Unix time at which this service began

 private:
  const ServiceOptions options_;
  ApiKeys* const keys_;
  Metrics* const metrics_;
  const int64_t created_;
  const std::unique_ptr<ResponseStore> responses_;
  RequestLimits limits_;  // written once, before engine_
  std::atomic<Engine*> engine_{nullptr};
  std::atomic<double> loading_{0};
  std::atomic<bool> stopping_{false};
  const std::unique_ptr<BackgroundWork> background_;  // ends first: it uses all of the above
};

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_SERVICE_H_
