// What went wrong with a request, in the form that OpenAI's API gives it.
#ifndef TINYSERVE_SERVER_API_ERROR_H_
#define TINYSERVE_SERVER_API_ERROR_H_

#include <string>

#include "server/http_types.h"
#include "tinyserve/status.h"

namespace tinyserve {

struct ApiError {
  int status = 400;
  std::string message;
  std::string type = "invalid_request_error";
  std::string param;  // the field, as in "stream_options.include_usage"; "": none
  std::string code;   // "": none
};

// {"error": {"message", "type", "param", "code"}}, absent ones null.
std::string ErrorJson(const ApiError& error);
HttpReply ErrorReply(const ApiError& error);

// What the engine refused: 429 with Retry-After for a full queue, 400 for the caller's values, else
// 500.
ApiError ErrorOf(const Status& status);

ApiError BadField(std::string param, std::string message);
// The server lacks something for now: the model, a free connection, time before it ends.
ApiError Unavailable(std::string message);

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_API_ERROR_H_
