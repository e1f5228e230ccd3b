// HTTP/1.1 on the wire, as far as it is written here: heads, chunks, targets.
#ifndef TINYSERVE_SERVER_HTTP_TEXT_H_
#define TINYSERVE_SERVER_HTTP_TEXT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "server/http_types.h"

namespace tinyserve {

// "Not Found" of 404; "" where it has no name here.
std::string_view ReasonPhrase(int status);

// "Sun, 06 Nov 1994 08:49:37 GMT": RFC 9110, 5.6.7. Seconds since 1970.
std::string HttpDate(int64_t unix_seconds);

// How the end of a reply's body is told.
struct BodyFraming {
  std::optional<uint64_t> content_bytes;  // nothing: chunks, or the connection's end
  bool chunked = false;
  bool keep_alive = true;
};

// The head of a reply up to and with its empty line. Line breaks in values become spaces.
std::string FormatHead(const HttpReply& reply, const HeaderList& common,
                       const BodyFraming& framing);

// One chunk of a chunked body. REQUIRES: `data` is not empty: that would end the body.
std::string FormatChunk(std::string_view data);
inline constexpr std::string_view kLastChunk = "0\r\n\r\n";

// The path of a request's target ("/v1/models?limit=1", or a whole address), percent-decoded.
// Nothing: it is not one, or decodes to a control character.
std::optional<std::string> PathOfTarget(std::string_view target);

// Its query's parameters, percent-decoded, "+" being a space. Nothing: too many (64), or one that
// decodes to a control character.
std::optional<HeaderList> QueryOfTarget(std::string_view target);

// Whether a client's X-Request-Id may be repeated in logs and replies: 1 to 128 of letters, digits
// and "-_.:".
bool IsPlainId(std::string_view text);

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_HTTP_TEXT_H_
