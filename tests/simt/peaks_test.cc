// The kernels whose time is a device's peak, emulated: that they do what is counted.
#include "kernels/cuda/peaks.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "tensor/convert.h"
#include "tests/simt/arrays.h"

namespace tinyserve::cuda {
namespace {

TEST(CopyPeak, CopiesEveryWordAndNoMore) {
  for (const uint64_t words : {uint64_t{4}, uint64_t{4096}, uint64_t{4096 * 3 + 20}}) {
    std::vector<uint32_t> from(words), to(words + 4, 7);
    for (uint64_t i = 0; i < words; ++i) from[i] = static_cast<uint32_t>(i * 2654435761u);
    const Status status = CopyWords(ConstArrayOf(from), {to.data(), words}, nullptr);
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_TRUE(std::equal(from.begin(), from.end(), to.begin()));
    EXPECT_EQ(to[words], 7u);
  }
}

std::vector<float> RunOf(PeakKind kind, uint32_t blocks, uint32_t rounds,
                         const std::vector<uint32_t>& operands) {
  std::vector<float> out(uint64_t{blocks} * PeakOutputs(kind), NAN);
  const Status status = RunPeak({.kind = kind,
                                 .blocks = blocks,
                                 .rounds = rounds,
                                 .operands = ConstArrayOf(operands),
                                 .out = ArrayOf(out)},
                                nullptr);
  EXPECT_TRUE(status.ok()) << status.message();
  return out;
}

TEST(MultiplyPeak, ThreadsMultiplyFloats) {
  const float factor = 0.75f, term = -1.25f;
  const auto out =
      RunOf(PeakKind::kF32, 2, 5, {std::bit_cast<uint32_t>(factor), std::bit_cast<uint32_t>(term)});
  for (uint32_t i = 0; i < out.size(); ++i) {
    float sum = 0;
    for (uint32_t t = 0; t < kPeakChains; ++t) {
      auto x = static_cast<float>(i % kPeakThreads + t);
      for (uint32_t round = 0; round < 5; ++round) x = std::fma(x, factor, term);
      sum += x;
    }
    ASSERT_EQ(out[i], sum) << i;
  }
}

TEST(MultiplyPeak, ThreadsMultiplyBytes) {
  const uint32_t factor = 0x03fe05f9;  // 3, -2, 5, -7
  const auto out = RunOf(PeakKind::kDp4a, 2, 3, {factor, 1000});
  for (uint32_t i = 0; i < out.size(); ++i) {
    uint32_t sum = 0;
    for (uint32_t t = 0; t < kPeakChains; ++t) {
      uint32_t x = i % kPeakThreads * 2654435761u + t;
      for (uint32_t round = 0; round < 3; ++round) {
        int next = 1000;
        for (uint32_t b = 0; b < 32; b += 8)
          next += static_cast<int8_t>(x >> b) * static_cast<int8_t>(factor >> b);
        x = static_cast<uint32_t>(next);
      }
      sum += x;
    }
    ASSERT_EQ(std::bit_cast<uint32_t>(out[i]), sum) << i;
  }
}

TEST(MultiplyPeak, WarpsMultiplyMatrices) {
  constexpr uint32_t kRounds = 3, kFirst = kPeakChains * (kPeakChains - 1) / 2;
  for (const PeakKind kind : {PeakKind::kMmaF16, PeakKind::kMmaBF16}) {
    // Whole numbers that both types hold, so that sums are exact.
    std::vector<float> numbers(16 * 16 + 8 * 16);
    for (uint32_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<float>(i * 7 % 15) - 7;
    std::vector<uint32_t> operands(PeakOperandWords(kind));
    std::vector<uint16_t> halves;
    for (const float x : numbers)
      halves.push_back(kind == PeakKind::kMmaF16 ? F32ToF16(x) : F32ToBF16(x));
    std::memcpy(operands.data(), halves.data(), halves.size() * sizeof(uint16_t));
    const auto out = RunOf(kind, 2, kRounds, operands);
    for (uint32_t i = 0; i < out.size(); ++i) {
      const float* row = numbers.data() + i % 128 / 8 * 16;
      const float* column = numbers.data() + 256 + i % 8 * 16;
      float product = 0;
      for (uint32_t k = 0; k < 16; ++k) product += row[k] * column[k];
      ASSERT_EQ(out[i], kFirst + kPeakChains * kRounds * product) << i;
    }
  }
}

}  // namespace
}  // namespace tinyserve::cuda
