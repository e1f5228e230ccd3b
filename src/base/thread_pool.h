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
  // The same for items that take about the same time: a thread takes several neighbours at once
  // while many are left.
  template <class Body>
  void ForAlike(uint32_t items, const Body& body) {
    Run(items, /*alike=*/true, InvokeOf<Body>, &body);
  }

 private:
  using Invoke = void (*)(const void* body, uint32_t item, uint32_t thread);

  template <class Body>
  static void InvokeOf(const void* body, uint32_t item, uint32_t thread) {
    (*static_cast<const Body*>(body))(item, thread);
  }
  void Run(uint32_t items, bool alike, Invoke invoke, const void* body);
  void Worker(uint32_t thread);
  void Drain(uint32_t thread);

  std::vector<std::thread> workers_;
  // One region: written by the caller before it bumps epoch_.
  Invoke invoke_ = nullptr;
  const void* body_ = nullptr;
  uint32_t items_ = 0;
  uint32_t shares_ = 0;  // of the items that are left, 1 / shares_ are taken at once; at least one
  alignas(64) std::atomic<uint32_t> epoch_{0};    // regions started; workers wait on it
  alignas(64) std::atomic<uint32_t> next_{0};     // next item of the region
  alignas(64) std::atomic<uint32_t> running_{0};  // workers that have not finished the region
  std::atomic<bool> stop_{false};
};

}  // namespace tinyserve

#endif  // TINYSERVE_BASE_THREAD_POOL_H_
