#include "tools/machine_peaks.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "base/buffer.h"
#include "base/machine.h"

namespace tinyserve {
namespace {

// Small enough that a thread that was held up costs little, large enough to stream.
constexpr uint64_t kReadChunkBytes = 4 << 20;
constexpr uint64_t kReadBytes = 1ull << 30;
constexpr uint32_t kRepeats = 5;
constexpr double kDotSeconds = 0.04;  // of one repeat

template <class Body>
double SecondsOf(const Body& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Multiply-adds of `kind` a second with every thread at work, best of kRepeats.
double MeasureDots(const Kernels& kernels, ThreadPool* threads, DotKind kind) {
  std::atomic<uint64_t> done{0};
  const auto run = [&](uint64_t multiply_adds) {
    done = 0;
    return SecondsOf([&] {
      threads->For(threads->threads(),
                   [&](uint32_t, uint32_t) { done += kernels.run_dots(kind, multiply_adds); });
    });
  };
  uint64_t work = 1 << 20;
  double seconds = run(work);
  if (done == 0) return 0;
  // Grows the work until one repeat takes long enough to time.
  while (seconds < kDotSeconds && work < (1ull << 40)) {
    const double grow = std::clamp(1.2 * kDotSeconds / std::max(seconds, 1e-9), 2.0, 64.0);
    work = static_cast<uint64_t>(static_cast<double>(work) * grow);
    seconds = run(work);
  }
  double best = static_cast<double>(done) / seconds;
  for (uint32_t i = 1; i < kRepeats; ++i) {
    seconds = run(work);
    best = std::max(best, static_cast<double>(done) / seconds);
  }
  return best;
}

}  // namespace

const char* DotKindName(DotKind kind) {
  switch (kind) {
    case DotKind::kF32:
      return "f32";
    case DotKind::kBF16:
      return "bf16";
    case DotKind::kU8S8:
      return "u8s8";
    case DotKind::kU4S8:
      return "u4s8";
  }
  return "?";
}

Result<double> MeasureReadBandwidth(const Kernels& kernels, ThreadPool* threads, uint64_t bytes,
                                    uint32_t repeats) {
  const auto chunks = static_cast<uint32_t>(std::max<uint64_t>(1, bytes / kReadChunkBytes));
  TS_ASSIGN_OR_RETURN(const Buffer memory, Buffer::Allocate(chunks * kReadChunkBytes, true));
  // Untouched memory is one shared page of zeros, which a cache holds.
  threads->For(chunks, [&](uint32_t chunk, uint32_t) {
    std::memset(memory.data() + chunk * kReadChunkBytes, 1, kReadChunkBytes);
  });
  double best = 0;
  std::atomic<uint64_t> sum{0};  // what was read is used, so that reading cannot be left out
  for (uint32_t i = 0; i < repeats; ++i) {
    const double seconds = SecondsOf([&] {
      threads->For(chunks, [&](uint32_t chunk, uint32_t) {
        sum += kernels.read_bytes(memory.data() + chunk * kReadChunkBytes, kReadChunkBytes);
      });
    });
    best = std::max(best, static_cast<double>(chunks * kReadChunkBytes) / seconds);
  }
  return best;
}

Result<MachinePeaks> MeasurePeaks(const Kernels& kernels, ThreadPool* threads,
                                  const std::function<void(double)>& progress) {
  MachinePeaks peaks;
  const uint64_t limit = MemoryLimitBytes(), used = ResidentBytes();
  const uint64_t bytes = std::min(kReadBytes, (limit > used ? limit - used : 0) / 2);
  TS_ASSIGN_OR_RETURN(peaks.read_bytes_per_s,
                      MeasureReadBandwidth(kernels, threads, bytes, kRepeats));
  for (uint32_t kind = 0; kind < kDotKinds; ++kind) {
    progress((1.0 + kind) / (1.0 + kDotKinds));
    peaks.multiply_adds_per_s[kind] = MeasureDots(kernels, threads, static_cast<DotKind>(kind));
  }
  return peaks;
}

MachinePeaks PeaksOf(const DevicePeaks& device) {
  MachinePeaks peaks{.read_bytes_per_s = device.copy_bytes_per_s, .multiply_adds_per_s = {}};
  const auto set = [&](DotKind kind, double peak) {
    peaks.multiply_adds_per_s[static_cast<size_t>(kind)] = peak;
  };
  set(DotKind::kF32, device.f32);
  set(DotKind::kU8S8, device.dp4a);
  set(DotKind::kBF16, device.tensor_f16);
  return peaks;
}

double RooflineSeconds(const StepCost& cost, const MachinePeaks& peaks) {
  const double bytes = static_cast<double>(cost.weight_bytes + cost.kv_bytes);
  const double fastest =
      *std::max_element(std::begin(peaks.multiply_adds_per_s), std::end(peaks.multiply_adds_per_s));
  double dots = 0;
  for (uint32_t kind = 0; kind < kDotKinds; ++kind) {
    const double peak =
        peaks.multiply_adds_per_s[kind] > 0 ? peaks.multiply_adds_per_s[kind] : fastest;
    if (peak > 0) dots += static_cast<double>(cost.multiply_adds[kind]) / peak;
  }
  return std::max(peaks.read_bytes_per_s > 0 ? bytes / peaks.read_bytes_per_s : 0, dots);
}

}  // namespace tinyserve
