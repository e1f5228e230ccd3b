// GET /: the dashboard's page, open to all; it asks for the key that its data needs.
// GET /dashboard/state: what it shows.
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>

#include "server/api_error.h"
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

HttpReply DashboardState(const Service& service, const HttpRequest&) {
  json::object state = {{"model", service.options().models.front()},
                        {"version", service.options().version},
                        {"loading", service.loading()},
                        {"ready", service.engine() != nullptr && !service.stopping()}};
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
    state["pages_held"] = stats.selection.pages_held;
    state["pages_read"] = stats.selection.pages_read;
    state["pages_followed"] = stats.selection.pages_followed;
    state["pages_reused"] = stats.selection.pages_reused;
  }
  HttpReply reply;
  reply.body = ToJson(state);
  return reply;
}

}  // namespace tinyserve
