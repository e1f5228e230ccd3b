// The peaks of this machine that a step's time is held against: memory bandwidth, and multiply-adds
// of each kind.
#ifndef TINYSERVE_TOOLS_MACHINE_PEAKS_H_
#define TINYSERVE_TOOLS_MACHINE_PEAKS_H_

#include <cstdint>
#include <functional>

#include "base/thread_pool.h"
#include "engine/device_peaks.h"
#include "engine/executor.h"
#include "kernels/kernels.h"
#include "tinyserve/status.h"

namespace tinyserve {

struct MachinePeaks {
  double read_bytes_per_s = 0;
  double multiply_adds_per_s[kDotKinds] = {};  // by DotKind; 0: the target has no such dot
};

const char* DotKindName(DotKind kind);

// Reads `bytes` of fresh memory on all threads with the table's widest loads, best of `repeats`.
// Errors: kOutOfMemory.
Result<double> MeasureReadBandwidth(const Kernels& kernels, ThreadPool* threads, uint64_t bytes,
                                    uint32_t repeats);

// Both, best of 5: reading 1 GiB (less where the memory limit is small), and a fifth of a second of
// each kind of dot. About three seconds. Errors: kOutOfMemory.
Result<MachinePeaks> MeasurePeaks(const Kernels& kernels, ThreadPool* threads,
                                  const std::function<void(double fraction)>& progress);

// Those of a device, by the kinds that its executor counts (DeviceExecutor::cost): bf16 stands for
// tensor cores over f16, in which prompts are computed, u8s8 for dp4a. Bytes are those of copies.
MachinePeaks PeaksOf(const DevicePeaks& device);

// The least time that `cost` takes on a machine with these peaks: its bytes or its multiply-adds,
// whichever takes longer. A kind without a peak counts as the fastest kind that there is.
double RooflineSeconds(const StepCost& cost, const MachinePeaks& peaks);

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_MACHINE_PEAKS_H_
