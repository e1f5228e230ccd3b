// Products on the emulated device against `ref`: every type, shapes with and without remainders,
// every epilogue; and that a row's result does not depend on the rows beside it.
#include "kernels/cuda/products.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/ref/codes.h"
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
using testing::Source;

std::string Describe(const Source& source, uint32_t rows) {
  return std::string(InfoOf(source.type).name) + " " + std::to_string(source.rows) + "x" +
         std::to_string(source.cols) + ", " + std::to_string(rows) + " rows";
}

uint32_t OutCols(const Source& source, Epilogue epilogue) {
  return epilogue == Epilogue::kSwiGlu ? source.rows / 2 : source.rows;
}

// One product by both sides: `ref` (codes against int8 activations where there are codes) and the
// kernel of one class of rows.
struct Case {
  Source source;
  PackedWeights packed;
  std::vector<float> x, bias;
  uint32_t rows;
  Epilogue epilogue;
  std::vector<ActBlock> blocks;

  Case(DType type, uint32_t weight_rows, uint32_t cols, uint32_t n, Epilogue e, bool biased)
      : source(MakeSource(type, weight_rows, cols, cols + weight_rows)),
        packed(source),
        x(RandomRows(uint64_t{n} * cols, n + cols)),
        bias(biased ? RandomRows(weight_rows, 3) : std::vector<float>()),
        rows(n),
        epilogue(e) {
    if (!Coded()) return;
    blocks.resize(x.size() / kActBlockCols);
    const uint64_t row_bytes = RefKernels()->act_row_bytes(ActKind::kQ8, cols);
    std::vector<uint8_t> row(row_bytes);
    for (uint32_t r = 0; r < n; ++r) {
      RefKernels()->make_acts(ActKind::kQ8, x.data() + uint64_t{r} * cols, cols, 1, cols,
                              row.data());
      std::memcpy(&blocks[uint64_t{r} * cols / kActBlockCols], row.data(),
                  cols / kActBlockCols * sizeof(ActBlock));
    }
  }

  bool Coded() const { return TakesCodedActs(packed.plan.form); }
  std::vector<float> Before() const {
    return RandomRows(uint64_t{rows} * OutCols(source, epilogue), 17);
  }

  std::vector<float> Ref(Compute compute) const {
    const testing::Packed weights = testing::Pack(*RefKernels(), compute, source);
    const ActKind kind = weights.matrix.acts;
    const uint64_t row_bytes = RefKernels()->act_row_bytes(kind, source.cols);
    testing::Buffer acts(row_bytes * rows);
    RefKernels()->make_acts(kind, x.data(), source.cols, rows, source.cols, acts.data());
    std::vector<float> out = Before();
    const MatMulArgs args{.w = &weights.matrix,
                          .acts = acts.data(),
                          .act_row_bytes = row_bytes,
                          .row_end = rows,
                          .panel_end = weights.matrix.panels,
                          .bias = bias.empty() ? nullptr : bias.data(),
                          .out = out.data(),
                          .out_stride = OutCols(source, epilogue),
                          .epilogue = epilogue};
    RefKernels()->matmul(&args);
    return out;
  }

  ProductOut To(std::vector<float>& out) const {
    return {ArrayOf(bias), ArrayOf(out), OutCols(source, epilogue), epilogue};
  }
  // Rows [first, first + count) of the activations.
  std::vector<float> Generated(uint32_t first, uint32_t count) const {
    std::vector<float> out = Before();
    out.resize(uint64_t{count} * OutCols(source, epilogue));
    GeneratedProduct p{.weights = packed.weights(), .rows = count, .to = To(out)};
    const uint32_t cols = source.cols, row_blocks = cols / kActBlockCols;
    const auto from = x.begin() + static_cast<ptrdiff_t>(uint64_t{first} * cols);
    const std::vector<float> floats = Padded(
        {from, from + static_cast<ptrdiff_t>(uint64_t{count} * cols)}, cols, packed.plan.cols);
    const CodedRows coded(Coded()
                              ? std::vector<ActBlock>(blocks.begin() + first * row_blocks,
                                                      blocks.begin() + (first + count) * row_blocks)
                              : std::vector<ActBlock>());
    p.floats = ArrayOf(floats);
    p.coded = coded.acts();
    const Status status = MultiplyGenerated(p, nullptr);
    EXPECT_TRUE(status.ok()) << status.message();
    return out;
  }
  std::vector<float> Prompt(uint32_t first, uint32_t count) const {
    std::vector<float> out = Before();
    out.resize(uint64_t{count} * OutCols(source, epilogue));
    const auto from = x.begin() + static_cast<ptrdiff_t>(uint64_t{first} * source.cols);
    const HalfRows halves(
        Padded({from, from + static_cast<ptrdiff_t>(uint64_t{count} * source.cols)}, source.cols,
               packed.plan.cols),
        packed.plan.cols);
    const Status status = MultiplyPrompt(
        {.weights = packed.weights(), .acts = halves.acts(), .rows = count, .to = To(out)},
        nullptr);
    EXPECT_TRUE(status.ok()) << status.message();
    return out;
  }

