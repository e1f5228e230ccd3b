#include "server/service.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cctype>
#include <ctime>
#include <utility>

#include "server/api_error.h"
#include "server/http_text.h"
#include "server/routes.h"

namespace tinyserve {
namespace {

ApiError Forbidden(std::string message) {
  return {.status = 403, .message = std::move(message), .param = "", .code = "forbidden"};
}

// Whether it is a list of names of headers.
bool NamesHeaders(std::string_view text) {
  constexpr size_t kBytesMax = 2048;
  return !text.empty() && text.size() <= kBytesMax &&
         std::all_of(text.begin(), text.end(), [](unsigned char c) {
           return (c < 0x80 && std::isalnum(c) != 0) || c == '-' || c == '_' || c == ',' ||
                  c == ' ';
         });
}

// A browser asks before it sends what pages of other origins want to send. Whoever may use the
// server may send any header: OpenAI's own client has a dozen (X-Stainless-…).
HttpReply Preflight(const HttpRequest& request) {
  const std::string_view asked = request.Header("access-control-request-headers");
  HttpReply reply;
  reply.status = 204;
  reply.content_type.clear();
  reply.headers = {
      {"Access-Control-Allow-Methods", "GET, POST, DELETE, OPTIONS"},
      {"Access-Control-Allow-Headers",
       std::string(NamesHeaders(asked) ? asked : "Authorization, Content-Type, X-Request-Id")},
      {"Access-Control-Max-Age", "600"}};
  return reply;
}

HttpReply NoSuchRoute(const HttpRequest& request) {
  const std::string allowed = MethodsOf(request.path);
  ApiError error;
  error.status = allowed.empty() ? 404 : 405;
  error.message = allowed.empty()
                      ? fmt::format("there is no route {}", request.path)
                      : fmt::format("{} allows {}, not {}", request.path, allowed, request.method);
  error.code = allowed.empty() ? "not_found" : "method_not_allowed";
  HttpReply reply = ErrorReply(error);
  if (!allowed.empty()) reply.headers.emplace_back("Allow", allowed);
  return reply;
}

}  // namespace

Service::Service(ServiceOptions options, ApiKeys* keys, Metrics* metrics)
    : options_(std::move(options)),
      keys_(keys),
      metrics_(metrics),
      created_(std::time(nullptr)),
      responses_(std::make_unique<ResponseStore>(options_.responses)),
      limits_(options_.limits),
      background_(std::make_unique<BackgroundWork>()) {}

void Service::SetEngine(Engine* engine) {
  limits_.models = options_.models;
  limits_.vocab = engine->info().vocab;
  limits_.context_tokens = engine->info().context_tokens;
  loading_ = 1;
  engine_.store(engine, std::memory_order_release);
}

std::string Service::ClientOf(const HttpRequest& request) const {
  return keys_->size() > 1 ? fmt::format("{:016x}", request.client) : "";
}

void Service::SetOwner(const HttpRequest& http, const std::string& cache_salt,
                       Request* request) const {
  request->client = ClientOf(http);
  request->salt = request->client;
  request->peer = http.peer;
  if (!cache_salt.empty()) request->salt += "/" + cache_salt;
}

std::optional<HttpReply> Service::Refuse(HttpRequest* head) {
  const OriginRules& origins = options_.origins;
  const std::string_view host = head->Header("host"), origin = head->Header("origin");
  if (!HostAllowed(origins, host)) {
    return ErrorReply(Forbidden(
        "the Host header names no host that this server answers for; --allowed-host adds one"));
  }
  if (!OriginAllowed(origins, origin, host)) {
    return ErrorReply(
        Forbidden("pages of this origin may not use this server; --cors-origin allows one"));
  }
  if (head->method == "OPTIONS" && CorsAllowed(origins, origin)) return Preflight(*head);
  const Route* route = FindRoute(head->method, head->path);
  if (route == nullptr || !route->open) {
    // Also for what does not exist: a stranger learns nothing.
    const std::optional<std::string_view> key = BearerKey(head->Header("authorization"));
    const std::optional<uint64_t> client = key ? keys_->Find(*key) : std::nullopt;
    if (!client && !keys_->empty()) {
      return ErrorReply({.status = 401,
                         .message = key ? "the API key is wrong"
                                        : "an API key is needed: Authorization: Bearer KEY",
                         .param = "",
                         .code = "invalid_api_key"});
    }
    head->client = client.value_or(0);
  }
  if (route == nullptr) return NoSuchRoute(*head);
  return std::nullopt;
}

HttpReply Service::Handle(const HttpRequest& request) {
  const Route* route = FindRoute(request.method, request.path);
  if (route == nullptr) return NoSuchRoute(request);
  return route->handle(*this, request);
}

HeaderList Service::CommonHeaders(const HttpRequest& request) {
  HeaderList headers = {{"Date", HttpDate(std::time(nullptr))},
                        {"X-Request-Id", request.id},
                        {"X-Content-Type-Options", "nosniff"},
                        {"Cache-Control", "no-store"}};
  const std::string_view origin = request.Header("origin");
  if (CorsAllowed(options_.origins, origin)) {
    headers.emplace_back("Access-Control-Allow-Origin", origin);
    headers.emplace_back("Access-Control-Expose-Headers", "X-Request-Id, Retry-After");
    headers.emplace_back("Vary", "Origin");
  }
  return headers;
}

void Service::Answered(const AccessRecord& record) {
  metrics_->ObserveReply(record.status);
  const HttpRequest& request = *record.request;
  // Never the body, nor what is after the path: prompts stay out of logs.
  spdlog::info("request id={} method={} path={} status={} bytes={} seconds={:.4f}{}", request.id,
               request.method, LoggedPath(request.path), record.status, record.body_bytes,
               record.seconds, record.interrupted ? " interrupted" : "");
}

}  // namespace tinyserve
