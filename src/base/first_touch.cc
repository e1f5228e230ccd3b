#include "base/first_touch.h"

#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>

namespace tinyserve {
namespace {

constexpr uint64_t kSystemPage = 4096;
// Of one call to the system, which cannot be ended early.
constexpr uint64_t kPieceBytes = 256 << 10;
constexpr int kLowestPriority = 19;

}  // namespace

FirstTouch::FirstTouch() : thread_([this] { Run(); }) {}

FirstTouch::~FirstTouch() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  asked_.notify_one();
  thread_.join();
}

void FirstTouch::Ask(uint8_t* data, uint64_t bytes) {
  if (bytes == 0) return;
  {
    std::lock_guard lock(mutex_);
    pieces_.push_back({.data = data, .bytes = bytes});
  }
  asked_.notify_one();
}

void FirstTouch::Run() {
  // Of this thread alone, as Linux has it; without it the thread does the same at others' cost.
  setpriority(PRIO_PROCESS, 0, kLowestPriority);
  std::unique_lock lock(mutex_);
  for (;;) {
    asked_.wait(lock, [this] { return stopping_ || !pieces_.empty(); });
    if (stopping_) return;
    Piece& next = pieces_.front();
    const auto begin = reinterpret_cast<uintptr_t>(next.data) / kSystemPage * kSystemPage;
    const uint64_t before = reinterpret_cast<uintptr_t>(next.data) - begin;
    const uint64_t bytes = std::min(kPieceBytes - before, next.bytes);
    next.data += bytes;
    next.bytes -= bytes;
    if (next.bytes == 0) pieces_.pop_front();
    lock.unlock();
    // What fails fails, or not, when the memory is used.
    madvise(reinterpret_cast<void*>(begin), before + bytes, MADV_POPULATE_WRITE);
    lock.lock();
  }
}

}  // namespace tinyserve
