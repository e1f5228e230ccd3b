// Time for measurements.
#ifndef TINYSERVE_BASE_CLOCK_H_
#define TINYSERVE_BASE_CLOCK_H_

#include <chrono>
#include <cstdint>

namespace tinyserve {

// Of a clock that never goes back.
inline uint64_t NowNs() {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                   std::chrono::steady_clock::now().time_since_epoch())
                                   .count());
}

}  // namespace tinyserve

#endif  // TINYSERVE_BASE_CLOCK_H_
