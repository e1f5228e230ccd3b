// Fork-join over a fixed set of threads, for the many short parallel regions of a step.
#ifndef TINYSERVE_BASE_THREAD_POOL_H_
#define TINYSERVE_BASE_THREAD_POOL_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace tinyserve {

// `threads` includes the caller. Workers spin for some microseconds between regions, then sleep, so
// that a region costs a fraction of a microsecond while a step runs and nothing when idle. Not
// reentrant: one caller at a time.
class ThreadPool {
 public:
  explicit ThreadPool(uint32_t threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  uint32_t threads() const { return static_cast<uint32_t>(workers_.size()) + 1; }

  // Calls body(item, thread) for every item in [0, items), each once, on any thread, handed out in
  // order; returns when all are done. Allocates nothing.
  template <class Body>
  void For(uint32_t items, const Body& body) {
    Run(items, /*alike=*/false, InvokeOf<Body>, &body);
  }
  // The same for items that take about the same time: each thread has a share of neighbours, of
  // which it takes several at once while many are left, and helps with the others' in the end.
  template <class Body>
  void ForAlike(uint32_t items, const Body& body) {
    Run(items, /*alike=*/true, InvokeOf<Body>, &body);
  }
  // The same by neighbours: calls body(first, end, thread) for ranges that cover all items.
  template <class Body>
  void ForRanges(uint32_t items, const Body& body) {
    Run(items, /*alike=*/true, InvokeRangeOf<Body>, &body);
  }

 private:
  using Invoke = void (*)(const void* body, uint32_t first, uint32_t end, uint32_t thread);

  template <class Body>
  static void InvokeOf(const void* body, uint32_t first, uint32_t end, uint32_t thread) {
    for (uint32_t item = first; item < end; ++item) (*static_cast<const Body*>(body))(item, thread);
  }
  template <class Body>
  static void InvokeRangeOf(const void* body, uint32_t first, uint32_t end, uint32_t thread) {
    (*static_cast<const Body*>(body))(first, end, thread);
  }
  void Run(uint32_t items, bool alike, Invoke invoke, const void* body);
  void Worker(uint32_t thread);
  struct alignas(64) Share {
    std::atomic<uint32_t> next{0};
    uint32_t end = 0;
  };
  void Drain(uint32_t thread);
  void DrainShare(Share* share, uint32_t thread);

  std::vector<std::thread> workers_;
  // One region: written by the caller before it bumps epoch_.
  Invoke invoke_ = nullptr;
  const void* body_ = nullptr;
  uint32_t items_ = 0;
  bool alike_ = false;
  std::vector<Share> shares_;                   // [threads] of items that are left; not alike: one
  alignas(64) std::atomic<uint32_t> epoch_{0};  // regions started; workers wait on it
  alignas(64) std::atomic<uint32_t> running_{0};  // workers that have not finished the region
  std::atomic<bool> stop_{false};
};

}  // namespace tinyserve

#endif  // TINYSERVE_BASE_THREAD_POOL_H_
