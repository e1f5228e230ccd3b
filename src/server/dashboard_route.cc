// GET /: the dashboard's page, open to all; it asks for the key that its data needs.
// GET /dashboard/state: what it shows. GET /dashboard/pages: which pages a request reads.
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <charconv>
#include <utility>

#include "server/api_error.h"
#include "server/base64.h"
#include "server/dashboard.h"
#include "server/routes.h"
#include "text/json_text.h"

namespace tinyserve {

namespace json = boost::json;

HttpReply Dashboard(const Service&, const HttpRequest&) {
  HttpReply reply;
  reply.content_type = "text/html; charset=utf-8";
  // The page's own inline code runs, and nothing else; no other page may frame it.
  reply.headers = {{"Content-Security-Policy",
                    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
                    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
                    "frame-ancestors 'none'"},
                   {"Referrer-Policy", "no-referrer"}};
  reply.body = kDashboardPage;
  return reply;
}

HttpReply DashboardPages(const Service& service, const HttpRequest& http) {
  Engine* engine = service.engine();
  if (engine == nullptr) return ErrorReply(Unavailable("the model is still loading"));
  RequestId request = 0;
  for (const auto& [name, value] : http.query) {
    const char* end = value.data() + value.size();
    const auto [last, failed] = std::from_chars(value.data(), end, request);
    if (name == "request" && failed == std::errc() && last == end) continue;
    return ErrorReply(BadField(name, "the one parameter is 'request', a request's number"));
  }
  const PageReads reads = engine->WatchPages(service.ClientOf(http), request);
  json::array running;
  for (const RunningRequest& r : reads.running) {
    running.push_back(json::object{{"id", r.id},
                                   {"prompt_tokens", r.prompt_tokens},
                                   {"generated_tokens", r.generated_tokens},
                                   {"session", r.session}});
  }
  json::object shown = {{"running", std::move(running)}, {"request", reads.request}};
  if (reads.request != 0) {
    const uint32_t pages = (reads.tokens + reads.page_tokens - 1) / reads.page_tokens;
    const size_t words = (pages + 63) / 64, bytes = (pages + 7) / 8;
    json::array rows;  // a bit a page, the first in the lowest place of the first byte
    for (size_t i = 0; i < reads.bits.size(); i += words) {
      rows.push_back(
          json::value(Base64({reinterpret_cast<const uint8_t*>(reads.bits.data() + i), bytes})));
    }
    shown["tokens"] = reads.tokens;
    shown["page_tokens"] = reads.page_tokens;
    shown["pages"] = pages;
    shown["layers"] = reads.layers;
    shown["kv_heads"] = reads.kv_heads;
    shown["selector"] = reads.selector;
    shown["rows"] = std::move(rows);
  }
  HttpReply reply;
  reply.body = ToJson(shown);
  return reply;
}

HttpReply DashboardState(const Service& service, const HttpRequest&) {
  json::object state = {{"model", service.options().models.front()},
                        {"version", service.options().version},
                        {"loading", service.loading()},
                        {"ready", service.engine() != nullptr && !service.stopping()}};
  json::array selectors;
  for (const std::string& selector : service.options().selectors) selectors.emplace_back(selector);
  state["selectors"] = std::move(selectors);
  if (const Engine* engine = service.engine(); engine != nullptr) {
    const EngineStats stats = engine->stats();
    const ModelInfo& info = engine->info();
    state["context_tokens"] = info.context_tokens;
    state["target"] = info.target;
    state["threads"] = info.threads;
    state["kv"] = info.kv;
    state["selector"] = info.selector;
    state["has_chat_template"] = info.has_chat_template;
    state["running"] = stats.running;
    state["waiting"] = stats.waiting;
    state["kv_blocks_used"] = stats.blocks_used;
    state["kv_blocks_total"] = stats.blocks_total;
    state["kv_pool_bytes"] = info.kv_pool_bytes;
    state["prompt_tokens"] = stats.prompt_tokens;
    state["generated_tokens"] = stats.generated_tokens;
    state["requests"] = stats.requests;
    state["prefix_queries"] = stats.prefix_queries;
    state["prefix_hits"] = stats.prefix_hits;
    state["pages_held"] = stats.selection.pages_held;
    state["pages_read"] = stats.selection.pages_read;
    state["pages_followed"] = stats.selection.pages_followed;
    state["pages_reused"] = stats.selection.pages_reused;
  }
  const LatencyTotals latencies = service.metrics()->Latencies();
  state["first_tokens"] = latencies.first_tokens;
  state["first_token_seconds"] = latencies.first_token_seconds;
  state["token_gaps"] = latencies.token_gaps;
  state["token_gap_seconds"] = latencies.token_gap_seconds;
  HttpReply reply;
  reply.body = ToJson(state);
  return reply;
}

}  // namespace tinyserve
