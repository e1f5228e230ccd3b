// The table of routes, and the functions that answer them.
#ifndef TINYSERVE_SERVER_ROUTES_H_
#define TINYSERVE_SERVER_ROUTES_H_

#include <span>
#include <string>
#include <string_view>

#include "server/http_types.h"
#include "server/service.h"

namespace tinyserve {

struct Route {
  // In a path, "*" stands for one or more characters, without a slash but at its end.
  std::string_view method, path;
  bool open;  // answers without an API key
  HttpReply (*handle)(const Service& service, const HttpRequest& request);
};

std::span<const Route> AllRoutes();
// Null: there is none. A HEAD is answered as a GET is.
const Route* FindRoute(std::string_view method, std::string_view path);
// "GET, POST" of a path that has routes; else "".
std::string MethodsOf(std::string_view path);
// A path as logs may have it: one that no route has may be anything, so only its length is told.
std::string LoggedPath(std::string_view path);

// completions_route.cc, chat_route.cc
HttpReply Complete(const Service& service, const HttpRequest& request);
HttpReply Chat(const Service& service, const HttpRequest& request);
// responses_route.cc
HttpReply Respond(const Service& service, const HttpRequest& request);
HttpReply OneResponse(const Service& service, const HttpRequest& request);
HttpReply DeleteResponse(const Service& service, const HttpRequest& request);
HttpReply CancelResponse(const Service& service, const HttpRequest& request);
HttpReply ResponseInput(const Service& service, const HttpRequest& request);
// sessions_route.cc
HttpReply ListSessions(const Service& service, const HttpRequest& request);
HttpReply DeleteSession(const Service& service, const HttpRequest& request);
// embeddings_route.cc
HttpReply Embed(const Service& service, const HttpRequest& request);
// models_route.cc
HttpReply ListModels(const Service& service, const HttpRequest& request);
HttpReply OneModel(const Service& service, const HttpRequest& request);
// tokenize_route.cc
HttpReply Tokenize(const Service& service, const HttpRequest& request);
HttpReply Detokenize(const Service& service, const HttpRequest& request);
HttpReply DescribeTokenizer(const Service& service, const HttpRequest& request);
// status_routes.cc
HttpReply Health(const Service& service, const HttpRequest& request);
HttpReply Ready(const Service& service, const HttpRequest& request);
HttpReply Version(const Service& service, const HttpRequest& request);
HttpReply Config(const Service& service, const HttpRequest& request);
HttpReply OpenApi(const Service& service, const HttpRequest& request);
HttpReply MetricsText(const Service& service, const HttpRequest& request);
// dashboard_route.cc
HttpReply Dashboard(const Service& service, const HttpRequest& request);
HttpReply DashboardPages(const Service& service, const HttpRequest& request);
HttpReply DashboardState(const Service& service, const HttpRequest& request);

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_ROUTES_H_
