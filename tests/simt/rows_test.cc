// Embedding, norms and the forms of activations on the emulated device against `ref`.
#include "kernels/cuda/rows.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "kernels/tables.h"
#include "kernels/testing.h"
#include "tests/simt/device_testing.h"
#include "tests/simt/emulator.h"

namespace tinyserve::cuda {
namespace {

using testing::kAllTypes;
using testing::MakeSource;
using testing::Mismatch;
using testing::SameBits;

constexpr float kUnset = 1e30f;

uint32_t PaddedCols(uint32_t cols) { return (cols + 31) / 32 * 32; }

// What Make writes for n rows.
struct Forms {
  std::vector<float> floats, code_scales, half_scales;
  std::vector<uint32_t> codes, code_sums;
  std::vector<F16> halves;

  Forms(uint32_t n, uint32_t padded)
      : floats(uint64_t{n} * padded, kUnset),
        code_scales(uint64_t{n} * padded / 32, kUnset),
        half_scales(n, kUnset),
        codes(uint64_t{n} * padded / 4, 0xdeadbeef),
        code_sums(uint64_t{n} * padded / 32, 0xdeadbeef),
        halves(uint64_t{n} * padded, F16{0x7e00}) {}
  RowForms to() {
    return {ArrayOf(floats),    ArrayOf(codes),  ArrayOf(code_scales),
            ArrayOf(code_sums), ArrayOf(halves), ArrayOf(half_scales)};
  }
};

struct Rows {
  RowSource source;
  uint32_t count, cols;
  std::vector<float> x, weight, bias;
  std::vector<uint32_t> from;
  float eps = 1e-5f;

