// What tests leave out under a sanitizer. It judges accesses, not numbers: where a test runs the
// same code once more, cut or grouped in another way, to prove that numbers are equal, the proof is
// the release build's, and one run of each kind is enough here.
#ifndef TINYSERVE_TESTS_SUPPORT_SANITIZED_H_
#define TINYSERVE_TESTS_SUPPORT_SANITIZED_H_

#include <vector>

#include "kernels/targets.h"

namespace tinyserve {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

// Targets for tests of whole models: all of this machine, best first and `ref` last. Under a
// sanitizer the best, avx2 and `ref`: the others are the same source with other flags, and each has
// its kernels' own tests there too.
inline std::vector<const Kernels*> ModelTargets() {
  std::vector<const Kernels*> targets = AvailableTargets();
  if (kSanitized && targets.size() > 3) targets.erase(targets.begin() + 1, targets.end() - 2);
  return targets;
}

}  // namespace tinyserve

#endif  // TINYSERVE_TESTS_SUPPORT_SANITIZED_H_
