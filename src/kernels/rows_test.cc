// Row operations and machine peaks of every target that this machine has, against arithmetic in
// double.
#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/targets.h"
#include "kernels/testing.h"

namespace tinyserve {
namespace {

using testing::Buffer;
using testing::Mismatch;
using testing::Random;
using testing::SameBits;

constexpr uint32_t kCols[] = {1, 7, 8, 31, 64, 576, 577, 2048};

std::vector<float> RandomValues(size_t count, uint64_t seed, float scale = 1.0f) {
  Random random(seed);
  std::vector<float> values(count);
  for (float& value : values) value = scale * random.Signed();
  return values;
}

class Rows : public ::testing::TestWithParam<const Kernels*> {};

TEST_P(Rows, RmsNorm) {
  for (const uint32_t cols : kCols) {
    const uint32_t rows = 3, stride = cols + 5;
    const float eps = 1e-5f;
    const auto x = RandomValues(size_t{rows} * stride, cols);
    const auto weight = RandomValues(cols, cols + 1);
    std::vector<float> got(size_t{rows} * cols, 1e30f), want(got.size());
    std::vector<double> tolerance(got.size());
    GetParam()->rms_norm(x.data(), stride, rows, cols, weight.data(), eps, got.data(), cols);
    for (uint32_t r = 0; r < rows; ++r) {
      double squares = 0;
      for (uint32_t c = 0; c < cols; ++c) squares += double{x[r * stride + c]} * x[r * stride + c];
      const double scale = 1 / std::sqrt(squares / cols + eps);
      for (uint32_t c = 0; c < cols; ++c) {
        const double value = x[r * stride + c] * scale * weight[c];
        want[r * cols + c] = static_cast<float>(value);
        // Squares are positive: their sum is good to cols * 2^-24, its root to half that, plus four
        // roundings.
        tolerance[r * cols + c] = std::fabs(value) * (cols / 2.0 + 8) * 0x1p-24;
      }
    }
    EXPECT_EQ(Mismatch(got, want, tolerance), "") << cols;
    std::vector<float> alone(cols);
    GetParam()->rms_norm(x.data() + stride, stride, 1, cols, weight.data(), eps, alone.data(),
                         cols);
    EXPECT_TRUE(SameBits(alone, {got.begin() + cols, got.begin() + 2 * cols})) << cols;
  }
}

TEST_P(Rows, LayerNorm) {
  for (const uint32_t cols : kCols) {
    const uint32_t rows = 2;
    const float eps = 1e-5f;
    const auto x = RandomValues(size_t{rows} * cols, cols);
    const auto weight = RandomValues(cols, cols + 1), bias = RandomValues(cols, cols + 2);
    std::vector<float> got(x.size(), 1e30f), want(x.size());
    std::vector<double> tolerance(x.size());
    GetParam()->layer_norm(x.data(), cols, rows, cols, weight.data(), bias.data(), eps, got.data(),
                           cols);
    for (uint32_t r = 0; r < rows; ++r) {
      double mean = 0, squares = 0;
      for (uint32_t c = 0; c < cols; ++c) mean += x[r * cols + c] / double(cols);
      for (uint32_t c = 0; c < cols; ++c) squares += std::pow(x[r * cols + c] - mean, 2);
      const double scale = 1 / std::sqrt(squares / cols + eps);
      for (uint32_t c = 0; c < cols; ++c) {
        const size_t i = r * cols + c;
        want[i] = static_cast<float>((x[i] - mean) * scale * weight[c] + bias[c]);
        // |x| <= 1, so the mean is good to cols * 2^-24, which the scale magnifies.
        tolerance[i] = (cols + 8) * 0x1p-24 * (2 + scale) * std::fabs(weight[c]) + 0x1p-23;
      }
    }
    EXPECT_EQ(Mismatch(got, want, tolerance), "") << cols;
  }
}

TEST_P(Rows, Rope) {
  for (const uint32_t rotary : {2u, 6u, 16u, 32u, 64u, 80u, 128u}) {
    for (const bool interleaved : {false, true}) {
      const uint32_t heads = 3, head_dim = rotary + 4;
      const auto x = RandomValues(size_t{heads} * head_dim, rotary);
      std::vector<float> cos_sin(rotary);
      for (uint32_t i = 0; i < rotary / 2; ++i) {
        cos_sin[2 * i] = std::cos(0.7f * static_cast<float>(i) + 0.3f);
        cos_sin[2 * i + 1] = std::sin(0.7f * static_cast<float>(i) + 0.3f);
      }
      std::vector<float> got = x, want = x;
      GetParam()->rope(got.data(), heads, head_dim, rotary, interleaved, cos_sin.data());
      for (uint32_t h = 0; h < heads; ++h) {
        for (uint32_t i = 0; i < rotary / 2; ++i) {
          const size_t a = h * head_dim + (interleaved ? 2 * i : i);
          const size_t b = interleaved ? a + 1 : a + rotary / 2;
          const double cos = cos_sin[2 * i], sin = cos_sin[2 * i + 1];
          want[a] = static_cast<float>(x[a] * cos - x[b] * sin);
          want[b] = static_cast<float>(x[b] * cos + x[a] * sin);
        }
      }
      // Two products of at most 1 and a sum: three roundings at most.
      EXPECT_EQ(Mismatch(got, want, std::vector<double>(x.size(), 3 * 0x1p-24)), "")
          << rotary << (interleaved ? " interleaved" : " halves");
    }
  }
}

TEST_P(Rows, ReadBytesSumsEveryByte) {
  Buffer data(8192);
  uint64_t want = 0;
  for (uint32_t i = 0; i < 8192; ++i) {
    data.data()[i] = static_cast<uint8_t>(i * 37 + i / 251);
    want += data.data()[i];
  }
  EXPECT_EQ(GetParam()->read_bytes(data.data(), 8192), want);
  EXPECT_EQ(GetParam()->read_bytes(data.data(), 0), 0u);
}

TEST_P(Rows, RunDotsDoesAboutWhatIsAsked) {
  for (const DotKind kind : {DotKind::kF32, DotKind::kBF16, DotKind::kU8S8, DotKind::kU4S8}) {
    const uint64_t done = GetParam()->run_dots(kind, 100000);
    if (done == 0) continue;
    EXPECT_GE(done, 100000u);
    EXPECT_LE(done, 110000u);
  }
  EXPECT_GT(GetParam()->run_dots(DotKind::kF32, 1000), 0u);
}
INSTANTIATE_TEST_SUITE_P(EveryTarget, Rows, ::testing::ValuesIn(AvailableTargets()),
                         testing::TargetName());

}  // namespace
}  // namespace tinyserve
