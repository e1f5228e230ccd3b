#include "base/pin_thread.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <set>
#include <thread>
#include <vector>

#include "base/thread_pool.h"

namespace tinyserve {
namespace {

// The cores that the calling thread may use.
std::vector<int> Cores() {
  cpu_set_t set;
  EXPECT_EQ(sched_getaffinity(0, sizeof set, &set), 0);
  std::vector<int> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cores.push_back(cpu);
  }
  return cores;
}

TEST(PinThread, GivesEachThreadACoreOfItsOwn) {
  const auto all = static_cast<uint32_t>(Cores().size());
  std::set<int> taken;
  for (uint32_t i = 0; i < all; ++i) {
    std::thread([&] {
      EXPECT_TRUE(PinThread(i, all));
      ASSERT_EQ(Cores().size(), 1u);
      taken.insert(Cores()[0]);
    }).join();
  }
  EXPECT_EQ(taken.size(), all);
}

TEST(PinThread, LeavesThreadsFreeThatAreMoreOrFewerThanCores) {
  const std::vector<int> cores = Cores();
  const auto all = static_cast<uint32_t>(cores.size());
  EXPECT_FALSE(PinThread(0, all + 1));
  EXPECT_FALSE(PinThread(0, std::max(1u, all - 1)) && all > 1);
  EXPECT_EQ(Cores(), cores);
}

// Workers take the cores behind the first, which is left to the caller.
TEST(PinThread, IsWhatAThreadPoolDoes) {
  const std::vector<int> cores = Cores();
  const auto all = static_cast<uint32_t>(cores.size());
  ThreadPool pool(all);
  std::vector<std::atomic<int>> core(all);
  std::atomic<uint32_t> begun{0};
  pool.For(all, [&](uint32_t, uint32_t thread) {
    // None takes two items: all wait for all.
    for (++begun; begun < all;) std::this_thread::yield();
    if (thread == 0) return;
    const std::vector<int> own = Cores();
    core[thread] = own.size() == 1 ? own[0] : -1;
  });
  for (uint32_t t = 1; t < all; ++t) EXPECT_EQ(core[t], cores[t]);
  EXPECT_EQ(Cores(), cores);
}

}  // namespace
}  // namespace tinyserve
