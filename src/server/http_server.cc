#include "server/http_server.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/check.h"
#include "server/api_error.h"
#include "server/http_connection.h"
#include "server/http_text.h"

namespace tinyserve {
namespace {

namespace net = boost::asio;
using net::ip::tcp;
using ErrorCode = boost::system::error_code;

constexpr auto kToken = net::as_tuple(net::use_awaitable);
// Where the system has no descriptor or memory left for a new connection.
constexpr std::chrono::milliseconds kAcceptPause(100);
// Dropped connections need no longer than this to notice.
constexpr std::chrono::seconds kAbortTime(5);

class ServerImpl : public HttpServer {
 public:
  ServerImpl(const HttpOptions& options, HttpHandler* handler)
      : io_(static_cast<int>(options.threads)),
        work_(net::make_work_guard(io_)),
        acceptor_(net::make_strand(io_)),
        signals_(io_) {
    context_.options = options;
    context_.handler = handler;
  }
  ~ServerImpl() override;

  Status Open();
  uint16_t port() const override { return port_; }
  void Start() override;
  void TakeSignals(std::function<void(int)> on_signal) override;
  Status ReloadTls() override;
  void Stop() override;
  void Join() override;

 private:
  net::awaitable<void> Accept();
  void Begin(tcp::socket socket);
  void End(HttpConnection* connection);
  void RefuseCrowd(tcp::socket socket);
  void WaitForSignal();
  std::vector<std::shared_ptr<HttpConnection>> Connections();

  ConnectionContext context_;
  net::io_context io_;
  net::executor_work_guard<net::io_context::executor_type> work_;
  tcp::acceptor acceptor_;
  net::signal_set signals_;
  std::function<void(int)> on_signal_;
  uint16_t port_ = 0;
  std::vector<std::thread> threads_;

