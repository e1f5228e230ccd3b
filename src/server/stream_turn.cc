#include "server/stream_turn.h"

#include <spdlog/spdlog.h>
#include <sys/socket.h>

#include <exception>
#include <utility>

#include "server/http_text.h"

namespace tinyserve {

size_t SendAtOnce(int socket, std::string_view data) {
  const ssize_t sent = send(socket, data.data(), data.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  return sent < 0 ? 0 : static_cast<size_t>(sent);
}

void StreamTurn::Give(ReplyWork* work, int socket, bool chunked) {
  std::lock_guard lock(mutex_);
  work_ = work;
  socket_ = socket;
  chunked_ = chunked;
}

StreamTurn::Past StreamTurn::Take() {
  std::lock_guard lock(mutex_);
  work_ = nullptr;
  return std::exchange(past_, {});
}

bool StreamTurn::Deliver() {
  std::lock_guard lock(mutex_);
  if (work_ == nullptr) return false;
  // Who brings news, the engine's thread, is not to end by them.
  try {
    if (Write()) return true;
  } catch (const std::exception& e) {
    spdlog::error("a stream ended by an exception: {}", e.what());
    past_.failed = true;
  }
  work_ = nullptr;
  return false;
}

// True: all is written, and more is to come.
bool StreamTurn::Write() {
  body_.clear();
  past_.done = work_->Advance(&body_);
  if (body_.empty()) return !past_.done;
  past_.body_bytes += body_.size();
  if (chunked_) body_ = FormatChunk(body_);
  const size_t sent = SendAtOnce(socket_, body_);
  written_ = std::chrono::steady_clock::now();
  past_.unsent = body_.substr(sent);
  return past_.unsent.empty() && !past_.done;
}

std::chrono::steady_clock::time_point StreamTurn::written() const {
  std::lock_guard lock(mutex_);
  return written_;
}

}  // namespace tinyserve