  Rows(RowSource s, uint32_t n, uint32_t c, float size)
      : source(s), count(n), cols(c), weight(RandomRows(c, 5)), bias(RandomRows(c, 6)) {
    x = RandomRows(uint64_t{n} * Stride(), n + c);
    for (float& value : x) value = value * size + 0.25f;
  }
  uint32_t Stride() const { return source == RowSource::kGated ? 2 * cols : cols; }
  Forms Go() const {
    const auto n = static_cast<uint32_t>(from.empty() ? count : from.size());
    Forms forms(n, PaddedCols(cols));
    const Status status = Make({.source = source,
                                .x = ArrayOf(x),
                                .x_stride = Stride(),
                                .from = ArrayOf(from),
                                .rows = n,
                                .cols = cols,
                                .weight = ArrayOf(weight),
                                .bias = ArrayOf(bias),
                                .eps = eps,
                                .to = forms.to()},
                               nullptr);
    EXPECT_TRUE(status.ok()) << status.message();
    return forms;
  }
  // By `ref`, rows padded with zeros.
  std::vector<float> Want() const {
    std::vector<float> want(uint64_t{count} * cols);
    for (uint32_t r = 0; r < count; ++r) {
      const float* in = x.data() + uint64_t{r} * Stride();
      float* out = want.data() + uint64_t{r} * cols;
      switch (source) {
        case RowSource::kPlain:
          std::copy_n(in, cols, out);
          break;
        case RowSource::kRmsNorm:
          RefKernels()->rms_norm(in, cols, 1, cols, weight.data(), eps, out, cols);
          break;
        case RowSource::kLayerNorm:
          RefKernels()->layer_norm(in, cols, 1, cols, weight.data(), bias.data(), eps, out, cols);
          break;
        case RowSource::kGated:
          for (uint32_t c = 0; c < cols; ++c) {
            out[c] = in[c] / (1.0f + std::exp(-in[c])) * in[cols + c];
          }
      }
    }
    return Padded(want, cols, PaddedCols(cols));
  }
};

constexpr RowSource kSources[] = {RowSource::kPlain, RowSource::kRmsNorm, RowSource::kLayerNorm,
                                  RowSource::kGated};
constexpr uint32_t kCols[] = {32, 30, 576, 577, 1536};

TEST(DeviceRows, AgreeWithRef) {
  uint64_t seed = 1;
  for (const RowSource source : kSources) {
    for (const uint32_t cols : kCols) {
      simt::SetSeed(seed++);
      const Rows rows(source, 3, cols, 2.0f);
      SCOPED_TRACE(std::to_string(static_cast<int>(source)) + ", " + std::to_string(cols));
      const std::vector<float> want = rows.Want();
      std::vector<double> tolerance(want.size());
      // Sums of f32 in another order, and of numbers as large as the mean of the row.
      for (size_t i = 0; i < want.size(); ++i) tolerance[i] = 4e-6 * (1 + std::fabs(want[i]));
      ASSERT_EQ(Mismatch(rows.Go().floats, want, tolerance), "");
    }
  }
}

// The coded forms are functions of the floats that stand beside them, exactly.
TEST(DeviceRows, CodesAreThoseOfRef) {
  for (const RowSource source : kSources) {
    for (const float size : {1.0f, 1e-20f, 1e30f}) {
      const Rows rows(source, 2, 577, size);
      const Forms forms = rows.Go();
      const uint32_t padded = PaddedCols(577), blocks = padded / 32;
      std::vector<ActBlock> row(blocks + 2);
      for (uint32_t r = 0; r < 2; ++r) {
        RefKernels()->make_acts(ActKind::kQ8, forms.floats.data() + r * padded, padded, 1, padded,
                                reinterpret_cast<uint8_t*>(row.data()));
        const CodedRows want({row.begin(), row.begin() + blocks});
        for (uint32_t i = 0; i < blocks * 8; ++i) {
          ASSERT_EQ(forms.codes[r * blocks * 8 + i], want.codes[i]) << i;
        }
        for (uint32_t b = 0; b < blocks; ++b) {
          ASSERT_EQ(forms.code_scales[r * blocks + b], want.scales[b]) << b;
          ASSERT_EQ(forms.code_sums[r * blocks + b], want.sums[b]) << b;
        }
      }
    }
  }
}

TEST(DeviceRows, HalvesAreScaledByPowersOfTwo) {
  for (const float size : {1.0f, 1e-30f, 3e37f}) {
    Rows rows(RowSource::kPlain, 3, 64, size);
    for (uint32_t c = 0; c < 64; ++c) rows.x[64 + c] = 0;  // a row of zeros
    const Forms forms = rows.Go();
    for (uint32_t r = 0; r < 3; ++r) {
      const float scale = forms.half_scales[r];
      int exponent;
      EXPECT_EQ(std::frexp(scale, &exponent), 0.5f);
      float most = 0;
      for (uint32_t c = 0; c < 64; ++c) {
        const float half = F16ToF32(forms.halves[r * 64 + c].bits), x = rows.x[r * 64 + c];
        most = std::max(most, std::fabs(half));
        ASSERT_LE(std::fabs(double{half} * scale - x),
                  std::ldexp(std::fabs(x), -11) + 0x1p-25 * scale);
      }
      if (r == 1) {
        EXPECT_EQ(most, 0.0f);
      } else {
        EXPECT_GE(most, 0.5f - 0x1p-12f);
        EXPECT_LE(most, 1.0f);
      }
    }
  }
}

TEST(DeviceRows, WantedRowsAreFoundWhereTheyLie) {
  Rows rows(RowSource::kRmsNorm, 5, 96, 1.0f);
  const std::vector<float> all = rows.Go().floats;
  rows.from = {4, 0, 4};
  const std::vector<float> some = rows.Go().floats;
  for (size_t i = 0; i < rows.from.size(); ++i) {
    const auto row = [](const std::vector<float>& all_rows, size_t r) {
      const auto at = all_rows.begin() + static_cast<ptrdiff_t>(r * 96);
      return std::vector<float>(at, at + 96);
    };
    EXPECT_TRUE(SameBits(row(some, i), row(all, rows.from[i])));
  }
}

// What is no number codes to zero, as it does in ref, and stays none in halves.
TEST(DeviceRows, WhatIsNoNumberDoesNotSpread) {
  Rows rows(RowSource::kPlain, 1, 64, 1.0f);
  rows.x[3] = NAN;
  rows.x[40] = INFINITY;
  const Forms forms = rows.Go();
  EXPECT_EQ(forms.codes[0] >> 24, 0u);
  EXPECT_NE(forms.codes[0] & 0xffffff, 0u);
  EXPECT_TRUE(std::isnan(F16ToF32(forms.halves[3].bits)));
}

TEST(DeviceRows, RowsThatHoldNoNumbersAreFound) {
  constexpr uint32_t kRows = 5, kWidth = 300;
  std::vector<float> x = RandomRows(kRows * kWidth, 4);
  x[1 * kWidth + 299] = NAN;
  x[2 * kWidth] = -INFINITY;
  x[4 * kWidth + 130] = INFINITY;
  std::vector<uint32_t> finite(kRows, 7);
  const Status status = CheckFinite(
      {.x = ConstArrayOf(x), .rows = kRows, .cols = kWidth, .finite = ArrayOf(finite)}, nullptr);
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(finite, (std::vector<uint32_t>{1, 0, 0, 1, 0}));
}

TEST(DeviceRows, EmbeddingsAreTheirWeights) {
  for (const DType type : kAllTypes) {
    const uint32_t cols = testing::IsQuantised(type) ? 256 : 100;
    const testing::Source source = MakeSource(type, 7, cols, 3);
    const PackedWeights packed(source);
    const std::vector<int32_t> drawn = {4, 2}, ids = {6, 0, 3, 7, -1, DrawnId(1)};
    std::vector<int32_t> tokens(ids.size(), -7);
    std::vector<float> x = RandomRows(ids.size() * cols, 8), want = x;
    for (const bool add : {true, false}) {
      for (size_t r = 0; r < ids.size(); ++r) {
        const int32_t id = ids[r] == DrawnId(1) ? drawn[1] : ids[r];
        const std::vector<float> row =
            id >= 0 && id < 7 ? source.Values(static_cast<uint32_t>(id)) : std::vector<float>(cols);
        for (uint32_t c = 0; c < cols; ++c) {
          float& w = want[r * cols + c];
          w = add ? w + row[c] : row[c];
        }
      }
      const Status status = Embed({.embedding = packed.weights(),
                                   .ids = ArrayOf(ids),
                                   .rows = static_cast<uint32_t>(ids.size()),
                                   .cols = cols,
                                   .x = ArrayOf(x),
                                   .add = add,
                                   .drawn = ConstArrayOf(drawn),
                                   .tokens = ArrayOf(tokens)},
                                  nullptr);
      ASSERT_TRUE(status.ok()) << status.message();
      EXPECT_EQ(tokens, (std::vector<int32_t>{6, 0, 3, 7, -1, 2}));
      // A minimum is added in one operation with the scale's product.
      EXPECT_EQ(Mismatch(x, want, std::vector<double>(x.size(), 1e-6)), "") << InfoOf(type).name;
    }
  }
}

}  // namespace
}  // namespace tinyserve::cuda
