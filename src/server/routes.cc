#include "server/routes.h"

#include <fmt/format.h>

namespace tinyserve {
namespace {

constexpr Route kRoutes[] = {{"POST", "/v1/completions", false, Complete},
                             {"POST", "/v1/chat/completions", false, Chat},
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
                             {"GET", "/", true, Dashboard},
                             {"GET", "/dashboard/state", false, DashboardState}};

bool Matches(const Route& route, std::string_view path) {
  if (!route.path.ends_with("/*")) return path == route.path;
  const std::string_view prefix = route.path.substr(0, route.path.size() - 1);
  return path.starts_with(prefix) && path.size() > prefix.size();
}

}  // namespace

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
