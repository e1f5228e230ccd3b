#include "base/thread_pool.h"

#include <algorithm>

#include "base/check.h"

namespace tinyserve {
namespace {

// About 50 us of spinning: longer than any gap between regions of a step, short beside a
// scheduler's time slice.
constexpr int kSpins = 2000;

// A thread takes this part of its share of what is left: few visits to the counter, whose cache
// line goes from core to core, and items of one left for the end, where they even out.
constexpr uint32_t kSharesPerThread = 4;

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

ThreadPool::ThreadPool(uint32_t threads) {
  TS_CHECK(threads >= 1);
  workers_.reserve(threads - 1);
  for (uint32_t t = 1; t < threads; ++t) workers_.emplace_back([this, t] { Worker(t); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::Run(uint32_t items, bool alike, Invoke invoke, const void* body) {
  if (items == 0) return;
  if (workers_.empty() || items == 1) {
    for (uint32_t i = 0; i < items; ++i) invoke(body, i, 0);
    return;
  }
  invoke_ = invoke;
  body_ = body;
  items_ = items;
  shares_ = alike ? kSharesPerThread * threads() : items;
  next_.store(0, std::memory_order_relaxed);
  running_.store(static_cast<uint32_t>(workers_.size()), std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  Drain(0);
  for (uint32_t left; (left = running_.load(std::memory_order_acquire)) != 0;)
    AwaitChange(running_, left);
}

void ThreadPool::Drain(uint32_t thread) {
  for (;;) {
    const uint32_t done = next_.load(std::memory_order_relaxed);
    if (done >= items_) return;
    const uint32_t take = std::max(1u, (items_ - done) / shares_);
    const uint32_t first = next_.fetch_add(take, std::memory_order_relaxed);
    const uint32_t end = std::min(items_, first + take);
    for (uint32_t item = first; item < end; ++item) invoke_(body_, item, thread);
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
