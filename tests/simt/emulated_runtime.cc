#include "tests/simt/emulated_runtime.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "kernels/cuda/runtime.h"
#include "tests/simt/emulator.h"

namespace tinyserve::simt {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint8_t kPoison = 0xff;  // floats of it are no numbers

uint64_t Mapped(uint64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

// Allocations by their begin.
class Ranges {
 public:
  void Add(void* at, uint64_t bytes) { sizes_[reinterpret_cast<uintptr_t>(at)] = bytes; }
  uint64_t Remove(void* at) {
    const auto found = sizes_.find(reinterpret_cast<uintptr_t>(at));
    TS_CHECK(found != sizes_.end());
    const uint64_t bytes = found->second;
    sizes_.erase(found);
    return bytes;
  }
  // Whether an address is in one of them; then the bytes must be, all of them.
  bool Holds(const void* data, uint64_t bytes) const {
    const auto at = reinterpret_cast<uintptr_t>(data);
    auto found = sizes_.upper_bound(at);
    if (found == sizes_.begin()) return false;
    --found;
    if (at - found->first >= found->second) return false;
    TS_CHECK(bytes <= found->second - (at - found->first));
    return true;
  }
  const std::map<uintptr_t, uint64_t>& all() const { return sizes_; }

 private:
  std::map<uintptr_t, uint64_t> sizes_;
};

struct Work {
  const char* kernel;  // null: a copy, say
  std::function<Status()> run;
};

struct Graph {
  std::vector<Work> work;
};

struct Queue {
  std::deque<Work> work;
  uint64_t added = 0, done = 0;
  std::unique_ptr<Graph> recording;
};

struct Mark {
  Queue* queue = nullptr;
  uint64_t after = 0;  // of the queue's work
  uint64_t ns = 0;     // when it was passed
};

struct Device {
  Ranges memory, pinned;
  uint64_t limit = 0, lose_at = 0;
  uint32_t opened = 0;  // scopes in which memory may be touched
  Status lost;
  DeviceCounts counts;
  Queue* capturing = nullptr;
};
Device g_device;
std::atomic<const char*> g_last_kernel = "none";

// In its scope the host may touch memory of the device, as kernels and copies do.
class Opened {
 public:
  Opened() {
    if (g_device.opened++ == 0) Protect(PROT_READ | PROT_WRITE);
  }
  ~Opened() {
    if (--g_device.opened == 0) Protect(PROT_NONE);
  }

 private:
  static void Protect(int access) {
    for (const auto& [at, bytes] : g_device.memory.all())
      TS_CHECK(mprotect(reinterpret_cast<void*>(at), Mapped(bytes), access) == 0);
  }
};

Status Lost(const char* call) {
  return Status(Code::kInternal, fmt::format("{} failed: {}; the last kernel launched was {}", call,
                                             g_device.lost.message(), g_last_kernel.load()));
}

Status CheckAlive(const char* call) { return g_device.lost.ok() ? Status() : Lost(call); }

Status RunKernel(const cuda::LaunchConfig& config, const std::function<void()>& thread) {
  if (g_device.lose_at != 0 && --g_device.lose_at == 0)
    g_device.lost = Status(Code::kInternal, "the device is lost (planted)");
  if (!g_device.lost.ok()) return Lost(config.kernel);
  ++g_device.counts.launches;
  const Opened opened;
  return Run(config, thread);
}

// Runs the queue's work up to the `until`-th that it was given. What fails is the end of a device,
// as of a real one.
Status Drain(Queue* queue, uint64_t until) {
  const Opened opened;
  while (queue->done < until && !queue->work.empty()) {
    const Work work = std::move(queue->work.front());
    queue->work.pop_front();
    ++queue->done;
    if (!g_device.lost.ok()) continue;
    const Status status = work.run();
    if (!status.ok() && g_device.lost.ok()) g_device.lost = status;
  }
  return CheckAlive("waiting for the device");
}

// Puts work at the end of a stream, or into what it records.
Status Add(Queue* queue, Work work) {
  if (queue->recording != nullptr) {
    queue->recording->work.push_back(std::move(work));
    return Status();
  }
  queue->work.push_back(std::move(work));
  ++queue->added;
  return Status();
}

Queue* QueueOf(cuda::Stream stream) { return static_cast<Queue*>(stream); }

// CUDA refuses such calls of a thread that records.
Status CheckNotCapturing(const char* call) {
  if (g_device.capturing == nullptr) return Status();
  return Status(Code::kInternal, fmt::format("{} failed: a stream records", call));
}

Status CopyNow(void* to, const void* from, uint64_t bytes) {
  const Opened opened;
  std::memcpy(to, from, bytes);
  return Status();
}

}  // namespace

Status LaunchInStream(const cuda::LaunchConfig& config, std::function<void()> thread) {
  g_last_kernel = config.kernel;
  if (config.stream == nullptr) return RunKernel(config, thread);
  TS_RETURN_IF_ERROR(CheckAlive("the launch"));
  return Add(QueueOf(config.stream), {config.kernel, [config, thread = std::move(thread)] {
                                        return RunKernel(config, thread);
                                      }});
}

void SetDeviceMemory(uint64_t bytes) { g_device.limit = bytes; }
void LoseDeviceAt(uint64_t launch) { g_device.lose_at = launch; }
void ReplaceDevice() {
  g_device.lost = Status();
  g_device.lose_at = 0;
}
DeviceCounts Counts() { return g_device.counts; }

}  // namespace tinyserve::simt

