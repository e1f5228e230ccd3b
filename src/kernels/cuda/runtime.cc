#include "kernels/cuda/runtime.h"

#include <atomic>

#include "kernels/cuda/library.h"

#ifdef TINYSERVE_CUDA
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <cstdlib>
#endif

namespace tinyserve::cuda::runtime {
namespace {

std::atomic<const char*> last_kernel = "none";

}  // namespace

const char* LastKernel() { return last_kernel.load(std::memory_order_relaxed); }

#ifdef TINYSERVE_CUDA

namespace {

std::string VersionText(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

// What is missing where no device can be used: the driver, a newer driver, or a device.
Status Missing(cudaError_t error) {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
  (void)cudaGetLastError();
  if (driver == 0) {
    return Status(
        Code::kUnsupported,
        "this machine has no NVIDIA driver (libcuda.so.1 was not found or does not load)");
  }
  if (error == cudaErrorInsufficientDriver) {
    return Status(
        Code::kUnsupported,
        fmt::format("the NVIDIA driver serves CUDA {}; this program needs that of CUDA {}",
                    VersionText(driver), VersionText(CUDART_VERSION)));
  }
  return Status(Code::kUnsupported,
                fmt::format("the NVIDIA driver shows no device: {}", cudaGetErrorString(error)));
}

Code CodeOf(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
      return Code::kOutOfMemory;
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorInvalidDevice:
      return Code::kUnsupported;
    default:
      return Code::kInternal;
  }
}

Status Checked(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return Status();
  (void)cudaGetLastError();  // what can be forgotten is: the next call is not to report it again
  if (error == cudaErrorInsufficientDriver || error == cudaErrorNoDevice) return Missing(error);
  return Status(CodeOf(error),
                fmt::format("{} failed: {} ({}); the last kernel launched was {}", call,
                            cudaGetErrorString(error), cudaGetErrorName(error), LastKernel()));
}

cudaStream_t Native(Stream stream) { return static_cast<cudaStream_t>(stream); }
cudaEvent_t NativeEvent(EventHandle event) { return static_cast<cudaEvent_t>(event); }

Result<DeviceInfo> Describe(int index) {
  cudaDeviceProp properties{};
  TS_RETURN_IF_ERROR(
      Checked(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties"));
  return DeviceInfo{
      .index = static_cast<uint32_t>(index),
      .name = properties.name,
      .capability = static_cast<uint32_t>(properties.major * 10 + properties.minor),
      .processors = static_cast<uint32_t>(properties.multiProcessorCount),
      .memory_bytes = properties.totalGlobalMem,
      .l2_bytes = static_cast<uint64_t>(properties.l2CacheSize),
      .block_shared_bytes_max = static_cast<uint32_t>(properties.sharedMemPerBlockOptin)};
}

}  // namespace

std::string Built() {
  return fmt::format("CUDA {}: {}", VersionText(CUDART_VERSION), TINYSERVE_CUDA);
}

Result<std::vector<DeviceInfo>> ListDevices() {
  int count = 0;
  TS_RETURN_IF_ERROR(Checked(cudaGetDeviceCount(&count), "cudaGetDeviceCount"));
  if (count == 0) return Missing(cudaErrorNoDevice);
  std::vector<DeviceInfo> devices;
  for (int i = 0; i < count; ++i) {
    TS_ASSIGN_OR_RETURN(devices.emplace_back(), Describe(i));
  }
  return Result<std::vector<DeviceInfo>>(std::move(devices));
}

Status UseDevice(uint32_t index) {
  return Checked(cudaSetDevice(static_cast<int>(index)), "cudaSetDevice");
}

Result<uint64_t> FreeBytes() {
  size_t free = 0, total = 0;
  TS_RETURN_IF_ERROR(Checked(cudaMemGetInfo(&free, &total), "cudaMemGetInfo"));
  return uint64_t{free};
}

Result<void*> AllocateDevice(uint64_t bytes) {
  void* data = nullptr;
  TS_RETURN_IF_ERROR(Checked(cudaMalloc(&data, bytes), "cudaMalloc"));
  return data;
}
void FreeDevice(void* data) { (void)cudaFree(data); }

Result<void*> AllocatePinned(uint64_t bytes) {
  void* data = nullptr;
  TS_RETURN_IF_ERROR(Checked(cudaMallocHost(&data, bytes), "cudaMallocHost"));
  return data;
}
void FreePinned(void* data) { (void)cudaFreeHost(data); }

Result<Stream> CreateStream() {
  cudaStream_t stream = nullptr;
  TS_RETURN_IF_ERROR(Checked(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking),
                             "cudaStreamCreateWithFlags"));
  return Stream{stream};
}
void DestroyStream(Stream stream) { (void)cudaStreamDestroy(Native(stream)); }

Status Synchronize(Stream stream) {
  return Checked(cudaStreamSynchronize(Native(stream)), "cudaStreamSynchronize");
}

Status Copy(void* to, const void* from, uint64_t bytes, Stream stream) {
  return Checked(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, Native(stream)),
                 "cudaMemcpyAsync");
}

Status Fill(void* data, uint8_t value, uint64_t bytes, Stream stream) {
  return Checked(cudaMemsetAsync(data, value, bytes, Native(stream)), "cudaMemsetAsync");
}

Result<EventHandle> CreateEvent() {
  cudaEvent_t event = nullptr;
  TS_RETURN_IF_ERROR(Checked(cudaEventCreate(&event), "cudaEventCreate"));
  return EventHandle{event};
}
void DestroyEvent(EventHandle event) { (void)cudaEventDestroy(NativeEvent(event)); }

Status Record(EventHandle event, Stream stream) {
  return Checked(cudaEventRecord(NativeEvent(event), Native(stream)), "cudaEventRecord");
}

Status Await(EventHandle event) {
  return Checked(cudaEventSynchronize(NativeEvent(event)), "cudaEventSynchronize");
}

Status WaitFor(EventHandle event, Stream stream) {
  return Checked(cudaStreamWaitEvent(Native(stream), NativeEvent(event), 0), "cudaStreamWaitEvent");
}

Result<float> Milliseconds(EventHandle from, EventHandle to) {
  TS_RETURN_IF_ERROR(Await(to));
  float milliseconds = 0;
  TS_RETURN_IF_ERROR(
      Checked(cudaEventElapsedTime(&milliseconds, NativeEvent(from), NativeEvent(to)),
              "cudaEventElapsedTime"));
  return milliseconds;
}

Status BeginCapture(Stream stream) {
  return Checked(cudaStreamBeginCapture(Native(stream), cudaStreamCaptureModeThreadLocal),
                 "cudaStreamBeginCapture");
}

Result<GraphHandle> EndCapture(Stream stream) {
  cudaGraph_t graph = nullptr;
  TS_RETURN_IF_ERROR(Checked(cudaStreamEndCapture(Native(stream), &graph), "cudaStreamEndCapture"));
  cudaGraphExec_t executable = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
  (void)cudaGraphDestroy(graph);
  TS_RETURN_IF_ERROR(Checked(error, "cudaGraphInstantiate"));
  return GraphHandle{executable};
}

Status LaunchGraph(GraphHandle graph, Stream stream) {
  return Checked(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), Native(stream)),
                 "cudaGraphLaunch");
}
void DestroyGraph(GraphHandle graph) {
  (void)cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph));
}

