// How the server is: GET /health, /ready, /version, /config, /metrics,
// /openapi.json.
#include <boost/json/object.hpp>

#include "server/api_error.h"
#include "server/openapi.h"
#include "server/routes.h"
#include "text/json_text.h"

namespace tinyserve {

namespace json = boost::json;

// That this process answers, and what its device fails with; /ready says whether it can serve.
HttpReply Health(const Service& service, const HttpRequest&) {
  HttpReply reply;
  const Engine* engine = service.engine();
  const std::string error = engine == nullptr ? "" : engine->stats().device_error;
  if (!error.empty()) {
    reply.status = 503;
    reply.body = ToJson(json::object{{"status", "device failed"}, {"error", error}});
    return reply;
  }
  reply.body = R"({"status": "ok"})";
  return reply;
}

HttpReply Ready(const Service& service, const HttpRequest&) {
  const bool loaded = service.engine() != nullptr;
  const bool ready = loaded && !service.stopping();
  HttpReply reply;
  reply.status = ready ? 200 : 503;
  reply.body = ToJson(json::object{{"status", ready    ? "ready"
                                              : loaded ? "stopping"
                                                       : "loading"},
                                   {"progress", service.loading()}});
  return reply;
}

HttpReply Version(const Service& service, const HttpRequest&) {
  HttpReply reply;
  reply.body = ToJson(json::object{{"version", service.options().version}});
  return reply;
}

HttpReply Config(const Service& service, const HttpRequest&) {
  HttpReply reply;
  reply.body = service.options().config_json;
  return reply;
}

HttpReply OpenApi(const Service& service, const HttpRequest&) {
  HttpReply reply;
  reply.body = ToJson(OpenApiDocument(service.options().version));
  return reply;
}

HttpReply MetricsText(const Service& service, const HttpRequest&) {
  HttpReply reply;
  reply.content_type = "text/plain; version=0.0.4; charset=utf-8";
  const Engine* engine = service.engine();
  if (engine != nullptr) {
    const EngineStats stats = engine->stats();
    reply.body = service.metrics()->Text(&stats);
  } else {
    reply.body = service.metrics()->Text(nullptr);
  }
  return reply;
}

}  // namespace tinyserve
