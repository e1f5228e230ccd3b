// Runs a kernel on the host: blocks one after another, a block's threads as fibers, in an order
// that follows from a seed. Finds what a GPU does not tell; docs/kernels/cuda.md has the list.
//
// A fault ends the launch: the Status names kernel, block, thread, place, view and index.
#ifndef TINYSERVE_TESTS_SIMT_EMULATOR_H_
#define TINYSERVE_TESTS_SIMT_EMULATOR_H_

#include <cstdint>
#include <functional>
#include <source_location>
#include <string>

#include "kernels/cuda/launch.h"
#include "tests/simt/shadow.h"
#include "tinyserve/status.h"

namespace tinyserve::simt {

using Site = std::source_location;

// The order of blocks and threads in the launches that follow.
void SetSeed(uint64_t seed);

// Runs `thread` once for every thread of the grid.
Status Run(const cuda::LaunchConfig& config, const std::function<void()>& thread);

// ---- for running threads
// -------------------------------------------------------------------------

// Where the running thread is.
struct Here {
  uint32_t thread, threads;
  cuda::Grid block, grid;
};
const Here& Where();

void SyncBlock(const Site& site);

// A collective step of the lanes of `mask`: each gives a payload; when the last has come, `finish`
// makes of all of them (by lane, null outside of the mask) what each gets back in its place.
constexpr uint32_t kPayloadBytes = 64;
struct WarpStep {
  const char* name;
  uint32_t mask;
  void (*finish)(void* const (&payloads)[kWarpLanes], uint32_t mask);
  bool orders_memory = false;  // SyncWarp does; shuffles do not
};
void Collect(const WarpStep& step, void* payload, uint32_t bytes, const Site& site);

// Ends the launch. Called by a running thread.
[[noreturn]] void Fail(const std::string& what, const Site& site);

// An element of a view, for checks and messages.
struct Element {
  const char* view;
  uint64_t index, count;  // of elements of the view
  uint32_t bytes;         // of the access
};
// Fails where elements index .. of so many bytes are not in the view, or not aligned.
void CheckBounds(const Element& element, uint32_t element_bytes, const void* address,
                 const Site& site);

// Shared memory, by byte offsets. Offers: parts of the dynamic memory of the launch.
uint32_t TakeDynamic(uint32_t* used, uint32_t bytes, const char* view, const Site& site);
// Static memory of the kernel: the same for every thread that names the same key.
uint32_t StaticAt(const void* key, uint32_t bytes);
uint8_t* SharedAt(uint32_t offset);
void TouchShared(uint32_t offset, Access access, const Element& element, const Site& site);
// `writable`: by a view that may write, whose reads are kept too.
void TouchGlobal(const void* address, bool writable, Access access, const Element& element,
                 const Site& site);

void CopyAsync(uint32_t offset, const void* from, const Element& to, const Site& site);
void CopyAsyncCommit();
void CopyAsyncWait(uint32_t left);

}  // namespace tinyserve::simt

#endif  // TINYSERVE_TESTS_SIMT_EMULATOR_H_
