#include "server/http_connection.h"

#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <cerrno>
#include <chrono>
#include <exception>
#include <utility>

#include "server/api_error.h"
#include "server/client_stream.h"
#include "server/http_head.h"
#include "server/http_text.h"
#include "server/reply_id.h"
#include "server/sse.h"
#include "server/stream_turn.h"

namespace tinyserve {
namespace {

namespace net = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using Clock = std::chrono::steady_clock;
using Parser = http::request_parser<http::string_body>;
using ErrorCode = boost::system::error_code;

constexpr auto kToken = net::as_tuple(net::use_awaitable);
constexpr size_t kReadBytes = 8192;
constexpr size_t kWriteBytes = 256 * 1024;  // that write_seconds are given for
// What is still read of a refused body, so that the client sees the reply and no reset.
constexpr size_t kLingerBytesMax = 4 << 20;
constexpr std::chrono::seconds kLingerTime(2);
constexpr std::chrono::hours kNoHeartbeat(1);
constexpr std::chrono::milliseconds kLookTime(500);

std::chrono::seconds ForSeconds(uint32_t seconds) { return std::chrono::seconds(seconds); }

// Room for a body, given back in the end.
class BodyRoom {
 public:
  BodyRoom(std::atomic<uint64_t>* used, uint64_t bytes, uint64_t bytes_max) : used_(used) {
    if (used->fetch_add(bytes) + bytes <= bytes_max) {
      bytes_ = bytes;
    } else {
      used->fetch_sub(bytes);
      used_ = nullptr;
    }
  }
  ~BodyRoom() { Release(); }
  BodyRoom(const BodyRoom&) = delete;
  BodyRoom& operator=(const BodyRoom&) = delete;

  bool granted() const { return used_ != nullptr; }
  void Release() {
    if (used_ != nullptr) used_->fetch_sub(std::exchange(bytes_, 0));
  }

 private:
  std::atomic<uint64_t>* used_;
  uint64_t bytes_ = 0;
};

ApiError Refused(int status, std::string message, std::string code) {
  return {.status = status, .message = std::move(message), .param = "", .code = std::move(code)};
}

// Whether the client has sent what is no HTTP, and not merely nothing more.
bool IsFault(const ErrorCode& error) {
  return error.category() == http::make_error_code(http::error::bad_chunk).category() &&
         error != http::error::end_of_stream && error != http::error::partial_message;
}

// HttpRequest::peer. Whoever has an address of IPv6 has a network of them.
std::string PeerOf(const net::ip::tcp::socket& socket) {
  ErrorCode error;
  net::ip::address address = socket.remote_endpoint(error).address();
  if (error) return "";  // it has left
  if (address.is_v6() && address.to_v6().is_v4_mapped()) {
    address = net::ip::make_address_v4(net::ip::v4_mapped, address.to_v6());
  } else if (address.is_v6()) {
    auto bytes = address.to_v6().to_bytes();
    std::fill(bytes.begin() + 8, bytes.end(), 0);
    address = net::ip::address_v6(bytes);
  }
  return address.to_string();
}

class Connection : public HttpConnection, public std::enable_shared_from_this<Connection> {
 public:
  Connection(net::ip::tcp::socket socket, ConnectionContext* context)
      : context_(*context),
        handler_(*context->handler),
        stream_(std::move(socket), context->tls.get()),
        timer_(stream_.get_executor()),
        behind_(stream_.get_executor()),
        peer_(PeerOf(stream_.socket())),
        buffer_(context->options.header_bytes_max + kReadBytes) {}

  void Start(std::function<void()> on_end) override;
  void CloseIfIdle() override;
  void Abort() override;
  void Drop() override;

