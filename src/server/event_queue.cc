#include "server/event_queue.h"

#include <utility>

namespace tinyserve {

void EventQueue::SetWake(std::function<void()> wake) {
  std::lock_guard lock(mutex_);
  wake_ = std::move(wake);
  if (wake_ && (!events_.empty() || overflowed_)) wake_();
}

bool EventQueue::Push(uint32_t choice, const TokenEvent& event) {
  if (event.kind == TokenEvent::Kind::kPrefill) return true;
  std::lock_guard lock(mutex_);
  if (overflowed_) return false;
  const bool was_empty = events_.empty();
  if (events_.size() >= events_max_) {
    overflowed_ = true;
    events_ = {};
  } else {
    events_.push_back({choice, event, std::chrono::steady_clock::now()});
  }
  // Under the lock: whoever takes the wake away may go on to destroy what it points to.
  if (wake_ && (was_empty || overflowed_)) wake_();
  return !overflowed_;
}

std::vector<Arrival> EventQueue::Take() {
  std::lock_guard lock(mutex_);
  return std::exchange(events_, {});
}

bool EventQueue::overflowed() const {
  std::lock_guard lock(mutex_);
  return overflowed_;
}

}  // namespace tinyserve
