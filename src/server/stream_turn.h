// Whose turn it is to advance a stream's work and to write its bytes: the connection's own
// coroutine's, or, while that waits with nothing to send, the turn of whoever brings news. So a
// token that the socket takes at once costs no thread a wake: I/O threads that are woken for it
// hold up those that compute.
#ifndef TINYSERVE_SERVER_STREAM_TURN_H_
#define TINYSERVE_SERVER_STREAM_TURN_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>

#include "server/http_types.h"

namespace tinyserve {

// Bytes of `data` that the system took without a wait. Whatever is wrong with the socket counts as
// none: the next write finds it again.
size_t SendAtOnce(int socket, std::string_view data);

// Any thread.
class StreamTurn {
 public:
  // What became of a turn that was given away.
  struct Past {
    std::string unsent;       // to be written before anything else
    uint64_t body_bytes = 0;  // of the body, `unsent` included
    bool done = false;        // the work said that all of it has come
    bool failed = false;      // an exception ended it: the stream cannot go on
  };

  // Until Take, Deliver may call `work` and write to `socket`, a TCP connection in the clear.
  // `chunked`: the body goes in chunks. REQUIRES: all before was written; the turn is not given.
  void Give(ReplyWork* work, int socket, bool chunked);
  // Takes the turn back, waiting for a Deliver that runs. Nothing was given: an empty Past.
  Past Take();
  // Advances the work and writes what came of it. Never waits for the client. False: the rest is
  // the coroutine's, which must be woken.
  bool Deliver();
  // When Deliver last wrote something.
  std::chrono::steady_clock::time_point written() const;

 private:
  bool Write();

  mutable std::mutex mutex_;
  ReplyWork* work_ = nullptr;  // null: the turn is not given
  int socket_ = -1;
  bool chunked_ = false;
  Past past_;
  std::string body_;  // scratch
  std::chrono::steady_clock::time_point written_;
};

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_STREAM_TURN_H_
