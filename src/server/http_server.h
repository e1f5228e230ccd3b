// The HTTP/1.1 server: listens, reads requests within limits, hands them to a handler, writes
// replies. Boost.Asio stays behind this header: it costs seconds of every file that sees it.
#ifndef TINYSERVE_SERVER_HTTP_SERVER_H_
#define TINYSERVE_SERVER_HTTP_SERVER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "server/http_types.h"
#include "tinyserve/status.h"

namespace tinyserve {

struct HttpOptions {
  std::string host = "127.0.0.1";  // an address, or localhost
  uint16_t port = 8080;            // 0: any free one
  // PEM: the certificate with those between it and its authority, and its key. Empty: no TLS.
  std::string tls_certificate, tls_key;
  uint32_t threads = 2;
  uint32_t connections_max = 1024;
  uint32_t header_bytes_max = 16 * 1024;
  uint64_t body_bytes_max = 2 << 20;     // of one request
  uint64_t bodies_bytes_max = 64 << 20;  // of all requests that are being read
  uint32_t header_seconds = 10;          // for a whole head
  uint32_t body_seconds = 30;            // for a whole body
  uint32_t idle_seconds = 75;            // between requests of a connection
  uint32_t write_seconds = 30;           // for each part of a reply
  uint32_t heartbeat_seconds = 15;       // of silence in a stream
  uint32_t drain_seconds = 30;           // what runs when Stop is called may still take
};

class HttpServer {
 public:
  // Binds and listens; connections wait until Start. `handler` must outlive the server. Errors:
  // kInvalidArgument (the host, TLS's files), kIo (the address is in use, or not this machine's).
  static Result<std::unique_ptr<HttpServer>> Listen(const HttpOptions& options,
                                                    HttpHandler* handler);
  // Drops what still runs.
  virtual ~HttpServer() = default;

  virtual uint16_t port() const = 0;
  virtual void Start() = 0;
  // `on_signal` is called on a thread of the server for SIGINT, SIGTERM and SIGHUP, in place of
  // what they did before. REQUIRES: before Start.
  virtual void TakeSignals(std::function<void(int signal)> on_signal) = 0;
  // Reads TLS's files again, for connections to come. Errors: as Listen's, and nothing is changed.
  // Any thread.
  virtual Status ReloadTls() = 0;
  // Stops accepting; requests that run may finish within drain_seconds. Called again: they are
  // dropped at once. Any thread.
  virtual void Stop() = 0;
  // Returns once all is over after Stop.
  virtual void Join() = 0;
};

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_HTTP_SERVER_H_