  // Of sums of products of weights and activations as they are.
  std::vector<double> PlainTolerance(double share) const {
    std::vector<double> tolerance;
    for (uint32_t r = 0; r < rows; ++r) {
      for (uint32_t n = 0; n < source.rows; ++n) {
        const std::vector<float> w = source.Values(n);
        double sum = 0;
        for (uint32_t k = 0; k < source.cols; ++k) {
          sum += std::fabs(double{w[k]} * x[uint64_t{r} * source.cols + k]);
        }
        tolerance.push_back(share * 1.2 * sum);
      }
    }
    return tolerance;
  }

  // The sum of what a generated row's kernel adds up, without signs: by codes where there are.
  double Magnitude(uint32_t row, uint32_t n) const {
    double sum = 0;
    if (!Coded()) {
      const std::vector<float> w = source.Values(n);
      for (uint32_t c = 0; c < source.cols; ++c) {
        sum += std::fabs(double{w[c]} * x[uint64_t{row} * source.cols + c]);
      }
      return sum;
    }
    for (uint32_t b = 0; b < source.cols / kActBlockCols; ++b) {
      const ref::CodeBlock w = ref::DecodeCodes(source.type, source.Row(n), b);
      const ActBlock& a = blocks[uint64_t{row} * (source.cols / kActBlockCols) + b];
      for (uint32_t i = 0; i < kActBlockCols; ++i) {
        sum += std::fabs(1.0 * w.code[i] * a.codes[i] * w.scale * a.scale) +
               std::fabs(1.0 * w.min * a.codes[i] * a.scale);
      }
    }
    return sum;
  }
  // Epilogues change an error by a small factor: |silu'| < 1.1, |gelu'| < 1.13, the other factor of
  // a gated product is below its magnitude.
  std::vector<double> Tolerance(double share) const {
    const uint32_t cols = OutCols(source, epilogue);
    std::vector<double> tolerance(uint64_t{rows} * cols);
    for (uint32_t r = 0; r < rows; ++r) {
      for (uint32_t n = 0; n < cols; ++n) {
        double bound;
        if (epilogue == Epilogue::kSwiGlu) {
          const double gate = Magnitude(r, 2 * n), up = Magnitude(r, 2 * n + 1);
          bound = share * 2.2 * gate * up;
        } else {
          bound = share * 1.2 * Magnitude(r, n) + 1e-6;
        }
        tolerance[uint64_t{r} * cols + n] = bound;
      }
    }
    return tolerance;
  }
};

// A pair of sums of the same n numbers in any order differ by 2 n 2^-24 of their magnitude at most.
double SumShare(uint32_t cols) { return 2.0 * (cols + 8) * 0x1p-24; }

std::vector<uint32_t> ColsFor(DType type) {
  if (InfoOf(type).block_elems == 256) return {256, 768};
  if (testing::IsQuantised(type)) return {32, 576, 1088};
  return {1, 30, 577};
}

struct Wanted {
  uint32_t rows;
  Epilogue epilogue;
  bool biased;
};
constexpr Wanted kWanted[] = {{1, Epilogue::kStore, false},
                              {2, Epilogue::kAdd, true},
                              {5, Epilogue::kGelu, true},
                              {9, Epilogue::kStore, true}};

TEST(DeviceProducts, OfGeneratedRowsAgreeWithRef) {
  uint64_t seed = 1;
  for (const DType type : kAllTypes) {
    for (const uint32_t cols : ColsFor(type)) {
      for (const Wanted& w : kWanted) {
        simt::SetSeed(seed++);
        const Case c(type, 13, cols, w.rows, w.epilogue, w.biased);
        SCOPED_TRACE(Describe(c.source, w.rows));
        ASSERT_EQ(
            Mismatch(c.Generated(0, w.rows), c.Ref(Compute::kFast), c.Tolerance(SumShare(cols))),
            "");
      }
    }
  }
}

TEST(DeviceProducts, OfPromptRowsAgreeWithRef) {
  for (const DType type : kAllTypes) {
    const uint32_t cols = ColsFor(type).back();
    for (const Wanted& w : {Wanted{3, Epilogue::kStore, true}, Wanted{70, Epilogue::kAdd, false}}) {
      if (w.rows == 70 && type != DType::kQ4_1 && type != DType::kF16) continue;
      const Case c(type, w.rows == 70 ? 67 : 13, cols, w.rows, w.epilogue, w.biased);
      SCOPED_TRACE(Describe(c.source, w.rows));
      // Both operands are rounded to halves, a pair of 2^-11.
      ASSERT_EQ(Mismatch(c.Prompt(0, w.rows), c.Ref(Compute::kF32),
                         c.Tolerance(SumShare(cols) + 0x1p-10)),
                "");
    }
  }
}

