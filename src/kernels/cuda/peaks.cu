#include "kernels/cuda/peaks.h"
#include "kernels/cuda/simt.h"

namespace tinyserve::cuda {
namespace {

constexpr uint32_t kCopyLines = 4;  // of a thread, on their way at once

TS_BOUNDED_KERNEL(kPeakThreads)
CopyKernel(Array<const uint32_t> from_words, Array<uint32_t> to_words) {
  const Global<const uint32_t> from(from_words, "from");
  const Global<uint32_t> to(to_words, "to");
  const uint64_t lines = from_words.count / 4;
  const uint64_t first = uint64_t{BlockX()} * kPeakThreads * kCopyLines + ThreadIndex();
  Line<uint32_t> held[kCopyLines] = {};
  TS_UNROLL
  for (uint32_t i = 0; i < kCopyLines; ++i) {
    const uint64_t line = first + i * kPeakThreads;
    if (line < lines) held[i] = from.Get<Line<uint32_t>>(line * 4);
  }
  TS_UNROLL
  for (uint32_t i = 0; i < kCopyLines; ++i) {
    const uint64_t line = first + i * kPeakThreads;
    if (line < lines) to.Set<Line<uint32_t>>(line * 4, held[i]);
  }
}

// Chains of a thread: enough of them that none waits for its own last result.
TS_BOUNDED_KERNEL(kPeakThreads)
F32Kernel(PeakRun run) {
  const Global<const uint32_t> operands(run.operands, "operands");
  const float factor = FromBits(operands.Get(0)), term = FromBits(operands.Get(1));
  float x[kPeakChains], sum = 0;
  TS_UNROLL
  for (uint32_t t = 0; t < kPeakChains; ++t) x[t] = static_cast<float>(ThreadIndex() + t);
  for (uint32_t round = 0; round < run.rounds; ++round) {
    TS_UNROLL
    for (uint32_t t = 0; t < kPeakChains; ++t) x[t] = Fma(x[t], factor, term);
  }
  TS_UNROLL
  for (uint32_t t = 0; t < kPeakChains; ++t) sum += x[t];
  Global<float>(run.out, "out").Set(uint64_t{BlockX()} * kPeakThreads + ThreadIndex(), sum);
}

TS_BOUNDED_KERNEL(kPeakThreads)
Dp4aKernel(PeakRun run) {
  const Global<const uint32_t> operands(run.operands, "operands");
  const auto factor = static_cast<int>(operands.Get(0)), term = static_cast<int>(operands.Get(1));
  int x[kPeakChains];
  uint32_t sum = 0;
  TS_UNROLL
  for (uint32_t t = 0; t < kPeakChains; ++t) {
    x[t] = static_cast<int>(ThreadIndex() * 2654435761u + t);
  }
  for (uint32_t round = 0; round < run.rounds; ++round) {
    TS_UNROLL
    for (uint32_t t = 0; t < kPeakChains; ++t) x[t] = Dp4a(x[t], factor, term);
  }
  TS_UNROLL
  for (uint32_t t = 0; t < kPeakChains; ++t) sum += static_cast<uint32_t>(x[t]);
  Global<float>(run.out, "out")
      .Set(uint64_t{BlockX()} * kPeakThreads + ThreadIndex(), FromBits(sum));
}

// Fragments as in attention_prompt.cu: lane l has rows l / 4 and l / 4 + 8 of a and d.
template <class Half>
TS_BOUNDED_KERNEL(kPeakThreads)
MmaKernel(PeakRun run) {
  const Global<const uint32_t> operands(run.operands, "operands");
  const uint32_t g = LaneIndex() / 4, t = LaneIndex() % 4;
  uint32_t a[4], b[2];
  TS_UNROLL
  for (uint32_t i = 0; i < 4; ++i) a[i] = operands.Get((g + i % 2 * 8) * 8 + t + i / 2 * 4);
  TS_UNROLL
  for (uint32_t i = 0; i < 2; ++i) b[i] = operands.Get(128 + g * 8 + t + i * 4);
  float d[kPeakChains][4];
  TS_UNROLL
  for (uint32_t chain = 0; chain < kPeakChains; ++chain) {
    TS_UNROLL
    for (uint32_t i = 0; i < 4; ++i) d[chain][i] = static_cast<float>(chain);
  }
  for (uint32_t round = 0; round < run.rounds; ++round) {
    TS_UNROLL
    for (uint32_t chain = 0; chain < kPeakChains; ++chain) {
      if constexpr (std::is_same_v<Half, F16>) {
        MmaF16(d[chain], a, b);
      } else {
        MmaBF16(d[chain], a, b);
      }
    }
  }
  const uint64_t warp = uint64_t{BlockX()} * (kPeakThreads / kWarpLanes) + WarpIndex();
  const Global<float> out(run.out, "out");
  TS_UNROLL
  for (uint32_t i = 0; i < 4; ++i) {
    float sum = 0;
    TS_UNROLL
    for (uint32_t chain = 0; chain < kPeakChains; ++chain) sum += d[chain][i];
    out.Set(warp * 128 + (g + i / 2 * 8) * 8 + 2 * t + i % 2, sum);
  }
}

}  // namespace

Status CopyWords(const Array<const uint32_t>& from, const Array<uint32_t>& to, Stream stream) {
  constexpr uint64_t kBlockWords = uint64_t{kPeakThreads} * kCopyLines * 4;
  const auto blocks = static_cast<uint32_t>((from.count + kBlockWords - 1) / kBlockWords);
  const LaunchConfig config{
      .kernel = "copy_peak", .grid = {blocks}, .threads = kPeakThreads, .stream = stream};
  return Launch(config, CopyKernel, from, to);
}

Status RunPeak(const PeakRun& run, Stream stream) {
  const LaunchConfig config{
      .kernel = "multiply_peak", .grid = {run.blocks}, .threads = kPeakThreads, .stream = stream};
  switch (run.kind) {
    case PeakKind::kF32:
      return Launch(config, F32Kernel, run);
    case PeakKind::kDp4a:
      return Launch(config, Dp4aKernel, run);
    case PeakKind::kMmaF16:
      return Launch(config, MmaKernel<F16>, run);
    case PeakKind::kMmaBF16:
      return Launch(config, MmaKernel<BF16>, run);
  }
  return Status();
}

}  // namespace tinyserve::cuda
