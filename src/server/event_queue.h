// Events of one reply's requests on their way from the engine's thread to the connection.
#ifndef TINYSERVE_SERVER_EVENT_QUEUE_H_
#define TINYSERVE_SERVER_EVENT_QUEUE_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "server/http_types.h"
#include "tinyserve/engine.h"

namespace tinyserve {

struct Arrival {
  uint32_t choice = 0;  // which of the reply's requests
  TokenEvent event;
  std::chrono::steady_clock::time_point time;  // when the engine gave it
};

// Prefill events are not kept. Never blocks longer than a copy takes.
class EventQueue {
 public:
  // `events_max`: what may wait here; more than that is given up (see Push).
  explicit EventQueue(size_t events_max) : events_max_(events_max) {}

  // `wake` is called once something is there to take, and may take it. Waits for an earlier one
  // that runs.
  void SetWake(ReplyWork::Wake wake);
  // False: the queue is full, because whoever takes is too slow. The event is lost, and all that
  // follow; the request should be cancelled.
  bool Push(uint32_t choice, const TokenEvent& event);
  // All that is there, in order.
  std::vector<Arrival> Take();
  bool overflowed() const;

 private:
  const size_t events_max_;
  mutable std::mutex mutex_;
  std::vector<Arrival> events_;
  bool overflowed_ = false;
  // Held while wake_ runs: whoever takes it away may go on to destroy what it points to. Never
  // locked by who holds mutex_.
  std::mutex wake_mutex_;
  ReplyWork::Wake wake_;
};

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_EVENT_QUEUE_H_