namespace tinyserve::cuda::runtime {

using namespace simt;  // NOLINT: the device is there

const char* LastKernel() { return g_last_kernel.load(); }
std::string Built() { return "CUDA, emulated"; }

Result<std::vector<DeviceInfo>> ListDevices() {
  return std::vector<DeviceInfo>{{.index = 0,
                                  .name = "emulated",
                                  .capability = 90,
                                  .processors = 4,
                                  .memory_bytes = uint64_t{1} << 30,
                                  .l2_bytes = 64 << 10,
                                  .block_shared_bytes_max = 99 << 10}};
}
Status UseDevice(uint32_t) { return CheckAlive("UseDevice"); }
Result<uint64_t> FreeBytes() {
  TS_RETURN_IF_ERROR(CheckAlive("FreeBytes"));
  const uint64_t limit = g_device.limit != 0 ? g_device.limit : uint64_t{1} << 30;
  return limit - std::min(limit, g_device.counts.bytes_in_use);
}

Result<void*> AllocateDevice(uint64_t bytes) {
  TS_RETURN_IF_ERROR(CheckAlive("AllocateDevice"));
  TS_RETURN_IF_ERROR(CheckNotCapturing("AllocateDevice"));
  TS_ASSIGN_OR_RETURN(const uint64_t free, FreeBytes());
  if (bytes > free || bytes == 0)
    return Status(Code::kOutOfMemory, fmt::format("AllocateDevice of {} bytes failed", bytes));
  void* at = mmap(nullptr, Mapped(bytes), PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  TS_CHECK(at != MAP_FAILED);
  std::memset(at, kPoison, bytes);
  if (g_device.opened == 0) TS_CHECK(mprotect(at, Mapped(bytes), PROT_NONE) == 0);
  g_device.memory.Add(at, bytes);
  ++g_device.counts.allocations;
  g_device.counts.bytes_in_use += bytes;
  return at;
}
void FreeDevice(void* data) {
  const uint64_t bytes = g_device.memory.Remove(data);
  g_device.counts.bytes_in_use -= bytes;
  TS_CHECK(munmap(data, Mapped(bytes)) == 0);
}

Result<void*> AllocatePinned(uint64_t bytes) {
  TS_RETURN_IF_ERROR(CheckAlive("AllocatePinned"));
  TS_RETURN_IF_ERROR(CheckNotCapturing("AllocatePinned"));
  void* at = std::malloc(bytes);
  TS_CHECK(at != nullptr);
  std::memset(at, kPoison, bytes);
  g_device.pinned.Add(at, bytes);
  return at;
}
void FreePinned(void* data) {
  g_device.pinned.Remove(data);
  std::free(data);
}

Result<Stream> CreateStream() {
  TS_RETURN_IF_ERROR(CheckAlive("CreateStream"));
  return Stream{std::make_unique<Queue>().release()};
}
void DestroyStream(Stream stream) {
  const std::unique_ptr<Queue> queue(QueueOf(stream));
  (void)Drain(queue.get(), queue->added);
}
Status Synchronize(Stream stream) {
  TS_RETURN_IF_ERROR(CheckNotCapturing("Synchronize"));
  if (stream == nullptr) return CheckAlive("Synchronize");
  ++g_device.counts.waits;
  return Drain(QueueOf(stream), QueueOf(stream)->added);
}

Status Copy(void* to, const void* from, uint64_t bytes, Stream stream) {
  TS_RETURN_IF_ERROR(CheckAlive("Copy"));
  const auto known = [bytes](const void* data) {
    return g_device.memory.Holds(data, bytes) || g_device.pinned.Holds(data, bytes);
  };
  const bool device_to = g_device.memory.Holds(to, bytes);
  const bool device_from = g_device.memory.Holds(from, bytes);
  if (device_to && !device_from) ++g_device.counts.copies_in;
  if (device_from && !device_to) g_device.counts.bytes_out += bytes;
  if (stream == nullptr) return CopyNow(to, from, bytes);
  Queue* queue = QueueOf(stream);
  if (queue->recording != nullptr && !(known(to) && known(from)))
    return Status(Code::kInternal,
                  "Copy failed: memory that is not pinned, while a stream records");
  if (known(from) && known(to))
    return Add(queue, {nullptr, [=] { return CopyNow(to, from, bytes); }});
  if (known(to)) {  // from pageable memory: taken at once
    const auto* first = static_cast<const uint8_t*>(from);
    const auto taken = std::make_shared<std::vector<uint8_t>>(first, first + bytes);
    return Add(queue, {nullptr, [=] { return CopyNow(to, taken->data(), bytes); }});
  }
  TS_RETURN_IF_ERROR(Add(queue, {nullptr, [=] { return CopyNow(to, from, bytes); }}));
  return Drain(queue, queue->added);
}

Status Fill(void* data, uint8_t value, uint64_t bytes, Stream stream) {
  TS_RETURN_IF_ERROR(CheckAlive("Fill"));
  TS_CHECK(g_device.memory.Holds(data, bytes));
  const auto fill = [=] {
    const Opened opened;
    std::memset(data, value, bytes);
    return Status();
  };
  return stream == nullptr ? fill() : Add(QueueOf(stream), {nullptr, fill});
}

Result<EventHandle> CreateEvent() {
  TS_RETURN_IF_ERROR(CheckAlive("CreateEvent"));
  return EventHandle{std::make_unique<Mark>().release()};
}
void DestroyEvent(EventHandle event) {
  const std::unique_ptr<Mark> mark(static_cast<Mark*>(event));
}
Status Record(EventHandle event, Stream stream) {
  TS_RETURN_IF_ERROR(CheckAlive("Record"));
  auto* mark = static_cast<Mark*>(event);
  Queue* queue = QueueOf(stream);
  TS_RETURN_IF_ERROR(Add(queue, {nullptr, [mark] {
                                   mark->ns = NowNs();
                                   return Status();
                                 }}));
  *mark = {.queue = queue, .after = queue->added, .ns = 0};
  return Status();
}
Status Await(EventHandle event) {
  TS_RETURN_IF_ERROR(CheckNotCapturing("Await"));
  const auto* mark = static_cast<Mark*>(event);
  TS_CHECK(mark->queue != nullptr);
  ++g_device.counts.waits;
  const Status waited = Drain(mark->queue, mark->after);
  g_device.counts.waits_ahead += !mark->queue->work.empty();
  return waited;
}
Status WaitFor(EventHandle event, Stream stream) {
  TS_RETURN_IF_ERROR(CheckAlive("WaitFor"));
  const Mark mark = *static_cast<Mark*>(event);
  if (mark.queue == nullptr) return Status();
  return Add(QueueOf(stream), {nullptr, [mark] { return Drain(mark.queue, mark.after); }});
}
Result<float> Milliseconds(EventHandle from, EventHandle to) {
  TS_RETURN_IF_ERROR(CheckNotCapturing("Milliseconds"));
  const auto *first = static_cast<Mark*>(from), *last = static_cast<Mark*>(to);
  TS_CHECK(first->queue != nullptr && last->queue != nullptr);
  TS_RETURN_IF_ERROR(Drain(first->queue, first->after));
  TS_RETURN_IF_ERROR(Drain(last->queue, last->after));
  return static_cast<float>(last->ns - first->ns) / 1e6f;
}

Status BeginCapture(Stream stream) {
  TS_RETURN_IF_ERROR(CheckAlive("BeginCapture"));
  TS_RETURN_IF_ERROR(CheckNotCapturing("BeginCapture"));
  QueueOf(stream)->recording = std::make_unique<Graph>();
  g_device.capturing = QueueOf(stream);
  return Status();
}
Result<GraphHandle> EndCapture(Stream stream) {
  TS_CHECK(g_device.capturing == QueueOf(stream));
  g_device.capturing = nullptr;
  std::unique_ptr<Graph> graph = std::move(QueueOf(stream)->recording);
  TS_RETURN_IF_ERROR(CheckAlive("EndCapture"));
  return GraphHandle{graph.release()};
}
Status LaunchGraph(GraphHandle graph, Stream stream) {
  TS_RETURN_IF_ERROR(CheckAlive("LaunchGraph"));
  ++g_device.counts.graph_launches;
  for (const Work& work : static_cast<Graph*>(graph)->work)
    TS_RETURN_IF_ERROR(Add(QueueOf(stream), work));
  return Status();
}
void DestroyGraph(GraphHandle graph) {
  const std::unique_ptr<Graph> owned(static_cast<Graph*>(graph));
}

Status AfterLaunch(const char* kernel, int, Stream) {
  g_last_kernel = kernel;
  return CheckAlive(kernel);
}

}  // namespace tinyserve::cuda::runtime
