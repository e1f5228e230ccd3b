#include "base/pin_thread.h"

#include <sched.h>

namespace tinyserve {

bool PinThread(uint32_t index, uint32_t threads) {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return false;
  if (static_cast<uint32_t>(CPU_COUNT(&allowed)) != threads) return false;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed) || index-- > 0) continue;
    cpu_set_t own;
    CPU_ZERO(&own);
    CPU_SET(cpu, &own);
    return sched_setaffinity(0, sizeof own, &own) == 0;
  }
  return false;
}

}  // namespace tinyserve