Status AfterLaunch(const char* kernel, int error, Stream stream) {
  static const bool wait = std::getenv("TINYSERVE_CUDA_SYNC") != nullptr;
  last_kernel.store(kernel, std::memory_order_relaxed);
  TS_RETURN_IF_ERROR(Checked(static_cast<cudaError_t>(error), "the launch"));
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  if (!wait || cudaStreamIsCapturing(Native(stream), &capture) != cudaSuccess ||
      capture != cudaStreamCaptureStatusNone)
    return Status();
  return Synchronize(stream);
}

// ---- kernels/cuda/library.h ---------------------------------------------------------------------

Result<LibraryHandle> LoadLibrary(const void* image) {
  cudaLibrary_t library = nullptr;
  TS_RETURN_IF_ERROR(
      Checked(cudaLibraryLoadData(&library, image, nullptr, nullptr, 0, nullptr, nullptr, 0),
              "cudaLibraryLoadData"));
  return LibraryHandle{library};
}
void UnloadLibrary(LibraryHandle library) {
  (void)cudaLibraryUnload(static_cast<cudaLibrary_t>(library));
}

Result<KernelHandle> FindKernel(LibraryHandle library, const char* name, uint32_t threads) {
  cudaKernel_t kernel = nullptr;
  const cudaError_t error =
      cudaLibraryGetKernel(&kernel, static_cast<cudaLibrary_t>(library), name);
  if (error == cudaErrorSymbolNotFound) {
    (void)cudaGetLastError();
    return Status(Code::kNotFound, fmt::format("the image has no kernel '{}'", name));
  }
  TS_RETURN_IF_ERROR(Checked(error, "cudaLibraryGetKernel"));
  // Loads the code onto the device in use: what the image has none of is found here.
  cudaFuncAttributes attributes{};
  TS_RETURN_IF_ERROR(Checked(cudaFuncGetAttributes(&attributes, static_cast<const void*>(kernel)),
                             "cudaFuncGetAttributes"));
  if (static_cast<uint32_t>(attributes.maxThreadsPerBlock) < threads) {
    return Status(Code::kUnsupported,
                  fmt::format("blocks of kernel '{}' may have {} threads on this device, not {}",
                              name, attributes.maxThreadsPerBlock, threads));
  }
  return KernelHandle{kernel};
}