  std::mutex mutex_;
  std::condition_variable changed_;  // connections_ has become fewer, or dropped_ true
  std::unordered_map<HttpConnection*, std::shared_ptr<HttpConnection>> connections_;
  bool stopped_ = false;
  bool dropped_ = false;  // Stop was called again
};

// Whatever is wrong is told before anything is served by it.
Status ServerImpl::ReloadTls() {
  const HttpOptions& o = context_.options;
  if (o.tls_certificate.empty() && o.tls_key.empty()) return Status();
  if (o.tls_certificate.empty() || o.tls_key.empty()) {
    return Status(Code::kInvalidArgument, "TLS needs both a certificate and its key");
  }
  auto tls = std::make_shared<net::ssl::context>(net::ssl::context::tls_server);
  ErrorCode error;
  tls->set_options(net::ssl::context::default_workarounds | net::ssl::context::no_tlsv1 |
                       net::ssl::context::no_tlsv1_1 | net::ssl::context::no_compression,
                   error);
  const std::string* file = &o.tls_certificate;
  if (!error) tls->use_certificate_chain_file(*file, error);
  if (!error) {
    file = &o.tls_key;
    tls->use_private_key_file(*file, net::ssl::context::pem, error);
  }
  if (error) {
    return Status(Code::kInvalidArgument, fmt::format("TLS: {}: {}", *file, error.message()));
  }
  std::lock_guard lock(mutex_);
  context_.tls = std::move(tls);
  return Status();
}

Status ServerImpl::Open() {
  TS_RETURN_IF_ERROR(ReloadTls());
  const HttpOptions& o = context_.options;
  ErrorCode error;
  const net::ip::address address =
      net::ip::make_address(o.host == "localhost" ? "127.0.0.1" : o.host, error);
  if (error) {
    return Status(
        Code::kInvalidArgument,
        fmt::format("host '{}': an IPv4 or IPv6 address is expected, or localhost", o.host));
  }
  const tcp::endpoint endpoint(address, o.port);
  acceptor_.open(endpoint.protocol(), error);
  if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor_.bind(endpoint, error);
  if (!error) acceptor_.listen(net::socket_base::max_listen_connections, error);
  if (error) {
    return Status(Code::kIo,
                  fmt::format("cannot listen on {} port {}: {}", o.host, o.port, error.message()));
  }
  port_ = acceptor_.local_endpoint(error).port();
  return Status();
}

ServerImpl::~ServerImpl() {
  io_.stop();
  for (std::thread& thread : threads_) thread.join();
  // Coroutines that still wait hold their connections, and go with what they wait for: here, or
  // with io_.
  for (const auto& [key, connection] : connections_) connection->Drop();
  connections_.clear();
}

void ServerImpl::Start() {
  TS_CHECK(threads_.empty());
  net::co_spawn(acceptor_.get_executor(), Accept(), net::detached);
  for (uint32_t i = 0; i < context_.options.threads; ++i)
    threads_.emplace_back([this] { io_.run(); });
}

net::awaitable<void> ServerImpl::Accept() {
  for (;;) {
    // A strand for each connection: its handlers never run at once.
    auto [error, socket] =
        co_await acceptor_.async_accept(net::any_io_executor(net::make_strand(io_)), kToken);
    if (context_.draining || error == net::error::operation_aborted) co_return;
    if (error) {
      net::steady_timer pause(io_, kAcceptPause);
      co_await pause.async_wait(kToken);
      continue;
    }
    Begin(std::move(socket));
  }
}

void ServerImpl::Begin(tcp::socket socket) {
  std::shared_ptr<HttpConnection> connection;
  {
    std::lock_guard lock(mutex_);
    if (stopped_) return;
    if (connections_.size() < context_.options.connections_max) {
      connection = HttpConnection::Create(std::move(socket), &context_);
      connections_.emplace(connection.get(), connection);
      context_.handler->CountConnections(connections_.size());
    }
  }
  if (connection == nullptr) return RefuseCrowd(std::move(socket));
  connection->Start([this, key = connection.get()] { End(key); });
}

void ServerImpl::RefuseCrowd(tcp::socket socket) {
  const HttpReply reply = ErrorReply(Unavailable("too many connections are open: try again later"));
  const std::string data =
      FormatHead(reply, {},
                 {.content_bytes = reply.body.size(), .chunked = false, .keep_alive = false}) +
      reply.body;
  if (!context_.options.tls_key.empty()) return;  // the client would not understand
  // A new connection has room for so little; whoever does not get it sees the end all the same.
  ErrorCode ignored;
  socket.non_blocking(true, ignored);
  socket.write_some(net::buffer(data), ignored);
  socket.shutdown(tcp::socket::shutdown_both, ignored);
}

void ServerImpl::End(HttpConnection* connection) {
  {
    std::lock_guard lock(mutex_);
    connections_.erase(connection);
    context_.handler->CountConnections(connections_.size());
  }
  changed_.notify_all();
}

void ServerImpl::TakeSignals(std::function<void(int)> on_signal) {
  on_signal_ = std::move(on_signal);
  ErrorCode ignored;
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) signals_.add(signal, ignored);
  WaitForSignal();
}

void ServerImpl::WaitForSignal() {
  signals_.async_wait([this](const ErrorCode& error, int signal) {
    if (error) return;
    on_signal_(signal);
    WaitForSignal();
  });
}

std::vector<std::shared_ptr<HttpConnection>> ServerImpl::Connections() {
  std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<HttpConnection>> all;
  for (const auto& [key, connection] : connections_) all.push_back(connection);
  return all;
}

void ServerImpl::Stop() {
  context_.draining = true;
  {
    std::lock_guard lock(mutex_);
    if (std::exchange(stopped_, true)) dropped_ = true;
  }
  net::post(acceptor_.get_executor(), [this] {
    ErrorCode ignored;
    acceptor_.close(ignored);
  });
  for (const auto& connection : Connections()) connection->CloseIfIdle();
  changed_.notify_all();
}

void ServerImpl::Join() {
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return stopped_; });
    changed_.wait_for(lock, std::chrono::seconds(context_.options.drain_seconds),
                      [this] { return connections_.empty() || dropped_; });
  }
  const std::vector<std::shared_ptr<HttpConnection>> late = Connections();
  if (!late.empty()) spdlog::warn("{} connections are dropped", late.size());
  for (const auto& connection : late) connection->Abort();
  {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, kAbortTime, [this] { return connections_.empty(); });
  }
  io_.stop();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

}  // namespace

Result<std::unique_ptr<HttpServer>> HttpServer::Listen(const HttpOptions& options,
                                                       HttpHandler* handler) {
  auto server = std::make_unique<ServerImpl>(options, handler);
  TS_RETURN_IF_ERROR(server->Open());
  return std::unique_ptr<HttpServer>(std::move(server));
}

}  // namespace tinyserve
