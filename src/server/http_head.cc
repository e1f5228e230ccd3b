#include "server/http_head.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/beast/core/string.hpp>
#include <cctype>
#include <string>
#include <utility>

#include "server/http_text.h"

namespace tinyserve {
namespace {

using boost::beast::iequals;

ApiError Wrong(int status, std::string message, std::string code) {
  return {.status = status, .message = std::move(message), .param = "", .code = std::move(code)};
}

std::optional<ApiError> CheckHeaders(const HeaderList& headers) {
  size_t hosts = 0;
  for (const auto& [name, value] : headers) {
    if (name == "host" && ++hosts > 1) return Wrong(400, "there are two Host headers", "bad_http");
    if (name == "transfer-encoding" && !iequals(value, "chunked"))
      return Wrong(400, "the one Transfer-Encoding that is read here is chunked", "bad_http");
    if (name == "content-encoding" && !iequals(value, "identity"))
      return Wrong(415, "bodies are not decompressed here: send them as they are",
                   "unsupported_encoding");
    if (name == "expect" && !iequals(value, "100-continue"))
      return Wrong(417, "the one expectation that is met here is 100-continue",
                   "expectation_failed");
  }
  return std::nullopt;
}

}  // namespace

std::optional<ApiError> TakeHead(const boost::beast::http::request_header<>& head,
                                 HttpRequest* request) {
  request->method = std::string(head.method_string());
  for (const auto& field : head) {
    std::string name(field.name_string());
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    request->headers.emplace_back(std::move(name), std::string(field.value()));
  }
  if (const std::string_view id = request->Header("x-request-id"); IsPlainId(id)) request->id = id;
  const auto target = head.target();
  const std::string_view text(target.data(), target.size());
  std::optional<std::string> path = PathOfTarget(text);
  std::optional<HeaderList> query = QueryOfTarget(text);
  if (!path || !query)
    return Wrong(400, "the request's target is no path with a query", "bad_http");
  request->path = *std::move(path);
  request->query = *std::move(query);
  return CheckHeaders(request->headers);
}

}  // namespace tinyserve
