// One client's connection: reads requests, one after the other, and writes their replies.
#ifndef TINYSERVE_SERVER_HTTP_CONNECTION_H_
#define TINYSERVE_SERVER_HTTP_CONNECTION_H_

#include <atomic>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/context.hpp>
#include <cstdint>
#include <functional>
#include <memory>

#include "server/http_server.h"

namespace tinyserve {

// What all connections of a server share.
struct ConnectionContext {
  HttpOptions options;
  HttpHandler* handler = nullptr;
  std::shared_ptr<boost::asio::ssl::context> tls;  // of connections to come; null: in the clear
  std::atomic<bool> draining{false};
  std::atomic<uint64_t> body_bytes{0};  // reserved for bodies that are being read
};

class HttpConnection {
 public:
  // `socket` runs on a strand of its own. `context` must outlive the connection.
  static std::shared_ptr<HttpConnection> Create(boost::asio::ip::tcp::socket socket,
                                                ConnectionContext* context);
  virtual ~HttpConnection() = default;

  // Serves until either side closes; `on_end` is called once then.
  virtual void Start(std::function<void()> on_end) = 0;
  // Closes it if it waits for a request. Any thread.
  virtual void CloseIfIdle() = 0;
  // Drops what runs. Any thread.
  virtual void Abort() = 0;
  // Lets go of what waits, for a server that ends. REQUIRES: no thread runs its executor any more.
  virtual void Drop() = 0;
};

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_HTTP_CONNECTION_H_
