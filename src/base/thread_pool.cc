#include "base/thread_pool.h"

#include <algorithm>

#include "base/check.h"
#include "base/pin_thread.h"

namespace tinyserve {
namespace {

// About 50 us of spinning: longer than any gap between regions of a step, short beside a
// scheduler's time slice.
constexpr int kSpins = 2000;

// Of what is left of a share, this part is taken at once: few visits to its counter, and items of
// one left for the end, where others help.
constexpr uint32_t kTakenPart = 2;

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Waits until `value` differs from `old`: spins first, then sleeps in the kernel.
void AwaitChange(const std::atomic<uint32_t>& value, uint32_t old) {
  for (int i = 0; i < kSpins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    Pause();
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(uint32_t threads) : shares_(threads) {
  TS_CHECK(threads >= 1);
  workers_.reserve(threads - 1);
  for (uint32_t t = 1; t < threads; ++t) {
    workers_.emplace_back([this, t, threads] {
      PinThread(t, threads);
      Worker(t);
    });
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::Run(uint32_t items, bool alike, Invoke invoke, const void* body) {
  if (items == 0) return;
  if (workers_.empty() || items == 1) return invoke(body, 0, items, 0);
  invoke_ = invoke;
  body_ = body;
  items_ = items;
  alike_ = alike;
  // Neighbours for each thread, or one queue for all.
  const uint32_t shares = alike ? threads() : 1;
  for (uint32_t s = 0; s < threads(); ++s) {
    const uint32_t at = std::min(s, shares);
    shares_[s].end = static_cast<uint32_t>(uint64_t{items} * std::min(at + 1, shares) / shares);
    shares_[s].next.store(static_cast<uint32_t>(uint64_t{items} * at / shares),
                          std::memory_order_relaxed);
  }
  running_.store(static_cast<uint32_t>(workers_.size()), std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  Drain(0);
  for (uint32_t left; (left = running_.load(std::memory_order_acquire)) != 0;)
    AwaitChange(running_, left);
}

void ThreadPool::Drain(uint32_t thread) {
  if (alike_ && items_ <= threads()) {  // nothing to even out: no counter is needed
    if (thread < items_) invoke_(body_, thread, thread + 1, thread);
    return;
  }
  if (!alike_) return DrainShare(&shares_[0], thread);
  for (uint32_t i = 0; i < threads(); ++i) DrainShare(&shares_[(thread + i) % threads()], thread);
}

void ThreadPool::DrainShare(Share* share, uint32_t thread) {
  for (;;) {
    const uint32_t done = share->next.load(std::memory_order_relaxed);
    if (done >= share->end) return;
    const uint32_t take = alike_ ? std::max(1u, (share->end - done) / kTakenPart) : 1;
    const uint32_t first = share->next.fetch_add(take, std::memory_order_relaxed);
    if (first < share->end) invoke_(body_, first, std::min(share->end, first + take), thread);
  }
}

void ThreadPool::Worker(uint32_t thread) {
  uint32_t seen = 0;
  for (;;) {
    AwaitChange(epoch_, seen);
    seen = epoch_.load(std::memory_order_acquire);
    if (stop_.load(std::memory_order_relaxed)) return;
    Drain(thread);
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_.notify_one();
  }
}

}  // namespace tinyserve
