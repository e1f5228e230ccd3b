#include "server/event_queue.h"

#include <utility>

namespace tinyserve {

void EventQueue::SetWake(ReplyWork::Wake wake) {
  std::lock_guard wake_lock(wake_mutex_);
  wake_ = std::move(wake);
  if (!wake_) return;
  std::unique_lock lock(mutex_);
  const bool waiting = !events_.empty() || overflowed_;
  lock.unlock();
  if (waiting) wake_(News::kEnd);
}

bool EventQueue::Push(uint32_t choice, const TokenEvent& event) {
  if (event.kind == TokenEvent::Kind::kPrefill) return true;
  std::unique_lock lock(mutex_);
  if (overflowed_) return false;
  const bool was_empty = events_.empty();
  if (events_.size() >= events_max_) {
    overflowed_ = true;
    events_ = {};
  } else {
    events_.push_back({choice, event, std::chrono::steady_clock::now()});
  }
  const bool lost = overflowed_;
  lock.unlock();
  if (!was_empty && !lost) return true;
  const bool ended = lost || event.kind == TokenEvent::Kind::kFinished;
  std::lock_guard wake_lock(wake_mutex_);
  if (wake_) wake_(ended ? News::kEnd : News::kTokens);
  return !lost;
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