 private:
  net::awaitable<void> Run();
  net::awaitable<bool> FirstBytes();
  net::awaitable<bool> ServeOne();
  net::awaitable<bool> ReadHead(Parser* parser, HttpRequest* request);
  net::awaitable<bool> ReadBody(Parser* parser, const HttpRequest& request);
  net::awaitable<bool> Refuse(const HttpRequest& request, HttpReply reply);
  HttpReply Handle(const HttpRequest& request);
  // Sends a reply and reports it. True: the connection goes on.
  net::awaitable<bool> Answer(const HttpRequest& request, HttpReply reply, bool keep_alive);
  net::awaitable<bool> SendWhole(const HttpRequest& request, const HttpReply& reply,
                                 bool keep_alive);
  net::awaitable<bool> SendStream(const HttpRequest& request, const HttpReply& reply,
                                  bool keep_alive);
  net::awaitable<bool> FinishWork(HttpReply* reply);
  net::awaitable<bool> Write(std::string_view data);
  net::awaitable<void> Linger();
  net::awaitable<bool> WaitForWork(Clock::duration longest);
  void WatchClient();
  void TimeWait();
  void WatchBehindBytes();
  void StopWatching();
  void Wake();
  void Resume();

  ConnectionContext& context_;
  HttpHandler& handler_;
  ClientStream stream_;
  StreamTurn turn_;                 // of the stream that is sent, while WaitForWork waits
  std::function<void()> waiter_;    // goes on after WaitForWork; empty: nothing waits
  Clock::duration silence_max_{};   // of the wait
  Clock::time_point silent_until_;  // then the wait is over
  net::steady_timer timer_;         // set for that, or for an earlier wait's end
  bool timing_ = false;             // timer_ runs
  net::steady_timer behind_;        // of WatchBehindBytes
  const std::string peer_;          // HttpRequest::peer
  beast::flat_buffer buffer_;
  bool http11_ = true;
  bool idle_ = false;
  bool woken_ = false;      // the work has more
  bool gone_ = false;       // the client has left, or Abort
  uint64_t watch_ = 0;      // counts up; a watch that is over is not listened to
  uint64_t body_sent_ = 0;  // bytes of the reply's body
};

void Connection::Start(std::function<void()> on_end) {
  net::co_spawn(
      stream_.get_executor(), [self = shared_from_this()] { return self->Run(); },
      [self = shared_from_this(), on_end = std::move(on_end)](std::exception_ptr failed) {
        if (failed) spdlog::error("a connection ended by an exception");
        on_end();
      });
}

void Connection::CloseIfIdle() {
  net::post(stream_.get_executor(), [self = shared_from_this()] {
    if (self->idle_) self->stream_.close();
  });
}

void Connection::Abort() {
  net::post(stream_.get_executor(), [self = shared_from_this()] {
    self->gone_ = true;
    self->turn_.Take();  // nobody writes to what is closed
    self->Wake();
    self->stream_.close();
  });
}

void Connection::Drop() { const std::function<void()> waiter = std::exchange(waiter_, {}); }

void Connection::Wake() {
  woken_ = true;
  Resume();
}

void Connection::Resume() {
  if (const std::function<void()> waiter = std::exchange(waiter_, {})) waiter();
}

net::awaitable<void> Connection::Run() {
  ErrorCode ignored;
  stream_.socket().set_option(net::ip::tcp::no_delay(true), ignored);
  stream_.expires_after(ForSeconds(context_.options.header_seconds));
  if (co_await stream_.Handshake()) {
    while (co_await ServeOne()) {
    }
    stream_.expires_after(kLingerTime);
    co_await stream_.SayGoodbye();
  }
  stream_.socket().shutdown(net::ip::tcp::socket::shutdown_both, ignored);
  stream_.close();
}

net::awaitable<bool> Connection::FirstBytes() {
  if (context_.draining) co_return false;
  if (buffer_.size() > 0) co_return true;  // of a request sent ahead
  idle_ = true;
  stream_.expires_after(ForSeconds(context_.options.idle_seconds));
  const auto [error, bytes] = co_await stream_.async_read_some(buffer_.prepare(kReadBytes), kToken);
  idle_ = false;
  if (error) co_return false;
  buffer_.commit(bytes);
  co_return true;
}

net::awaitable<bool> Connection::ServeOne() {
  if (!co_await FirstBytes()) co_return false;
  Parser parser;
  parser.header_limit(context_.options.header_bytes_max);
  parser.body_limit(context_.options.body_bytes_max);
  HttpRequest request;
  request.id = NewReplyId("req-");
  request.peer = peer_;
  if (!co_await ReadHead(&parser, &request)) co_return false;
  std::optional<HttpReply> refused = handler_.Refuse(&request);
  if (refused) {
    if (!parser.is_done()) co_return co_await Refuse(request, *std::move(refused));
    co_return co_await Answer(request, *std::move(refused), parser.keep_alive());
  }
  // A body of unknown length may become as long as is allowed.
  const uint64_t expected = parser.is_done()          ? 0
                            : parser.content_length() ? *parser.content_length()
                                                      : context_.options.body_bytes_max;
  BodyRoom room(&context_.body_bytes, expected, context_.options.bodies_bytes_max);
  if (!room.granted()) {
    co_return co_await Refuse(
        request, ErrorReply(Unavailable("too many bodies are being read: try again later")));
  }
  if (!co_await ReadBody(&parser, request)) co_return false;
  request.body = std::move(parser.get().body());
  HttpReply reply = Handle(request);
  request.body = std::string();
  room.Release();
  co_return co_await Answer(request, std::move(reply), parser.keep_alive());
}

net::awaitable<bool> Connection::ReadHead(Parser* parser, HttpRequest* request) {
  stream_.expires_after(ForSeconds(context_.options.header_seconds));
  const auto [error, bytes] = co_await http::async_read_header(stream_, buffer_, *parser, kToken);
  if (error == http::error::body_limit) {
    co_return co_await Refuse(
        *request, ErrorReply(Refused(413,
                                     fmt::format("the body is longer than {} bytes, the most that "
                                                 "is allowed",
                                                 context_.options.body_bytes_max),
                                     "body_too_long")));
  }
  if (error == http::error::header_limit || error == http::error::buffer_overflow) {
    co_return co_await Refuse(
        *request, ErrorReply(Refused(431,
                                     fmt::format("the head is longer than {} bytes, the most that "
                                                 "is allowed",
                                                 context_.options.header_bytes_max),
                                     "head_too_long")));
  }
  if (error) {
    if (!IsFault(error)) co_return false;  // there is nobody to tell
    co_return co_await Refuse(
        *request,
        ErrorReply(Refused(400, "this is no HTTP request: " + error.message(), "bad_http")));
  }
  http11_ = parser->get().version() >= 11;
  const std::optional<ApiError> wrong = TakeHead(parser->get(), request);
  if (wrong) co_return co_await Refuse(*request, ErrorReply(*wrong));
  co_return true;
}

net::awaitable<bool> Connection::ReadBody(Parser* parser, const HttpRequest& request) {
  if (parser->is_done()) co_return true;
  if (!request.Header("expect").empty() && http11_) {
    if (!co_await Write("HTTP/1.1 100 Continue\r\n\r\n")) co_return false;
  }
  stream_.expires_after(ForSeconds(context_.options.body_seconds));
  const auto [error, bytes] = co_await http::async_read(stream_, buffer_, *parser, kToken);
  if (error == http::error::body_limit) {
    co_return co_await Refuse(
        request, ErrorReply(Refused(413,
                                    fmt::format("the body is longer than {} bytes, the most that "
                                                "is allowed",
                                                context_.options.body_bytes_max),
                                    "body_too_long")));
  }
  if (error && IsFault(error)) {
    co_return co_await Refuse(
        request,
        ErrorReply(Refused(400, "the body is not framed well: " + error.message(), "bad_http")));
  }
  co_return !error;
}

// A reply to what was not read to its end: the connection cannot go on.
net::awaitable<bool> Connection::Refuse(const HttpRequest& request, HttpReply reply) {
  co_await Answer(request, std::move(reply), /*keep_alive=*/false);
  co_await Linger();
  co_return false;
}

HttpReply Connection::Handle(const HttpRequest& request) {
  try {
    return handler_.Handle(request);
  } catch (const std::bad_alloc&) {
    return ErrorReply(Unavailable("out of memory"));
  } catch (const std::exception& e) {
    spdlog::error("request id={} failed: {}", request.id, e.what());
    return ErrorReply({.status = 500,
                       .message = "the server failed; its log says more under this request's id",
                       .type = "server_error",
                       .param = "",
                       .code = ""});
  }
}

net::awaitable<bool> Connection::Answer(const HttpRequest& request, HttpReply reply,
                                        bool keep_alive) {
  const Clock::time_point start = Clock::now();
  body_sent_ = 0;
  bool sent = true;
  if (reply.work != nullptr) {
    // The work is this coroutine's, which holds the connection.
    reply.work->SetWake([this, executor = stream_.get_executor()](News news) {
      if (news == News::kTokens && turn_.Deliver()) return;
      net::post(executor, [weak = weak_from_this()] {
        if (const std::shared_ptr<Connection> self = weak.lock()) self->Wake();
      });
    });
    WatchClient();
  }
  if (reply.work != nullptr && !reply.streams) sent = co_await FinishWork(&reply);
  keep_alive = keep_alive && !context_.draining;
  if (sent && reply.streams) {
    sent = co_await SendStream(request, reply, keep_alive);
  } else if (sent) {
    sent = co_await SendWhole(request, reply, keep_alive);
  }
  reply.work.reset();  // cancels what a client left behind
  StopWatching();
  const std::chrono::duration<double> taken = Clock::now() - start;
  handler_.Answered({.request = &request,
                     .status = reply.status,
                     .body_bytes = body_sent_,
                     .seconds = taken.count(),
                     .interrupted = !sent});
  co_return sent&& keep_alive && (http11_ || !reply.streams);
}

// Waits for the whole of a reply that does not stream, and puts it in place of the work.
net::awaitable<bool> Connection::FinishWork(HttpReply* reply) {
  std::string none;
  for (;;) {
    woken_ = false;
    if (reply->work->Advance(&none)) break;
    co_await WaitForWork(kNoHeartbeat);
    if (gone_) co_return false;
  }
  *reply = reply->work->Whole();
  co_return true;
}

net::awaitable<bool> Connection::SendWhole(const HttpRequest& request, const HttpReply& reply,
                                           bool keep_alive) {
  const bool bodiless = reply.status == 204;
  const BodyFraming framing{
      .content_bytes = bodiless ? std::nullopt : std::optional<uint64_t>(reply.body.size()),
      .chunked = false,
      .keep_alive = keep_alive};
  std::string data = FormatHead(reply, handler_.CommonHeaders(request), framing);
  if (request.method != "HEAD" && !bodiless) {
    data += reply.body;
    body_sent_ = reply.body.size();
  }
  co_return co_await Write(data);
}

net::awaitable<bool> Connection::SendStream(const HttpRequest& request, const HttpReply& reply,
                                            bool keep_alive) {
  const BodyFraming framing{
      .content_bytes = {}, .chunked = http11_, .keep_alive = keep_alive && http11_};
  std::string data = FormatHead(reply, handler_.CommonHeaders(request), framing), body;
  // However this ends, nobody else uses the work after it.
  const std::unique_ptr<StreamTurn, decltype([](StreamTurn* turn) { turn->Take(); })> own(&turn_);
  for (bool done = false; !done;) {
    woken_ = false;
    body.clear();
    done = reply.work->Advance(&body);
    if (body.empty() && data.empty() && !done) {
      if (const int socket = stream_.PlainSocket(); socket >= 0)
        turn_.Give(reply.work.get(), socket, http11_);
      const bool silent = !co_await WaitForWork(ForSeconds(context_.options.heartbeat_seconds));
      StreamTurn::Past past = turn_.Take();
      body_sent_ += past.body_bytes;
      if (gone_ || past.failed) co_return false;
      data = std::move(past.unsent);
      done = past.done;
      if (silent) {
        body = kHeartbeat;
      } else if (data.empty() && !done) {
        continue;
      }
    }
    body_sent_ += body.size();
    if (!body.empty()) data += http11_ ? FormatChunk(body) : body;
    if (done && http11_) data += kLastChunk;
    if (!co_await Write(data)) co_return false;
    data.clear();
  }
  co_return true;
}

net::awaitable<bool> Connection::Write(std::string_view data) {
  const int socket = stream_.PlainSocket();
  if (socket >= 0 && data.size() <= kWriteBytes) data.remove_prefix(SendAtOnce(socket, data));
  if (data.empty()) co_return true;
  while (!data.empty()) {
    const std::string_view part = data.substr(0, kWriteBytes);
    stream_.expires_after(ForSeconds(context_.options.write_seconds));
    const auto [error, bytes] =
        co_await net::async_write(stream_, net::buffer(part.data(), part.size()), kToken);
    if (error) co_return false;
    data.remove_prefix(part.size());
  }
  stream_.expires_never();
  co_return true;
}

net::awaitable<void> Connection::Linger() {
  ErrorCode ignored;
  stream_.socket().shutdown(net::ip::tcp::socket::shutdown_send, ignored);
  stream_.expires_after(kLingerTime);
  std::string discarded(kReadBytes, '\0');
  for (size_t read = 0; read < kLingerBytesMax;) {
    const auto [error, bytes] =
        co_await stream_.async_read_some(net::buffer(discarded.data(), discarded.size()), kToken);
    if (error) co_return;
    read += bytes;
  }
}

// True: the work has more, or the client has gone. False: `longest` has passed.
net::awaitable<bool> Connection::WaitForWork(Clock::duration longest) {
  if (!woken_ && !gone_) {
    silence_max_ = longest;
    silent_until_ = Clock::now() + longest;
    if (!timing_ || silent_until_ < timer_.expiry()) TimeWait();
    co_await net::async_initiate<decltype(net::use_awaitable), void()>(
        [this](auto handler) {
          waiter_ = [kept = std::make_shared<decltype(handler)>(std::move(handler))] {
            std::move (*kept)();
          };
        },
        net::use_awaitable);
  }
  co_return woken_ || gone_;
}

// One timer for many waits: most of them end long before, and setting it costs a call of the
// system.
void Connection::TimeWait() {
  timing_ = true;
  timer_.expires_at(silent_until_);
  timer_.async_wait([self = shared_from_this(), watch = watch_](const ErrorCode& error) {
    if (error || watch != self->watch_) return;
    self->timing_ = false;
    if (!self->waiter_) return;
    self->silent_until_ = std::max(self->silent_until_, self->turn_.written() + self->silence_max_);
    if (Clock::now() < self->silent_until_) return self->TimeWait();
    self->Resume();
  });
}

// Notices a client that leaves while nothing is sent to it.
void Connection::WatchClient() {
  stream_.socket().async_wait(net::ip::tcp::socket::wait_read,
                              [self = shared_from_this(), watch = watch_](const ErrorCode& error) {
                                if (error || watch != self->watch_) return;
                                char byte;
                                const ssize_t read = recv(self->stream_.socket().native_handle(),
                                                          &byte, 1, MSG_PEEK | MSG_DONTWAIT);
                                if (read > 0) return self->WatchBehindBytes();
                                if (read < 0 && (errno == EAGAIN || errno == EINTR))
                                  return self->WatchClient();
                                self->gone_ = true;
                                self->Wake();
                              });
}

// Bytes that are not read yet, the next request or TLS's goodbye, hide the end behind them: the
// socket's state tells of it.
void Connection::WatchBehindBytes() {
  behind_.expires_after(kLookTime);
  behind_.async_wait([self = shared_from_this(), watch = watch_](const ErrorCode& error) {
    if (error || watch != self->watch_) return;
    tcp_info info{};
    socklen_t size = sizeof info;
    const int failed =
        getsockopt(self->stream_.socket().native_handle(), IPPROTO_TCP, TCP_INFO, &info, &size);
    if (failed == 0 && info.tcpi_state == TCP_ESTABLISHED) return self->WatchBehindBytes();
    self->gone_ = true;
    self->Wake();
  });
}

void Connection::StopWatching() {
  ++watch_;
  behind_.cancel();
  timer_.cancel();
  timing_ = false;
  ErrorCode ignored;
  stream_.socket().cancel(ignored);
}

}  // namespace

std::shared_ptr<HttpConnection> HttpConnection::Create(net::ip::tcp::socket socket,
                                                       ConnectionContext* context) {
  return std::make_shared<Connection>(std::move(socket), context);
}

}  // namespace tinyserve
