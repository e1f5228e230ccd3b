// Assertions of our own invariants, kept in release builds: a bug stops here instead of corrupting
// a cache. What the world can cause is a Status (tinyserve/status.h), never a check.
#ifndef TINYSERVE_BASE_CHECK_H_
#define TINYSERVE_BASE_CHECK_H_

namespace tinyserve {

[[noreturn]] void CheckFailed(const char* expression, const char* file, int line);

#define TS_CHECK(condition)                     \
  (__builtin_expect(!!(condition), 1) ? (void)0 \
                                      : ::tinyserve::CheckFailed(#condition, __FILE__, __LINE__))

}  // namespace tinyserve

#endif  // TINYSERVE_BASE_CHECK_H_
