// Kernels that are not the program's own: loaded from an image while it runs.
#ifndef TINYSERVE_KERNELS_CUDA_LIBRARY_H_
#define TINYSERVE_KERNELS_CUDA_LIBRARY_H_

#include <cstdint>

#include "kernels/cuda/device.h"
#include "kernels/cuda/launch.h"
#include "tinyserve/status.h"

namespace tinyserve::cuda {

using LibraryHandle = void*;  // a cudaLibrary_t
using KernelHandle = void*;   // a cudaKernel_t

namespace runtime {

// `image`: a fatbin, a cubin or PTX with a zero byte at its end, whole: its size is not asked for.
// Errors: those of kernels/cuda/runtime.h; kUnsupported also where the image has no code for the
// device in use.
Result<LibraryHandle> LoadLibrary(const void* image);
void UnloadLibrary(LibraryHandle library);
// The kernel that is exported by this name, for blocks of `threads` threads. It lives as long as
// its library. Errors: kNotFound (no such kernel), kUnsupported (no code for the device in use, or
// so many threads do not fit its registers), others.
Result<KernelHandle> FindKernel(LibraryHandle library, const char* name, uint32_t threads);
// Launches a kernel with one parameter, whose bytes are copied. `config.shared_bytes`: at most 48
// KiB. Errors: those of a launch.
Status LaunchLoaded(const LaunchConfig& config, KernelHandle kernel, const void* parameter,
                    uint64_t parameter_bytes);

}  // namespace runtime

using DeviceLibrary = Owned<runtime::UnloadLibrary>;

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_LIBRARY_H_
