#include "server/routes.h"

#include <fmt/format.h>

namespace tinyserve {
namespace {

constexpr Route kRoutes[] = {{"POST", "/v1/completions", false, Complete},
                             {"POST", "/v1/chat/completions", false, Chat},
                             {"POST", "/v1/responses", false, Respond},
                             {"POST", "/v1/responses/*/cancel", false, CancelResponse},
                             {"GET", "/v1/responses/*/input_items", false, ResponseInput},
                             {"GET", "/v1/responses/*", false, OneResponse},
                             {"DELETE", "/v1/responses/*", false, DeleteResponse},
                             {"POST", "/v1/embeddings", false, Embed},
                             {"GET", "/v1/sessions", false, ListSessions},
                             {"DELETE", "/v1/sessions/*", false, DeleteSession},
                             {"GET", "/v1/models", false, ListModels},
                             {"GET", "/v1/models/*", false, OneModel},
                             {"POST", "/tokenize", false, Tokenize},
                             {"POST", "/detokenize", false, Detokenize},
                             {"GET", "/tokenizer_info", false, DescribeTokenizer},
                             {"GET", "/health", true, Health},
                             {"GET", "/ready", false, Ready},
                             {"GET", "/version", false, Version},
                             {"GET", "/config", false, Config},
                             {"GET", "/metrics", false, MetricsText},
                             {"GET", "/openapi.json", false, OpenApi},
                             {"GET", "/", true, Dashboard},
                             {"GET", "/dashboard/pages", false, DashboardPages},
                             {"GET", "/dashboard/state", false, DashboardState}};

bool Matches(const Route& route, std::string_view path) {
  const size_t star = route.path.find('*');
  if (star == std::string_view::npos) return path == route.path;
  const std::string_view prefix = route.path.substr(0, star), rest = route.path.substr(star + 1);
  if (!path.starts_with(prefix) || !path.ends_with(rest)) return false;
  if (path.size() <= prefix.size() + rest.size()) return false;
  path = path.substr(prefix.size(), path.size() - prefix.size() - rest.size());
  return rest.empty() || path.find('/') == std::string_view::npos;
}

}  // namespace

std::span<const Route> AllRoutes() { return kRoutes; }

const Route* FindRoute(std::string_view method, std::string_view path) {
  if (method == "HEAD") method = "GET";
  for (const Route& route : kRoutes) {
    if (route.method == method && Matches(route, path)) return &route;
  }
  return nullptr;
}

std::string MethodsOf(std::string_view path) {
  std::string methods;
  for (const Route& route : kRoutes) {
    if (!Matches(route, path)) continue;
    if (!methods.empty()) methods += ", ";
    methods += route.method;
    if (route.method == "GET") methods += ", HEAD";
  }
  return methods;
}

std::string LoggedPath(std::string_view path) {
  for (const Route& route : kRoutes) {
    if (Matches(route, path)) return std::string(route.path);
  }
  return fmt::format("(unknown, {} bytes)", path.size());
}

}  // namespace tinyserve
