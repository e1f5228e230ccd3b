// What the benchmarks of single kernels time with.
#ifndef TINYSERVE_BENCH_KERNELS_TIMING_H_
#define TINYSERVE_BENCH_KERNELS_TIMING_H_

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#include "base/buffer.h"
#include "base/check.h"
#include "base/thread_pool.h"
#include "kernels/kernels.h"

namespace tinyserve {

// More than caches hold, and a short stretch of it: on a busy machine some are undisturbed.
constexpr uint64_t kDataBytes = uint64_t{192} << 20;
constexpr uint64_t kStretchBytes = uint64_t{16} << 20;

inline double Now() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

// Seconds, of many repeats.
struct Time {
  double best, median;
};

inline Time TimeOf(double seconds, const std::function<void()>& work) {
  work();
  std::vector<double> times;
  const double end = Now() + seconds;
  while (times.size() < 5 || Now() < end) {
    const double start = Now();
    work();
    times.push_back(Now() - start);
  }
  std::sort(times.begin(), times.end());
  return {times.front(), times[times.size() / 2]};
}

inline Buffer Allocate(uint64_t bytes) {
  auto buffer = Buffer::Allocate(bytes, true);
  TS_CHECK(buffer.ok());
  return std::move(*buffer);
}

// Bytes a second that the pool reads from memory, at best.
inline double ReadRate(const Kernels& kernels, ThreadPool& pool, double seconds) {
  Buffer data = Allocate(kDataBytes);
  std::memset(data.data(), 1, kDataBytes);
  constexpr uint32_t kPieces = 16;
  constexpr uint64_t kPiece = kStretchBytes / kPieces;
  std::vector<uint64_t> sums(kPieces);
  uint64_t at = 0;
  const Time time = TimeOf(seconds, [&] {
    pool.For(kPieces, [&](uint32_t item, uint32_t) {
      sums[item] = kernels.read_bytes(data.data() + at + item * kPiece, kPiece);
    });
    at = at + 2 * kStretchBytes <= kDataBytes ? at + kStretchBytes : 0;
  });
  return kStretchBytes / time.best;
}

}  // namespace tinyserve

#endif  // TINYSERVE_BENCH_KERNELS_TIMING_H_
