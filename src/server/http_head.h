// A request's head as Beast parsed it, made the HttpRequest that routes see.
#ifndef TINYSERVE_SERVER_HTTP_HEAD_H_
#define TINYSERVE_SERVER_HTTP_HEAD_H_

#include <boost/beast/http/message.hpp>
#include <optional>

#include "server/api_error.h"
#include "server/http_types.h"

namespace tinyserve {

// Fills in method, path, query and headers, and the client's own id where it gives one. Nothing:
// all is well; else why the head cannot be served, though it is HTTP: 400 for a target that is no
// path, several hosts (RFC 9112, 3.2) or a framing of the body that is not read here (a proxy in
// front might see another request in it), 415 for a body that is compressed, 417 for another
// expectation than 100-continue.
std::optional<ApiError> TakeHead(const boost::beast::http::request_header<>& head,
                                 HttpRequest* request);

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_HTTP_HEAD_H_