Status LaunchLoaded(const LaunchConfig& config, KernelHandle kernel, const void* parameter,
                    uint64_t) {
  void* parameters[] = {const_cast<void*>(parameter)};
  const cudaError_t error = cudaLaunchKernel(
      kernel, dim3(config.grid.x, config.grid.y, config.grid.z), dim3(config.threads), parameters,
      config.shared_bytes, Native(config.stream));
  return AfterLaunch(config.kernel, static_cast<int>(error), config.stream);
}

#else  // a program without CUDA

namespace {

Status None() {
  return Status(Code::kUnsupported, "this program was built without CUDA (`make cuda` builds one)");
}

}  // namespace

std::string Built() { return ""; }
Result<std::vector<DeviceInfo>> ListDevices() { return None(); }
Status UseDevice(uint32_t) { return None(); }
Result<uint64_t> FreeBytes() { return None(); }
Result<void*> AllocateDevice(uint64_t) { return None(); }
void FreeDevice(void*) {}
Result<void*> AllocatePinned(uint64_t) { return None(); }
void FreePinned(void*) {}
Result<Stream> CreateStream() { return None(); }
void DestroyStream(Stream) {}
Status Synchronize(Stream) { return None(); }
Status Copy(void*, const void*, uint64_t, Stream) { return None(); }
Status Fill(void*, uint8_t, uint64_t, Stream) { return None(); }
Result<EventHandle> CreateEvent() { return None(); }
void DestroyEvent(EventHandle) {}
Status Record(EventHandle, Stream) { return None(); }
Status Await(EventHandle) { return None(); }
Status WaitFor(EventHandle, Stream) { return None(); }
Result<float> Milliseconds(EventHandle, EventHandle) { return None(); }
Status BeginCapture(Stream) { return None(); }
Result<GraphHandle> EndCapture(Stream) { return None(); }
Status LaunchGraph(GraphHandle, Stream) { return None(); }
void DestroyGraph(GraphHandle) {}
Result<LibraryHandle> LoadLibrary(const void*) { return None(); }
void UnloadLibrary(LibraryHandle) {}
Result<KernelHandle> FindKernel(LibraryHandle, const char*, uint32_t) { return None(); }
Status LaunchLoaded(const LaunchConfig&, KernelHandle, const void*, uint64_t) { return None(); }

Status AfterLaunch(const char* kernel, int, Stream) {
  last_kernel.store(kernel, std::memory_order_relaxed);
  return None();
}

#endif

}  // namespace tinyserve::cuda::runtime
