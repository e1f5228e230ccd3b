#include "engine/device_peaks.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "device/device_arena.h"
#include "kernels/cuda/peaks.h"

namespace tinyserve {
namespace {

using cuda::Array;
using cuda::DeviceInfo;
using cuda::DeviceMemory;
using cuda::DeviceStream;
using cuda::PeakKind;

constexpr uint32_t kRepeats = 7;
constexpr uint64_t kCacheTimes = 16;       // a buffer is so many times the second-level cache
constexpr uint32_t kBlocksAProcessor = 4;  // 1024 threads: half of what a multiprocessor holds
constexpr float kMilliseconds = 10;        // of one repeat of multiply-adds
constexpr uint32_t kRoundsMax = 1u << 28;

// The median time of launches of `body`, after one that is not counted; the last one has ended.
template <class Body>
Result<double> MedianSeconds(const DeviceStream& stream, uint32_t repeats, const Body& body) {
  TS_ASSIGN_OR_RETURN(const cuda::Event begin, cuda::Event::Create());
  TS_ASSIGN_OR_RETURN(const cuda::Event end, cuda::Event::Create());
  TS_RETURN_IF_ERROR(body());
  std::vector<float> milliseconds(repeats);
  for (float& one : milliseconds) {
    TS_RETURN_IF_ERROR(stream.Record(begin));
    TS_RETURN_IF_ERROR(body());
    TS_RETURN_IF_ERROR(stream.Record(end));
    TS_ASSIGN_OR_RETURN(one, cuda::runtime::Milliseconds(begin.handle(), end.handle()));
  }
  const auto middle = milliseconds.begin() + repeats / 2;
  std::nth_element(milliseconds.begin(), middle, milliseconds.end());
  // A launch too short for the events' clock counts as its least step.
  return std::max(*middle, 1e-3f) * 1e-3;
}

Result<double> MeasureCopies(const DeviceStream& stream, const DeviceInfo& device) {
  TS_ASSIGN_OR_RETURN(const uint64_t free, cuda::runtime::FreeBytes());
  const uint64_t bytes = std::min(device.l2_bytes * kCacheTimes, free / 4) / 16 * 16;
  if (bytes < device.l2_bytes * 2) {
    return Status(
        Code::kOutOfMemory,
        fmt::format("{} bytes of the device's memory are free: copies of buffers that its "
                    "cache does not hold need {}",
                    free, device.l2_bytes * 8));
  }
  TS_ASSIGN_OR_RETURN(const DeviceMemory from, DeviceMemory::Allocate(bytes));
  TS_ASSIGN_OR_RETURN(const DeviceMemory to, DeviceMemory::Allocate(bytes));
  TS_RETURN_IF_ERROR(stream.Fill(from, 1));
  TS_ASSIGN_OR_RETURN(const double seconds, MedianSeconds(stream, kRepeats, [&] {
                        return cuda::CopyWords({from.as<const uint32_t>(), bytes / 4},
                                               {to.as<uint32_t>(), bytes / 4}, stream.handle());
                      }));
  return 2.0 * static_cast<double>(bytes) / seconds;
}

// Multiply-adds a second of a kind.
Result<double> MeasureMultiplyAdds(const DeviceStream& stream, const DeviceInfo& device,
                                   PeakKind kind) {
  const uint32_t blocks = device.processors * kBlocksAProcessor;
  const uint64_t outputs = uint64_t{blocks} * cuda::PeakOutputs(kind);
  TS_ASSIGN_OR_RETURN(const DeviceMemory operands,
                      DeviceMemory::Allocate(cuda::PeakOperandWords(kind) * sizeof(uint32_t)));
  TS_ASSIGN_OR_RETURN(const DeviceMemory out, DeviceMemory::Allocate(outputs * sizeof(float)));
  TS_RETURN_IF_ERROR(stream.Fill(operands, 1));  // small numbers of every kind
  cuda::PeakRun run{.kind = kind,
                    .blocks = blocks,
                    .rounds = 1,
                    .operands = {operands.as<const uint32_t>(), cuda::PeakOperandWords(kind)},
                    .out = {out.as<float>(), outputs}};
  const auto launch = [&] { return cuda::RunPeak(run, stream.handle()); };
  TS_ASSIGN_OR_RETURN(double seconds, MedianSeconds(stream, 1, launch));
  while (seconds < kMilliseconds * 1e-3 && run.rounds < kRoundsMax) {
    const double grow = std::clamp(1.2 * kMilliseconds * 1e-3 / seconds, 2.0, 64.0);
    run.rounds = static_cast<uint32_t>(std::min<double>(run.rounds * grow, kRoundsMax));
    TS_ASSIGN_OR_RETURN(seconds, MedianSeconds(stream, 1, launch));
  }
  TS_ASSIGN_OR_RETURN(seconds, MedianSeconds(stream, kRepeats, launch));
  return static_cast<double>(cuda::PeakMultiplyAdds(kind)) * blocks * run.rounds / seconds;
}

}  // namespace

Result<DevicePeaks> MeasureDevicePeaks(uint32_t index,
                                       const std::function<void(double)>& progress) {
  TS_ASSIGN_OR_RETURN(const DeviceInfo device, cuda::FindDevice(index));
  TS_RETURN_IF_ERROR(cuda::runtime::UseDevice(index));
  TS_ASSIGN_OR_RETURN(const DeviceStream stream, DeviceStream::Create());
  DevicePeaks peaks{.device = fmt::format("cuda:{} {}", index, device.name)};
  TS_ASSIGN_OR_RETURN(peaks.copy_bytes_per_s, MeasureCopies(stream, device));
  double* const kinds[] = {&peaks.f32, &peaks.dp4a, &peaks.tensor_f16, &peaks.tensor_bf16};
  static_assert(std::size(kinds) == cuda::kPeakKinds);
  for (uint32_t kind = 0; kind < cuda::kPeakKinds; ++kind) {
    progress((1.0 + kind) / (1.0 + cuda::kPeakKinds));
    TS_ASSIGN_OR_RETURN(*kinds[kind],
                        MeasureMultiplyAdds(stream, device, static_cast<PeakKind>(kind)));
  }
  return peaks;
}

}  // namespace tinyserve
