// HTTP as the routes see it: plain values, no sockets.
#ifndef TINYSERVE_SERVER_HTTP_TYPES_H_
#define TINYSERVE_SERVER_HTTP_TYPES_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tinyserve {

using HeaderList = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
  std::string method;
  std::string path;                                        // of the target, percent-decoded
  std::vector<std::pair<std::string, std::string>> query;  // of the target, percent-decoded
  HeaderList headers;                                      // names in lower case
  std::string body;
  std::string id;       // of the log line and the reply's X-Request-Id
  std::string peer;     // the address that it came from; of IPv6 the network, its first 64 bits
  uint64_t client = 0;  // of ApiKeys::Find: whose key it carries; 0: none

  // The header's value; "" where it is absent. A header given twice counts once, the first time.
  std::string_view Header(std::string_view lower_name) const {
    for (const auto& [name, value] : headers) {
      if (name == lower_name) return value;
    }
    return {};
  }
};

struct HttpReply;

// What wakes a reply: tokens, whose JSON is a matter of microseconds, or an end, which may take
// longer.
enum class News { kTokens, kEnd };

// What the engine still works on for a reply. Its end before that is done cancels it.
class ReplyWork {
 public:
  using Wake = std::function<void(News)>;

  virtual ~ReplyWork() = default;
  // `wake` is called, from any thread, when Advance has more to do, and may call that itself. It
  // must return quickly. Once this has returned, and at the destructor's end, no earlier one runs.
  virtual void SetWake(Wake wake) = 0;
  // Takes in what has arrived since the last call. Where the reply streams, appends what is to be
  // sent to `*out`. True: all of it has come.
  virtual bool Advance(std::string* out) = 0;
  // The reply of work that does not stream. REQUIRES: Advance returned true.
  virtual HttpReply Whole() = 0;
};

struct HttpReply {
  int status = 200;
  std::string content_type = "application/json";
  HeaderList headers;
  std::string body;                 // without work
  std::unique_ptr<ReplyWork> work;  // the body, or the whole reply, comes from there
  bool streams = false;             // the work's body is sent as it comes (server-sent events)
};

// What is known of an answered request, for logs and metrics.
struct AccessRecord {
  const HttpRequest* request;
  int status = 0;
  uint64_t body_bytes = 0;
  double seconds = 0;        // from the head's last byte to the reply's last
  bool interrupted = false;  // the client left, or was too slow, before the reply's end
};

// What answers requests. Called from several threads at once, never twice at once for a connection.
class HttpHandler {
 public:
  virtual ~HttpHandler() = default;
  // From the head alone: a reply that needs no body, or nothing. May fill `client`.
  virtual std::optional<HttpReply> Refuse(HttpRequest* head) = 0;
  virtual HttpReply Handle(const HttpRequest& request) = 0;
  // Headers that every reply to this request carries.
  virtual HeaderList CommonHeaders(const HttpRequest& request) = 0;
  virtual void Answered(const AccessRecord& record) = 0;
  virtual void CountConnections(uint64_t open) = 0;
};

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_HTTP_TYPES_H_
