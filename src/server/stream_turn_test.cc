#include "server/stream_turn.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>

#include "server/http_text.h"

namespace tinyserve {
namespace {

// A stream of "0,1,2,…" as far as it has been counted.
class CountingWork : public ReplyWork {
 public:
  void SetWake(Wake) override {}
  bool Advance(std::string* out) override {
    if (throws) throw std::runtime_error("planted");
    for (const uint32_t to = counted; told_ < to; ++told_) *out += std::to_string(told_) + ",";
    return told_ >= end;
  }
  HttpReply Whole() override { return {}; }

  std::atomic<uint32_t> counted{0};
  uint32_t end = UINT32_MAX;
  bool throws = false;

 private:
  uint32_t told_ = 0;
};

std::string CountTo(uint32_t end) {
  std::string text;
  for (uint32_t i = 0; i < end; ++i) text += std::to_string(i) + ",";
  return text;
}

class StreamTurnTest : public testing::Test {
 protected:
  StreamTurnTest() {
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends_), 0);
    const int bytes = 1;  // the least that the system has
    EXPECT_EQ(setsockopt(ends_[0], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes), 0);
  }
  ~StreamTurnTest() override {
    for (const int end : ends_) close(end);
  }

  // What the client has been sent and not read yet.
  std::string Read() const {
    std::string all, part(4096, '\0');
    for (ssize_t got; (got = recv(ends_[1], part.data(), part.size(), MSG_DONTWAIT)) > 0;)
      all.append(part, 0, static_cast<size_t>(got));
    return all;
  }

  int ends_[2] = {-1, -1};  // the server's and the client's
  CountingWork work_;
  StreamTurn turn_;
};

TEST_F(StreamTurnTest, WritesWhileTheTurnIsGivenAndOnlyThen) {
  work_.counted = 1;
  EXPECT_FALSE(turn_.Deliver());
  turn_.Give(&work_, ends_[0], /*chunked=*/false);
  EXPECT_TRUE(turn_.Deliver());
  work_.counted = 3;
  EXPECT_TRUE(turn_.Deliver());
  EXPECT_TRUE(turn_.Deliver()) << "nothing has come: nothing is to be done";
  EXPECT_EQ(Read(), "0,1,2,");
  const StreamTurn::Past past = turn_.Take();
  EXPECT_EQ(past.body_bytes, 6u);
  EXPECT_EQ(past.unsent, "");
  EXPECT_FALSE(past.done || past.failed);
  work_.counted = 4;
  EXPECT_FALSE(turn_.Deliver());
  EXPECT_EQ(Read(), "");
  EXPECT_EQ(turn_.Take().body_bytes, 0u);
}

TEST_F(StreamTurnTest, WritesChunks) {
  turn_.Give(&work_, ends_[0], /*chunked=*/true);
  work_.counted = 2;
  EXPECT_TRUE(turn_.Deliver());
  EXPECT_EQ(Read(), FormatChunk("0,1,"));
  EXPECT_EQ(turn_.Take().body_bytes, 4u) << "of the body alone";
}

TEST_F(StreamTurnTest, LeavesToTheCoroutineWhatTheSocketDoesNotTake) {
  turn_.Give(&work_, ends_[0], /*chunked=*/false);
  work_.counted = 50'000;
  EXPECT_FALSE(turn_.Deliver());
  work_.counted = 50'001;
  EXPECT_FALSE(turn_.Deliver()) << "it would overtake what is unsent";
  const StreamTurn::Past past = turn_.Take();
  const std::string sent = Read();
  EXPECT_GT(sent.size(), 0u);
  EXPECT_GT(past.unsent.size(), 0u);
  EXPECT_EQ(sent + past.unsent, CountTo(50'000));
  EXPECT_EQ(past.body_bytes, CountTo(50'000).size());
}

TEST_F(StreamTurnTest, LeavesTheEndToTheCoroutine) {
  work_.end = 2;
  turn_.Give(&work_, ends_[0], /*chunked=*/false);
  work_.counted = 2;
  EXPECT_FALSE(turn_.Deliver());
  EXPECT_TRUE(turn_.Take().done);
  EXPECT_EQ(Read(), "0,1,");
}

TEST_F(StreamTurnTest, AnExceptionEndsTheStreamAndNotTheThreadThatBringsNews) {
  work_.throws = true;
  turn_.Give(&work_, ends_[0], /*chunked=*/false);
  EXPECT_FALSE(turn_.Deliver());
  EXPECT_TRUE(turn_.Take().failed);
}

TEST_F(StreamTurnTest, AClientThatHasLeftIsLeftToTheCoroutine) {
  close(ends_[1]);
  ends_[1] = -1;
  turn_.Give(&work_, ends_[0], /*chunked=*/false);
  work_.counted = 1;
  EXPECT_FALSE(turn_.Deliver());
  EXPECT_EQ(turn_.Take().unsent, "0,");
}

// The turn goes to and fro between two threads that write, while a third reads in fits.
TEST_F(StreamTurnTest, TwoThreadsWriteOneStream) {
  constexpr uint32_t kEnd = 200'000;
  work_.end = kEnd;
  std::atomic<bool> over{false}, woken{false};
  std::string got;
  std::thread client([&] {
    std::string part(3000, '\0');
    for (uint32_t reads = 0;; ++reads) {
      const ssize_t bytes = recv(ends_[1], part.data(), part.size(), 0);
      if (bytes <= 0) return;
      got.append(part, 0, static_cast<size_t>(bytes));
      if (reads % 64 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  });
  std::thread engine([&] {
    for (uint32_t i = 0; !over; ++i) {
      work_.counted = std::min(work_.counted + i % 17, kEnd);
      if (!turn_.Deliver()) woken = true;
      if (i % 32 == 0) std::this_thread::yield();
    }
  });
  // What a coroutine does, but that its writes block.
  const auto write_all = [&](std::string_view data) {
    while (!data.empty()) {
      const ssize_t sent = send(ends_[0], data.data(), data.size(), MSG_NOSIGNAL);
      ASSERT_GT(sent, 0);
      data.remove_prefix(static_cast<size_t>(sent));
    }
  };
  uint64_t body_bytes = 0;
  std::string body;
  for (bool done = false; !done;) {
    body.clear();
    done = work_.Advance(&body);
    if (body.empty() && !done) {
      woken = false;
      turn_.Give(&work_, ends_[0], /*chunked=*/false);
      for (int i = 0; i < 20 && !woken; ++i) std::this_thread::yield();
      const StreamTurn::Past past = turn_.Take();
      body_bytes += past.body_bytes;
      done = past.done;
      write_all(past.unsent);
      continue;
    }
    body_bytes += body.size();
    write_all(body);
  }
  over = true;
  engine.join();
  shutdown(ends_[0], SHUT_WR);
  client.join();
  EXPECT_EQ(body_bytes, got.size());
  EXPECT_TRUE(got == CountTo(kEnd)) << "bytes were lost, or overtook others";
}

}  // namespace
}  // namespace tinyserve
