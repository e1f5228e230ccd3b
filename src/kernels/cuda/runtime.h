// The calls of the CUDA runtime that the backend makes, as plain functions with a Status: the one
// place that sees CUDA's own types. A program built without CUDA has the same functions, which say
// so; a test may link its own.
//
// An error names the call, what the runtime says of it, and the kernel that was launched last: an
// asynchronous fault comes to light at a later call. With the environment variable
// TINYSERVE_CUDA_SYNC set, every launch waits for its kernel, so that the name is exact.
#ifndef TINYSERVE_KERNELS_CUDA_RUNTIME_H_
#define TINYSERVE_KERNELS_CUDA_RUNTIME_H_

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/cuda/launch.h"
#include "tinyserve/status.h"

namespace tinyserve::cuda {

// Opaque: a cudaEvent_t, a cudaGraphExec_t.
using EventHandle = void*;
using GraphHandle = void*;

struct DeviceInfo {
  uint32_t index;
  std::string name;
  uint32_t capability;  // 86: compute capability 8.6
  uint32_t processors;  // streaming multiprocessors
  uint64_t memory_bytes;
  uint64_t l2_bytes;
  uint32_t block_shared_bytes_max;  // shared memory that one block may ask for
};

// The oldest compute capability that kernels are compiled for.
static constexpr uint32_t kCapabilityMin = 80;

namespace runtime {

// Whether the program was built with CUDA, and for what: "CUDA 13.5: sm_80, sm_86, sm_89, sm_90,
// PTX"; empty: without.
std::string Built();

// Errors of all below: kUnsupported (built without CUDA; no driver, or one that is too old; no
// device), kOutOfMemory, kInternal (anything else, device lost included).
Result<std::vector<DeviceInfo>> ListDevices();
Status UseDevice(uint32_t index);  // of the calling thread
Result<uint64_t> FreeBytes();      // of the device in use

Result<void*> AllocateDevice(uint64_t bytes);
void FreeDevice(void* data);
Result<void*> AllocatePinned(uint64_t bytes);  // host memory that copies run beside kernels from
void FreePinned(void* data);

Result<Stream> CreateStream();
void DestroyStream(Stream stream);
Status Synchronize(Stream stream);
// In the stream's order; between device memory and pinned memory they do not wait.
Status Copy(void* to, const void* from, uint64_t bytes, Stream stream);
Status Fill(void* data, uint8_t value, uint64_t bytes, Stream stream);

Result<EventHandle> CreateEvent();
void DestroyEvent(EventHandle event);
Status Record(EventHandle event, Stream stream);
Status Await(EventHandle event);                               // the caller waits
Status WaitFor(EventHandle event, Stream stream);              // the stream waits, not the caller
Result<float> Milliseconds(EventHandle from, EventHandle to);  // waits for `to`

// Between the two calls the stream records what it is given instead of running it.
Status BeginCapture(Stream stream);
Result<GraphHandle> EndCapture(Stream stream);
Status LaunchGraph(GraphHandle graph, Stream stream);
void DestroyGraph(GraphHandle graph);

// Called by each launch of a kernel: remembers its name (a literal), and gives what the launch was
// refused for (`error`, a cudaError_t).
Status AfterLaunch(const char* kernel, int error, Stream stream);
// The name that AfterLaunch was given last; "none" before that.
const char* LastKernel();

}  // namespace runtime
}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_RUNTIME_H_
