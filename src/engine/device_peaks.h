// The peaks of a CUDA device, that a step's time there is held against.
#ifndef TINYSERVE_ENGINE_DEVICE_PEAKS_H_
#define TINYSERVE_ENGINE_DEVICE_PEAKS_H_

#include <cstdint>
#include <functional>
#include <string>

#include "tinyserve/status.h"

namespace tinyserve {

struct DevicePeaks {
  std::string device;                      // "cuda:0" and its name
  double copy_bytes_per_s = 0;             // what is read and what is written, together
  double f32 = 0, dp4a = 0;                // multiply-adds a second of single threads
  double tensor_f16 = 0, tensor_bf16 = 0;  // the same of tensor cores (mma m16n8k16 into f32)
};

// Medians of repeated launches, each timed by the device: copies between two buffers of 16 times
// its second-level cache, and some hundredths of a second of each kind of multiply-add. `progress`:
// 0..1. Errors: kUnsupported (no such device, a program without CUDA), kOutOfMemory (less than
// eight times that cache is free), those of the device.
Result<DevicePeaks> MeasureDevicePeaks(uint32_t index,
                                       const std::function<void(double fraction)>& progress);

}  // namespace tinyserve

#endif  // TINYSERVE_ENGINE_DEVICE_PEAKS_H_
