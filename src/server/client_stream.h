// A connection's bytes, in the clear or by TLS.
#ifndef TINYSERVE_SERVER_CLIENT_STREAM_H_
#define TINYSERVE_SERVER_CLIENT_STREAM_H_

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <chrono>
#include <optional>
#include <utility>

namespace tinyserve {

// An AsyncStream of Asio. Times that expires_after sets hold for TLS's own bytes, too.
class ClientStream {
 public:
  using executor_type = boost::beast::tcp_stream::executor_type;

  // `tls`: needed until this has returned; null: in the clear.
  ClientStream(boost::asio::ip::tcp::socket socket, boost::asio::ssl::context* tls)
      : tcp_(std::move(socket)) {
    if (tls != nullptr) tls_.emplace(tcp_, *tls);
  }

  executor_type get_executor() { return tcp_.get_executor(); }
  boost::asio::ip::tcp::socket& socket() { return tcp_.socket(); }
  void expires_after(std::chrono::seconds time) { tcp_.expires_after(time); }
  void expires_never() { tcp_.expires_never(); }
  void close() { tcp_.close(); }

  template <class Buffers, class Token>
  auto async_read_some(const Buffers& buffers, Token&& token) {
    return tls_ ? tls_->async_read_some(buffers, std::forward<Token>(token))
                : tcp_.async_read_some(buffers, std::forward<Token>(token));
  }
  template <class Buffers, class Token>
  auto async_write_some(const Buffers& buffers, Token&& token) {
    return tls_ ? tls_->async_write_some(buffers, std::forward<Token>(token))
                : tcp_.async_write_some(buffers, std::forward<Token>(token));
  }

  // The socket, to which bytes may be written past this; -1 by TLS, whose bytes need
  // async_write_some.
  int PlainSocket() { return tls_ ? -1 : tcp_.socket().native_handle(); }

  // False: the client speaks no TLS that is allowed, or too slowly.
  boost::asio::awaitable<bool> Handshake() {
    if (!tls_) co_return true;
    const auto [error] = co_await tls_->async_handshake(
        boost::asio::ssl::stream_base::server, boost::asio::as_tuple(boost::asio::use_awaitable));
    co_return !error;
  }
  // Tells the client that nothing was cut off.
  boost::asio::awaitable<void> SayGoodbye() {
    if (!tls_ || !tcp_.socket().is_open()) co_return;
    co_await tls_->async_shutdown(boost::asio::as_tuple(boost::asio::use_awaitable));
  }

 private:
  boost::beast::tcp_stream tcp_;
  std::optional<boost::asio::ssl::stream<boost::beast::tcp_stream&>> tls_;
};

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_CLIENT_STREAM_H_
