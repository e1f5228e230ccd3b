// Threads that keep to one core.
#ifndef TINYSERVE_BASE_PIN_THREAD_H_
#define TINYSERVE_BASE_PIN_THREAD_H_

#include <cstdint>

namespace tinyserve {

// Binds the calling thread, the index-th of `threads` that compute together, to a core of its own,
// where this process may use exactly so many. The scheduler may wake two of them on one core, where
// they wait for each other until it looks again: a step in sixty took three times as long. Threads
// that are started by this one inherit the core. False: it is bound to none. REQUIRES:
// index < threads.
bool PinThread(uint32_t index, uint32_t threads);

}  // namespace tinyserve

#endif  // TINYSERVE_BASE_PIN_THREAD_H_
