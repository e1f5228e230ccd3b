// What a device does at best: kernels that do nothing but copy, or multiply and add, so that their
// time is that of the memory or of one kind of arithmetic. `bench` holds steps against them.
#ifndef TINYSERVE_KERNELS_CUDA_PEAKS_H_
#define TINYSERVE_KERNELS_CUDA_PEAKS_H_

#include <cstdint>

#include "kernels/cuda/launch.h"
#include "tinyserve/status.h"

namespace tinyserve::cuda {

// to = from, 16 bytes a thread at a time. REQUIRES: counts alike, multiples of 4.
Status CopyWords(const Array<const uint32_t>& from, const Array<uint32_t>& to, Stream stream);

// Kinds of multiply-add that the step's kernels have.
enum class PeakKind : uint8_t {
  kF32,      // fused multiply-adds of single threads: decode attention, weights in floats
  kDp4a,     // bytes, four at once: generated rows with coded weights
  kMmaF16,   // tensor cores, m16n8k16 into f32: prompt rows
  kMmaBF16,  // the same over bf16
};
static constexpr uint32_t kPeakKinds = 4;

// A launch of `blocks` blocks that goes `rounds` times through its chains of dependent
// multiply-adds; `out` gets what they come to, so that nothing can be left out.
struct PeakRun {
  PeakKind kind;
  uint32_t blocks, rounds;
  // Of both kMma: a [16][16] by rows, then b [8][16] by columns, pairs of halves. Of the others:
  // words [2], a factor and a term, f32 or four bytes and an int32.
  Array<const uint32_t> operands;
  // [blocks * PeakOutputs(kind)], the same of each block. Of both kMma by warps: [16][8] sums of
  // kPeakChains matrices, of which chain t begins at t. Of the others by threads: the sum (of the
  // bits, where they are ints) of kPeakChains chains x = x * factor + term that begin at thread + t
  // in f32, and at the word thread * 2654435761 + t in bytes.
  Array<float> out;
};
static constexpr uint32_t kPeakThreads = 256, kPeakChains = 8;

constexpr bool IsMma(PeakKind kind) {
  return kind == PeakKind::kMmaF16 || kind == PeakKind::kMmaBF16;
}
constexpr uint32_t PeakOperandWords(PeakKind kind) { return IsMma(kind) ? 128 + 64 : 2; }
constexpr uint32_t PeakOutputs(PeakKind kind) {
  return IsMma(kind) ? kPeakThreads / 32 * 128 : kPeakThreads;
}
// Multiply-adds of a block in one round.
constexpr uint64_t PeakMultiplyAdds(PeakKind kind) {
  if (IsMma(kind)) return uint64_t{kPeakThreads} / 32 * kPeakChains * 16 * 8 * 16;
  return uint64_t{kPeakThreads} * kPeakChains * (kind == PeakKind::kDp4a ? 4 : 1);
}

Status RunPeak(const PeakRun& run, Stream stream);

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_PEAKS_H_
