// Streams over real sockets, fed by a thread that stands for the engine's.
#include "server/http_server.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "server/event_queue.h"
#include "server/sse.h"

namespace tinyserve {
namespace {

// Events of a queue as a stream: their texts.
class QueueWork : public ReplyWork {
 public:
  explicit QueueWork(std::shared_ptr<EventQueue> queue) : queue_(std::move(queue)) {}
  ~QueueWork() override { queue_->SetWake({}); }
  void SetWake(Wake wake) override { queue_->SetWake(std::move(wake)); }
  bool Advance(std::string* out) override {
    for (const Arrival& arrival : queue_->Take()) {
      if (arrival.event.kind == TokenEvent::Kind::kFinished) done_ = true;
      if (!arrival.event.text.empty()) *out += arrival.event.text;
    }
    return done_;
  }
  HttpReply Whole() override { return {}; }

 private:
  std::shared_ptr<EventQueue> queue_;
  bool done_ = false;
};

// Every request is answered by a stream of its own.
class StreamHandler : public HttpHandler {
 public:
  std::optional<HttpReply> Refuse(HttpRequest*) override { return std::nullopt; }
  HttpReply Handle(const HttpRequest&) override {
    auto queue = std::make_shared<EventQueue>(SIZE_MAX);
    {
      std::lock_guard lock(mutex_);
      queues_.push_back(queue);
    }
    HttpReply reply;
    reply.work = std::make_unique<QueueWork>(queue);
    reply.streams = true;
    return reply;
  }
  HeaderList CommonHeaders(const HttpRequest&) override { return {}; }
  void Answered(const AccessRecord& record) override {
    body_bytes += record.body_bytes;
    interrupted += record.interrupted;
    ++answered;
  }
  void CountConnections(uint64_t) override {}

  std::vector<std::shared_ptr<EventQueue>> queues() {
    std::lock_guard lock(mutex_);
    return queues_;
  }
  std::atomic<uint64_t> body_bytes{0};
  std::atomic<uint32_t> answered{0}, interrupted{0};

 private:
  std::mutex mutex_;
  std::vector<std::shared_ptr<EventQueue>> queues_;
};

void Say(EventQueue* queue, std::string text) {
  TokenEvent event;
  event.text = std::move(text);
  queue->Push(0, event);
}

void Finish(EventQueue* queue) {
  TokenEvent event;
  event.kind = TokenEvent::Kind::kFinished;
  queue->Push(0, event);
}

class HttpServerTest : public testing::Test {
 protected:
  HttpServerTest() {
    Result<std::unique_ptr<HttpServer>> server =
        HttpServer::Listen({.port = 0,
                            // This process may be stopped for a while, as others are measured.
                            .write_seconds = 3600,
                            .heartbeat_seconds = 1,
                            .drain_seconds = 5},
                           &handler_);
    EXPECT_TRUE(server.ok()) << server.status().message();
    server_ = *std::move(server);
    server_->Start();
  }
  ~HttpServerTest() override {
    server_->Stop();
    server_->Join();
  }

