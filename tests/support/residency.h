// Which pages of memory the system has given.
#ifndef TINYSERVE_TESTS_SUPPORT_RESIDENCY_H_
#define TINYSERVE_TESTS_SUPPORT_RESIDENCY_H_

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace tinyserve {

// Of the system pages that hold `bytes` bytes from `data` on, those that are resident.
inline uint64_t ResidentPages(const uint8_t* data, uint64_t bytes) {
  constexpr uint64_t kPage = 4096;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data) / kPage * kPage;
  const uintptr_t end = reinterpret_cast<uintptr_t>(data) + bytes;
  std::vector<unsigned char> pages((end - begin + kPage - 1) / kPage);
  if (mincore(reinterpret_cast<void*>(begin), end - begin, pages.data()) != 0) return 0;
  return static_cast<uint64_t>(
      std::count_if(pages.begin(), pages.end(), [](unsigned char p) { return p & 1; }));
}

inline bool IsResident(const uint8_t* data, uint64_t bytes) {
  const uint64_t first = reinterpret_cast<uintptr_t>(data) / 4096;
  const uint64_t last = (reinterpret_cast<uintptr_t>(data) + bytes - 1) / 4096;
  return ResidentPages(data, bytes) == last - first + 1;
}

// Whether the system makes memory resident when it is asked to; makes that page so.
inline bool CanPopulate(uint8_t* page) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(page) / 4096 * 4096;
  return madvise(reinterpret_cast<void*>(begin), 4096, MADV_POPULATE_WRITE) == 0;
}

}  // namespace tinyserve

#endif  // TINYSERVE_TESTS_SUPPORT_RESIDENCY_H_
