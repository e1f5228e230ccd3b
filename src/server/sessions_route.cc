// GET /v1/sessions, DELETE /v1/sessions/{id}: conversations that requests name.
#include <fmt/format.h>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <ctime>

#include "server/api_error.h"
#include "server/routes.h"
#include "text/json_text.h"

namespace tinyserve {

namespace json = boost::json;

HttpReply ListSessions(const Service& service, const HttpRequest& http) {
  const Engine* engine = service.engine();
  if (engine == nullptr) return ErrorReply(Unavailable("the model is still loading"));
  const auto now = static_cast<double>(std::time(nullptr));
  json::array list;
  for (const SessionInfo& s : engine->sessions(service.ClientOf(http))) {
    list.push_back(json::object{{"id", s.session},
                                {"object", "session"},
                                {"created_at", static_cast<int64_t>(now - s.age_seconds)},
                                {"last_activity_at", static_cast<int64_t>(now - s.idle_seconds)},
                                {"requests", s.requests},
                                {"prompt_tokens", s.prompt_tokens},
                                {"generated_tokens", s.generated_tokens},
                                {"running", s.running}});
  }
  HttpReply reply;
  reply.body = ToJson(json::object{{"object", "list"}, {"data", std::move(list)}});
  return reply;
}

HttpReply DeleteSession(const Service& service, const HttpRequest& http) {
  Engine* engine = service.engine();
  if (engine == nullptr) return ErrorReply(Unavailable("the model is still loading"));
  const std::string name = http.path.substr(std::string_view("/v1/sessions/").size());
  if (!engine->EndSession(service.ClientOf(http), name)) {
    ApiError error = BadField("session", fmt::format("there is no session '{}'", name));
    error.status = 404;
    error.code = "not_found";
    return ErrorReply(error);
  }
  HttpReply reply;
  reply.body = ToJson(json::object{{"id", name}, {"object", "session"}, {"deleted", true}});
  return reply;
}

}  // namespace tinyserve
