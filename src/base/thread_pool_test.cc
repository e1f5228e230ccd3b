#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace tinyserve {
namespace {

TEST(ThreadPool, EachItemOnceWithAnyThreadCount) {
  for (uint32_t threads : {1u, 2u, 3u, 8u}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (uint32_t items : {0u, 1u, 2u, 7u, 1000u}) {
      std::vector<std::atomic<int>> hits(items);
      std::atomic<uint32_t> worst_thread{0};
      const auto hit = [&](uint32_t item, uint32_t thread) {
        hits[item].fetch_add(1);
        uint32_t seen = worst_thread.load();
        while (thread > seen && !worst_thread.compare_exchange_weak(seen, thread)) {
        }
      };
      pool.For(items, hit);
      pool.ForAlike(items, hit);
      pool.ForRanges(items, [&](uint32_t first, uint32_t end, uint32_t thread) {
        EXPECT_LT(first, end);
        for (uint32_t item = first; item < end; ++item) hit(item, thread);
      });
      for (uint32_t i = 0; i < items; ++i) EXPECT_EQ(hits[i].load(), 3) << i;
      EXPECT_LT(worst_thread.load(), threads);
    }
  }
}

TEST(ThreadPool, RegionsFollowEachOtherAndWritesAreSeen) {
  constexpr uint64_t kRounds = 3000;
  ThreadPool pool(3);
  std::vector<uint64_t> values(64, 0);
  for (uint64_t round = 0; round < kRounds; ++round) {
    pool.For(64, [&](uint32_t item, uint32_t) { values[item] += values[item] == round; });
  }
  for (uint64_t value : values) EXPECT_EQ(value, kRounds);
}

// Long items come first where items differ: none may wait behind another while a thread is free.
TEST(ThreadPool, LongItemsAreNotTakenTogether) {
  ThreadPool pool(2);
  std::atomic<int> begun{0}, met{0};
  pool.For(64, [&](uint32_t item, uint32_t) {
    if (item >= 2) return;
    begun.fetch_add(1);
    for (int i = 0; i < 5000 && begun.load() < 2; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    met.fetch_add(begun.load() == 2 ? 1 : 0);
  });
  EXPECT_EQ(met.load(), 2);
}

// A core that is slow for a while keeps what it has begun, not its whole share.
TEST(ThreadPool, SharesOfASlowThreadAreHelpedWith) {
  ThreadPool pool(2);
  std::atomic<int> done{0};
  bool waited = false;
  pool.ForAlike(64, [&](uint32_t item, uint32_t) {
    for (int i = 0; item == 0 && i < 5000 && done.load() < 48; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    if (item == 0) waited = done.load() >= 48;
    done.fetch_add(1);
  });
  EXPECT_TRUE(waited);
  EXPECT_EQ(done.load(), 64);
}

TEST(ThreadPool, WakesAfterSleeping) {
  ThreadPool pool(2);
  for (int round = 0; round < 3; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    std::atomic<int> sum{0};
    pool.For(100, [&](uint32_t, uint32_t) { sum.fetch_add(1); });
    EXPECT_EQ(sum.load(), 100);
  }
}

}  // namespace
}  // namespace tinyserve
