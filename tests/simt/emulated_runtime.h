// The CUDA runtime of kernels/cuda/runtime.h on the host, for an emulated device.
//
// Memory of the device is mapped without access while host code runs: code of the host that touches
// it dies at the spot. A stream is a queue that runs when somebody waits for it, no earlier: what
// is read too soon, or written again too soon, is found. Copies from and to memory that is not
// pinned are as CUDA's: taken at once, or waited for. The null stream alone runs at once, as tests
// of kernels over their own vectors want.
//
// What a capture records is run anew by each launch of its graph, with the addresses and arguments
// of the recording. Waiting, allocating and copies of unpinned memory are refused meanwhile.
#ifndef TINYSERVE_TESTS_SIMT_EMULATED_RUNTIME_H_
#define TINYSERVE_TESTS_SIMT_EMULATED_RUNTIME_H_

#include <cstdint>
#include <functional>

#include "kernels/cuda/launch.h"
#include "tinyserve/status.h"

namespace tinyserve::simt {

// A launch of a kernel: now, later in its stream, or into what its stream records.
Status LaunchInStream(const cuda::LaunchConfig& config, std::function<void()> thread);

// ---- for tests: faults of a device --------------------------------------------------------------

// Of the device's memory; allocations beyond it fail. 0: no limit.
void SetDeviceMemory(uint64_t bytes);
// The device is lost at the n-th launch of a kernel from now on that runs (1: the next one); 0:
// never. Every call fails from then on.
void LoseDeviceAt(uint64_t launch);
// A new device takes the place of one that is lost; its memory stays.
void ReplaceDevice();

struct DeviceCounts {
  uint64_t allocations = 0, launches = 0, graph_launches = 0, waits = 0;
  uint64_t waits_ahead = 0;  // after which the stream still had work
  uint64_t copies_in = 0;    // to the device from the host
  uint64_t bytes_out = 0;    // the other way
  uint64_t bytes_in_use = 0;
};
DeviceCounts Counts();

}  // namespace tinyserve::simt

#endif  // TINYSERVE_TESTS_SIMT_EMULATED_RUNTIME_H_