TEST(DeviceProducts, GatedRowsMakeOneColumn) {
  for (const DType type : {DType::kQ4_0, DType::kQ8_0, DType::kBF16}) {
    const Case c(type, 14, 96, 5, Epilogue::kSwiGlu, true);
    SCOPED_TRACE(Describe(c.source, 5));
    // `ref` takes gate and up from neighbouring panels, which are its rows.
    EXPECT_EQ(Mismatch(c.Generated(0, 5), c.Ref(Compute::kFast), c.Tolerance(SumShare(96))), "");
    EXPECT_EQ(Mismatch(c.Prompt(0, 5), c.Ref(Compute::kF32), c.Tolerance(SumShare(96) + 0x1p-10)),
              "");
  }
}

TEST(DeviceProducts, ARowIsTheSameAloneAndInAnyBatch) {
  for (const DType type : kAllTypes) {
    const Case c(type, 9, 768, 11, Epilogue::kGelu, true);
    SCOPED_TRACE(Describe(c.source, c.rows));
    const std::vector<float> generated = c.Generated(0, 11), prompt = c.Prompt(0, 11);
    for (const auto& [first, count] :
         {std::pair{0u, 1u}, {10u, 1u}, {3u, 2u}, {5u, 4u}, {2u, 9u}}) {
      const auto rows_of = [&](const std::vector<float>& all) {
        return std::vector<float>(all.begin() + first * 9, all.begin() + (first + count) * 9);
      };
      EXPECT_TRUE(SameBits(c.Generated(first, count), rows_of(generated))) << first;
      EXPECT_TRUE(SameBits(c.Prompt(first, count), rows_of(prompt))) << first;
    }
  }
}

// One code of one weight, one scale, one activation: each must be seen.
TEST(DeviceProducts, OneWrongNumberIsSeen) {
  Case c(DType::kQ4_1, 13, 576, 2, Epilogue::kStore, false);
  const std::vector<float> want = c.Ref(Compute::kFast);
  const std::vector<double> tolerance = c.Tolerance(SumShare(576));
  ASSERT_EQ(Mismatch(c.Generated(0, 2), want, tolerance), "");
  c.packed.codes[5 * c.packed.plan.row_lines * 4 + 17] ^= 0x00400000;
  EXPECT_NE(Mismatch(c.Generated(0, 2), want, tolerance), "");
  c.packed.codes[5 * c.packed.plan.row_lines * 4 + 17] ^= 0x00400000;
  c.packed.scales[3].bits ^= 0x0200;
  EXPECT_NE(Mismatch(c.Generated(0, 2), want, tolerance), "");
  c.packed.scales[3].bits ^= 0x0200;
  c.blocks[20].codes[7] = static_cast<int8_t>(c.blocks[20].codes[7] ^ 0x40);
  EXPECT_NE(Mismatch(c.Generated(0, 2), want, tolerance), "");
}

TEST(DeviceProducts, OneWrongNumberOfAPromptIsSeen) {
  Case c(DType::kQ8_0, 13, 64, 3, Epilogue::kStore, false);
  const std::vector<float> want = c.Ref(Compute::kF32);
  const std::vector<double> tolerance = c.PlainTolerance(0x1p-10);
  ASSERT_EQ(Mismatch(c.Prompt(0, 3), want, tolerance), "");
  c.packed.codes[12 * c.packed.plan.row_lines * 4 + 7] ^= 0x00400000;
  EXPECT_NE(Mismatch(c.Prompt(0, 3), want, tolerance), "");
  c.packed.codes[12 * c.packed.plan.row_lines * 4 + 7] ^= 0x00400000;
  c.x[2 * 64 + 33] += 0.25f;
  EXPECT_NE(Mismatch(c.Prompt(0, 3), want, tolerance), "");
}

TEST(DeviceProducts, LargeActivationsDoNotOverflow) {
  Case c(DType::kQ8_0, 8, 64, 2, Epilogue::kStore, false);
  for (uint32_t i = 0; i < 64; ++i) c.x[i] *= 3e30f;  // the other row stays small
  EXPECT_EQ(Mismatch(c.Prompt(0, 2), c.Ref(Compute::kF32), c.PlainTolerance(0x1p-10)), "");
}

TEST(DeviceProducts, ShapesThatCannotBeAreRefused) {
  const Case c(DType::kQ8_0, 7, 64, 1, Epilogue::kStore, false);
  std::vector<float> out(7);
  GeneratedProduct p{.weights = c.packed.weights(), .rows = 0, .to = c.To(out)};
  EXPECT_EQ(MultiplyGenerated(p, nullptr).code(), Code::kInvalidArgument);
  p.rows = 1;
  p.to.epilogue = Epilogue::kSwiGlu;  // of seven rows
  EXPECT_EQ(MultiplyGenerated(p, nullptr).code(), Code::kInvalidArgument);
  p.to.epilogue = Epilogue::kStore;
  p.weights.cols = 60;
  EXPECT_EQ(MultiplyGenerated(p, nullptr).code(), Code::kInvalidArgument);
}

}  // namespace
}  // namespace tinyserve::cuda