  // A connection on which a request was sent. `receive_bytes`: of the socket's buffer; 0: as it is.
  int Ask(int receive_bytes = 0) {
    const int client = socket(AF_INET, SOCK_STREAM, 0);
    if (receive_bytes > 0)
      setsockopt(client, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof receive_bytes);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(server_->port());
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(client, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    const std::string request = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    EXPECT_EQ(send(client, request.data(), request.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(request.size()));
    return client;
  }
  std::vector<std::shared_ptr<EventQueue>> AwaitQueues(size_t count) {
    while (handler_.queues().size() < count)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return handler_.queues();
  }
  void AwaitAnswered(uint32_t count) {
    while (handler_.answered < count) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }

  StreamHandler handler_;
  std::unique_ptr<HttpServer> server_;
};

std::string WithoutHeartbeats(std::string body) {
  for (size_t at; (at = body.find(kHeartbeat)) != std::string::npos;)
    body.erase(at, kHeartbeat.size());
  return body;
}

// The body of a reply in chunks, `at_once` bytes of the socket's at a time; a slow reader pauses
// after some.
std::string ReadBody(int client, size_t at_once, bool slow) {
  std::string all, part(at_once, '\0');
  for (uint32_t reads = 1;; ++reads) {
    const ssize_t got = recv(client, part.data(), part.size(), 0);
    if (got <= 0) break;
    all.append(part, 0, static_cast<size_t>(got));
    if (slow && reads % 32 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  std::string body;
  for (size_t at = all.find("\r\n\r\n") + 4; at < all.size();) {
    const size_t line = all.find("\r\n", at);
    const size_t bytes = std::stoul(all.substr(at, line - at), nullptr, 16);
    if (bytes == 0) return body;
    body += all.substr(line + 2, bytes);
    EXPECT_EQ(all.substr(line + 2 + bytes, 2), "\r\n");
    at = line + 2 + bytes + 2;
  }
  ADD_FAILURE() << "the body has no end";
  return body;
}

TEST_F(HttpServerTest, StreamsReachFastAndSlowReadersWhole) {
  constexpr int kClients = 6;
  constexpr uint32_t kTokens = 20'000;
  std::vector<std::thread> clients;
  std::vector<std::string> bodies(kClients);
  for (int i = 0; i < kClients; ++i) {
    clients.emplace_back([this, i, &bodies] {
      const bool slow = i % 2 == 1;
      const int client = Ask(slow ? 4096 : 0);
      bodies[static_cast<size_t>(i)] = ReadBody(client, slow ? 2000 : 1 << 16, slow);
      close(client);
    });
  }
  const auto queues = AwaitQueues(kClients);
  std::string expected;
  for (uint32_t token = 0; token < kTokens; ++token) {
    const std::string text = std::to_string(token) + ",";
    expected += text;
    for (const auto& queue : queues) Say(queue.get(), text);
  }
  for (const auto& queue : queues) Finish(queue.get());
  for (std::thread& client : clients) client.join();
  AwaitAnswered(kClients);
  uint64_t body_bytes = 0;
  for (const std::string& body : bodies) {
    EXPECT_TRUE(WithoutHeartbeats(body) == expected) << "bytes were lost, or overtook others";
    body_bytes += body.size();
  }
  EXPECT_EQ(handler_.body_bytes, body_bytes);
  EXPECT_EQ(handler_.interrupted, 0u);
}

TEST_F(HttpServerTest, HeartbeatsStandBetweenWholeChunks) {
  std::string body;
  std::thread client([&] {
    const int socket = Ask();
    body = ReadBody(socket, 4096, false);
    close(socket);
  });
  EventQueue* queue = AwaitQueues(1)[0].get();
  // Tokens put the heartbeat off; then a silence brings one.
  std::chrono::steady_clock::duration longest{};
  for (int i = 0; i < 6; ++i) {
    const auto said = std::chrono::steady_clock::now();
    Say(queue, "a");
    std::this_thread::sleep_for(std::chrono::milliseconds(250));
    longest = std::max(longest, std::chrono::steady_clock::now() - said);
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));
  Say(queue, "b");
  Finish(queue);
  client.join();
  EXPECT_EQ(WithoutHeartbeats(body), "aaaaaab");
  EXPECT_TRUE(body.ends_with(std::string(kHeartbeat) + "b")) << body;
  const bool in_time = longest < std::chrono::milliseconds(700);
  EXPECT_TRUE(!in_time || body.starts_with("aaaaaa")) << body;
}

TEST_F(HttpServerTest, ClientsThatLeaveAmidTheirTokens) {
  constexpr int kClients = 40;
  std::atomic<bool> over{false};
  std::thread engine([&] {
    while (!over) {
      for (const auto& queue : handler_.queues()) Say(queue.get(), "token,");
    }
  });
  for (int i = 0; i < kClients; ++i) {
    const int client = Ask();
    std::string part(1 << 16, '\0');
    for (int reads = 0; reads < i % 4; ++reads) recv(client, part.data(), part.size(), 0);
    close(client);
  }
  AwaitAnswered(kClients);
  over = true;
  engine.join();
  EXPECT_EQ(handler_.interrupted, static_cast<uint32_t>(kClients));
}

TEST_F(HttpServerTest, StreamsAreDroppedAmidTheirTokens) {
  std::atomic<bool> over{false};
  std::vector<int> clients;
  for (int i = 0; i < 8; ++i) clients.push_back(Ask());
  const auto queues = AwaitQueues(8);
  std::thread engine([&] {
    while (!over) {
      for (const auto& queue : queues) Say(queue.get(), "token,");
      std::this_thread::yield();
    }
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  server_->Stop();
  server_->Stop();  // again: what runs is dropped
  server_->Join();
  EXPECT_EQ(handler_.answered, 8u);
  over = true;
  engine.join();
  for (const int client : clients) close(client);
}

}  // namespace
}  // namespace tinyserve
