// What a connection reads: requests, one after the other, parsed within limits, by Beast and then
// by TakeHead. A request that passes has one path, one host and a framing that is understood.
#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "base/check.h"
#include "server/http_head.h"
#include "server/http_text.h"

namespace tinyserve {
namespace {

namespace http = boost::beast::http;

constexpr uint32_t kHeaderBytesMax = 4096;
constexpr uint64_t kBodyBytesMax = 1 << 16;

void CheckRequest(const HttpRequest& request) {
  TS_CHECK(request.path.starts_with('/'));
  for (const char c : request.path) TS_CHECK(static_cast<unsigned char>(c) >= 0x20);
  size_t hosts = 0;
  for (const auto& [name, value] : request.headers) {
    hosts += name == "host" ? 1 : 0;
    TS_CHECK(std::none_of(name.begin(), name.end(), [](char c) { return c >= 'A' && c <= 'Z'; }));
    TS_CHECK(value.find_first_of("\r\n") == std::string::npos);
  }
  TS_CHECK(hosts <= 1);
}

// How much of `bytes` one request took; 0: it is none, or not whole.
size_t ReadOne(std::string_view bytes) {
  http::request_parser<http::string_body> parser;
  parser.header_limit(kHeaderBytesMax);
  parser.body_limit(kBodyBytesMax);
  boost::system::error_code error;
  size_t read = parser.put(boost::asio::buffer(bytes.data(), bytes.size()), error);
  if (error || !parser.is_header_done()) return 0;
  HttpRequest request;
  const std::optional<ApiError> wrong = TakeHead(parser.get(), &request);
  if (wrong) {
    TS_CHECK(wrong->status >= 400 && wrong->status < 500 && !wrong->message.empty());
    TS_CHECK(!ReasonPhrase(wrong->status).empty());
    return 0;
  }
  CheckRequest(request);
  while (!error && !parser.is_done() && read < bytes.size()) {
    const size_t more =
        parser.put(boost::asio::buffer(bytes.data() + read, bytes.size() - read), error);
    if (more == 0) break;
    read += more;
  }
  if (error || !parser.is_done()) return 0;
  TS_CHECK(parser.get().body().size() <= kBodyBytesMax);
  return read;
}

}  // namespace
}  // namespace tinyserve

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  while (!rest.empty()) {
    const size_t read = tinyserve::ReadOne(rest);
    if (read == 0) break;
    rest.remove_prefix(read);
  }
  return 0;
}
