// Every target that this machine has, against `ref`: every type, both computes, shapes with and
// without remainders.
#include <gtest/gtest.h>

#include <set>

#include "kernels/acts.h"
#include "kernels/tables.h"
#include "kernels/targets.h"
#include "kernels/testing.h"

namespace tinyserve {
namespace {

using testing::Buffer;
using testing::IsQuantised;
using testing::kAllTypes;
using testing::MakeSource;
using testing::Mismatch;
using testing::Pack;
using testing::Packed;
using testing::Random;
using testing::SameBits;
using testing::Source;

// Which tables the tests of this program really exercised.
std::set<std::string>& TargetsRun() {
  static std::set<std::string> run;
  return run;
}

std::string Describe(const Kernels& kernels, const Source& source, Compute compute) {
  return std::string(kernels.name) + " " + InfoOf(source.type).name +
         (compute == Compute::kFast ? " fast " : " f32 ") + std::to_string(source.rows) + "x" +
         std::to_string(source.cols);
}

std::vector<float> RandomRows(uint32_t rows, uint32_t cols, uint64_t seed) {
  Random random(seed);
  std::vector<float> x(size_t{rows} * cols);
  for (float& value : x) value = random.Signed();
  return x;
}

// A whole product with its activations.
struct Product {
  const Kernels& kernels;
  Packed weights;
  Buffer acts;
  uint64_t act_row_bytes;
  uint32_t rows;

  Product(const Kernels& k, Compute compute, const Source& source, const std::vector<float>& x)
      : kernels(k),
        weights(Pack(k, compute, source)),
        acts(k.act_row_bytes(weights.matrix.acts, source.cols) * (x.size() / source.cols)),
        act_row_bytes(k.act_row_bytes(weights.matrix.acts, source.cols)),
        rows(static_cast<uint32_t>(x.size() / source.cols)) {
    k.make_acts(weights.matrix.acts, x.data(), source.cols, rows, source.cols, acts.data());
    TargetsRun().insert(k.name);
  }

  MatMulArgs Args(std::vector<float>& out) const {
    MatMulArgs args = {};
    args.w = &weights.matrix;
    args.acts = acts.data();
    args.act_row_bytes = act_row_bytes;
    args.row_end = rows;
    args.panel_end = weights.matrix.panels;
    args.out = out.data();
    args.out_stride = weights.matrix.rows;
    return args;
  }
  std::vector<float> Run() const {
    std::vector<float> out(size_t{rows} * weights.matrix.rows, 1e30f);
    const MatMulArgs args = Args(out);
    kernels.matmul(&args);
    return out;
  }
};

// Two f32 sums of the same n products, in whatever order and fused or not, are each within n *
// 2^-24 * sum|w x| of the exact one. Rounding weights' partners to bfloat16 adds 2^-8 of each
// product at most.
std::vector<double> Tolerances(const Source& source, const std::vector<float>& x, ActKind acts) {
  const size_t rows = x.size() / source.cols;
  std::vector<double> tolerance(rows * source.rows);
  const double per_product =
      2.0 * (source.cols + 2) * 0x1p-24 + (acts == ActKind::kBF16 ? 0x1p-8 : 0.0);
  for (uint32_t r = 0; r < source.rows; ++r) {
    const std::vector<float> w = source.Values(r);
    for (size_t i = 0; i < rows; ++i) {
      double sum = 0;
      for (uint32_t c = 0; c < source.cols; ++c) {
        sum += std::fabs(double{w[c]} * x[i * source.cols + c]);
      }
      tolerance[i * source.rows + r] = per_product * sum;
    }
  }
  return tolerance;
}

struct Shape {
  uint32_t rows, cols;
};

std::vector<Shape> ShapesFor(DType type) {
  if (InfoOf(type).block_elems == 256) return {{40, 256}, {19, 2048}, {3, 1536}};
  if (IsQuantised(type)) return {{8, 32}, {37, 576}, {70, 1536}, {1, 2080}};
  return {{8, 1}, {37, 577}, {70, 30}, {1, 2051}};
}

class Products : public ::testing::TestWithParam<const Kernels*> {};

TEST_P(Products, AgreeWithRef) {
  for (const DType type : kAllTypes) {
    for (const Compute compute : {Compute::kFast, Compute::kF32}) {
      for (const Shape& shape : ShapesFor(type)) {
        const Source source = MakeSource(type, shape.rows, shape.cols, shape.cols + shape.rows);
        SCOPED_TRACE(Describe(*GetParam(), source, compute));
        for (const uint32_t rows : {1u, 2u, 3u, 5u, 8u, 17u}) {
          const std::vector<float> x = RandomRows(rows, shape.cols, rows);
          const Product product(*GetParam(), compute, source, x);
          const Product ref(*RefKernels(), compute, source, x);
          const std::vector<float> got = product.Run(), want = ref.Run();
          if (product.weights.matrix.acts == ActKind::kQ8) {
            ASSERT_TRUE(SameBits(got, want))
                << Mismatch(got, want, std::vector<double>(got.size(), 0));
          } else {
            ASSERT_EQ(Mismatch(got, want, Tolerances(source, x, product.weights.matrix.acts)), "");
          }
        }
      }
    }
  }
}

// An output depends on its own row and panel alone, so any cut of the work gives the same bits.
TEST_P(Products, AnyCutGivesTheSameBits) {
  for (const DType type : kAllTypes) {
    for (const Compute compute : {Compute::kFast, Compute::kF32}) {
      const Source source = MakeSource(type, 61, 768, 5);
      SCOPED_TRACE(Describe(*GetParam(), source, compute));
      const Product product(*GetParam(), compute, source, RandomRows(133, 768, 9));
      const std::vector<float> whole = product.Run();
      Random random(11);
      for (int cut = 0; cut < 4; ++cut) {
        std::vector<float> pieces(whole.size(), 1e30f);
        MatMulArgs args = product.Args(pieces);
        for (uint32_t row = 0; row < product.rows; row = args.row_end) {
          args.row_begin = row;
          const auto rows = static_cast<uint32_t>(cut == 0 ? 1 : 1 + random.Next() % 40);
          args.row_end = std::min(product.rows, row + rows);
          for (uint32_t panel = 0; panel < product.weights.matrix.panels; panel = args.panel_end) {
            args.panel_begin = panel;
            const auto panels = static_cast<uint32_t>(1 + random.Next() % 3);
            args.panel_end = std::min(product.weights.matrix.panels, panel + panels);
            GetParam()->matmul(&args);
          }
        }
        ASSERT_TRUE(SameBits(pieces, whole)) << "cut " << cut;
      }
    }
  }
}

// The largest codes against the largest activations, of either sign and mixed: sums kept in 16 bits
// would saturate or wrap here if they could anywhere.
TEST_P(Products, ExtremeCodesDoNotSaturate) {
  for (const DType type : kAllTypes) {
    if (!IsQuantised(type)) continue;
    const uint32_t cols = 512;
    const Source source = MakeSource(type, 16, cols, 3, /*extreme=*/true);
    SCOPED_TRACE(Describe(*GetParam(), source, Compute::kFast));
    std::vector<float> x(size_t{4} * cols, 1.0f);
    for (uint32_t c = 0; c < cols; ++c) {
      x[cols + c] = -1.0f;
      x[2 * cols + c] = c % 2 == 0 ? 1.0f : -1.0f;
      x[3 * cols + c] = c / 16 % 2 == 0 ? 1.0f : -1.0f;
    }
    const Product product(*GetParam(), Compute::kFast, source, x);
    const std::vector<float> got = product.Run();
    ASSERT_TRUE(SameBits(got, Product(*RefKernels(), Compute::kFast, source, x).Run()));
    // +-1 is represented exactly by codes of +-127 and a scale of 1/127 to within one rounding, so
    // the integer path must also give what the dequantised weights give.
    const Product f32(*RefKernels(), Compute::kF32, source, x);
    std::vector<double> tolerance = Tolerances(source, x, ActKind::kF32);
    ASSERT_EQ(Mismatch(got, f32.Run(), tolerance), "");
  }
}

TEST_P(Products, UnpackRowDecodesTheSource) {
  for (const DType type : kAllTypes) {
    for (const Compute compute : {Compute::kFast, Compute::kF32}) {
      const Source source = MakeSource(type, 21, IsQuantised(type) ? 512 : 77, 17);
      SCOPED_TRACE(Describe(*GetParam(), source, compute));
      const Packed packed = Pack(*GetParam(), compute, source);
      std::vector<float> row(source.cols);
      for (uint32_t r = 0; r < source.rows; ++r) {
        GetParam()->unpack_row(&packed.matrix, r, row.data());
        ASSERT_TRUE(SameBits(row, source.Values(r))) << "row " << r;
      }
    }
  }
}

TEST_P(Products, GeometryIsAsPromised) {
  for (const DType type : kAllTypes) {
    for (const Compute compute : {Compute::kFast, Compute::kF32}) {
      PackedMatrix w = {};
      GetParam()->plan_matrix(type, compute, 1001, 768, &w);
      EXPECT_EQ(w.panel_bytes % 64, 0u);
      EXPECT_EQ(w.panels, (1001 + w.panel_rows - 1) / w.panel_rows);
      EXPECT_EQ(w.rows, 1001u);
      EXPECT_EQ(w.cols, 768u);
      if (compute == Compute::kF32) {
        EXPECT_EQ(w.acts, ActKind::kF32);
      }
      const bool widened = type == DType::kQ5_0 || type == DType::kQ5_1 || type == DType::kQ5_K;
      if (!widened) {
        EXPECT_LE(w.panel_bytes, RowBytes(type, 768) * w.panel_rows + 63) << InfoOf(type).name;
      }
    }
  }
}

TEST_P(Products, ActivationsEqualRefs) {
  for (const ActKind kind : {ActKind::kF32, ActKind::kQ8, ActKind::kBF16}) {
    const uint32_t cols = kind == ActKind::kQ8 ? 96 : 83, rows = 3;
    std::vector<float> x = RandomRows(rows, cols, 4);
    for (uint32_t c = 0; c < 32; ++c) x[c] = 0;         // a block of zeros
    for (uint32_t c = 32; c < 64; ++c) x[c] *= 1e-33f;  // too small for codes
    x[cols] = 1e20f;
    const uint64_t row_bytes = GetParam()->act_row_bytes(kind, cols);
    ASSERT_EQ(row_bytes, RefKernels()->act_row_bytes(kind, cols));
    ASSERT_EQ(row_bytes % 64, 0u);
    Buffer got(row_bytes * rows), want(row_bytes * rows);
    std::memset(got.data(), 0xaa, row_bytes * rows);
    GetParam()->make_acts(kind, x.data(), cols, rows, cols, got.data());
    RefKernels()->make_acts(kind, x.data(), cols, rows, cols, want.data());
    EXPECT_EQ(std::memcmp(got.data(), want.data(), row_bytes * rows), 0);
  }
}

// Ties go to the even code: absmax 127 makes the scale 1.
TEST_P(Products, ActivationCodesRoundToNearestEven) {
  std::vector<float> x(32, 0.0f);
  x[0] = 127.0f, x[1] = 0.5f, x[2] = 1.5f, x[3] = 2.5f, x[4] = -0.5f, x[5] = -1.5f, x[6] = -127.0f;
  Buffer acts(GetParam()->act_row_bytes(ActKind::kQ8, 32));
  GetParam()->make_acts(ActKind::kQ8, x.data(), 32, 1, 32, acts.data());
  const auto* block = reinterpret_cast<const ActBlock*>(acts.data());
  const int want[7] = {127, 0, 2, 2, 0, -2, -127};
  for (int i = 0; i < 7; ++i) EXPECT_EQ(block->codes[i], want[i]) << i;
  EXPECT_EQ(block->scale, 1.0f);
  EXPECT_EQ(block->half_sums[0], 2);
  EXPECT_EQ(block->scaled_sum, 2.0f);
}

TEST_P(Products, EpiloguesAddBiasAndActivate) {
  const Source source = MakeSource(DType::kQ4_1, 45, 64, 23);
  const Product product(*GetParam(), Compute::kFast, source, RandomRows(6, 64, 2));
  const std::vector<float> plain = product.Run();
  const std::vector<float> bias = RandomRows(1, 45, 31);
  const std::vector<float> before = RandomRows(6, 45, 37);
  for (const bool with_bias : {false, true}) {
    for (const Epilogue epilogue : {Epilogue::kStore, Epilogue::kAdd, Epilogue::kGelu}) {
      std::vector<float> out = before, want(before.size());
      std::vector<double> tolerance(before.size());
      MatMulArgs args = product.Args(out);
      args.bias = with_bias ? bias.data() : nullptr;
      args.epilogue = epilogue;
      GetParam()->matmul(&args);
      for (size_t i = 0; i < out.size(); ++i) {
        const double y = double{plain[i]} + (with_bias ? bias[i % 45] : 0.0f);
        const double u = 0.7978845608028654 * (y + 0.044715 * y * y * y);
        double value = y;
        if (epilogue == Epilogue::kAdd) value += before[i];
        if (epilogue == Epilogue::kGelu) value = y / 2 * (1 + std::tanh(u));
        want[i] = static_cast<float>(value);
        // A few roundings of terms no larger than |y| + |before|, which GELU's exponent magnifies
        // by |u|.
        tolerance[i] = 0x1p-22 * (std::fabs(y) + std::fabs(before[i])) * (1 + std::fabs(u));
      }
      EXPECT_EQ(Mismatch(out, want, tolerance), "");
    }
  }
}

// Panels alternate gate and up; a gate's rows are a multiple of every target's panel_rows.
TEST_P(Products, SwiGluPairsPanels) {
  const uint32_t cols = 64, rows = 7, ffn = 96;
  for (const DType type : {DType::kQ8_0, DType::kQ4_1, DType::kF16, DType::kBF16}) {
    for (const Compute compute : {Compute::kFast, Compute::kF32}) {
      const Source gate = MakeSource(type, ffn, cols, 1), up = MakeSource(type, ffn, cols, 2);
      SCOPED_TRACE(Describe(*GetParam(), gate, compute));
      const std::vector<float> x = RandomRows(rows, cols, 3);
      PackedMatrix plan = {};
      GetParam()->plan_matrix(type, compute, 2 * ffn, cols, &plan);
      ASSERT_EQ(ffn % plan.panel_rows, 0u);
      Source both = gate;
      both.rows = 2 * ffn;
      both.data.clear();
      for (uint32_t panel = 0; panel < plan.panels; ++panel) {
        const Source& part = panel % 2 == 0 ? gate : up;
        const uint8_t* first = part.Row(panel / 2 * plan.panel_rows);
        both.data.insert(both.data.end(), first, first + plan.panel_rows * part.row_bytes);
      }
      const Product product(*GetParam(), compute, both, x);
      std::vector<float> out(size_t{rows} * ffn, 1e30f);
      MatMulArgs args = product.Args(out);
      args.out_stride = ffn;
      args.epilogue = Epilogue::kSwiGlu;
      GetParam()->matmul(&args);
      const std::vector<float> g = Product(*GetParam(), compute, gate, x).Run();
      const std::vector<float> u = Product(*GetParam(), compute, up, x).Run();
      std::vector<float> want(out.size());
      std::vector<double> tolerance(out.size());
      for (size_t i = 0; i < out.size(); ++i) {
        const double silu = g[i] / (1 + std::exp(-double{g[i]}));
        want[i] = static_cast<float>(silu * u[i]);
        tolerance[i] = 1e-6 * std::fabs(silu * u[i]) + 1e-12;
      }
      ASSERT_EQ(Mismatch(out, want, tolerance), "");
      // The same in two calls, cut at an even panel.
      std::vector<float> cut(out.size(), 1e30f);
      args.out = cut.data();
      args.panel_end = 2;
      GetParam()->matmul(&args);
      args.panel_begin = 2;
      args.panel_end = plan.panels;
      GetParam()->matmul(&args);
      ASSERT_TRUE(SameBits(cut, out));
    }
  }
}
INSTANTIATE_TEST_SUITE_P(EveryTarget, Products, ::testing::ValuesIn(AvailableTargets()),
                         testing::TargetName());

// ---- the tests themselves ----

TEST(Comparator, SeesWhatIsWrong) {
  const std::vector<float> want = {1.0f, -2.0f, 0.0f};
  const std::vector<double> tolerance(3, 1e-3);
  EXPECT_EQ(Mismatch(want, want, tolerance), "");
  EXPECT_EQ(Mismatch({1.0005f, -2.0005f, 0.0f}, want, tolerance), "");
  EXPECT_NE(Mismatch({1.0f, 2.0f, 0.0f}, want, tolerance), "");
  EXPECT_NE(Mismatch({-1.0f, -2.0f, 0.0f}, want, tolerance), "");
  EXPECT_NE(Mismatch({1.0f, -2.01f, 0.0f}, want, tolerance), "");
  EXPECT_NE(Mismatch({1.0f, -2.0f, NAN}, want, tolerance), "");
  EXPECT_NE(Mismatch({1.0f, -2.0f, INFINITY}, want, tolerance), "");
  EXPECT_NE(Mismatch({1.0f, -2.0f}, want, tolerance), "");
  EXPECT_TRUE(SameBits(want, want));
  EXPECT_FALSE(SameBits({1.0f, -2.0f, -0.0f}, want));
}

// A fault in one nibble of the weights must be seen.
TEST(Comparator, SeesOneWrongCode) {
  const std::vector<float> x = RandomRows(1, 576, 8);
  Source source = MakeSource(DType::kQ4_1, 16, 576, 6);
  const std::vector<float> right = Product(*RefKernels(), Compute::kFast, source, x).Run();
  source.data[source.row_bytes * 5 + 20 * 7 + 9] ^= 1;
  const std::vector<float> wrong = Product(*RefKernels(), Compute::kFast, source, x).Run();
  EXPECT_FALSE(SameBits(right, wrong));
}

// The tests fail where a table that this machine can run was never called.
class EveryTargetRan : public ::testing::Environment {
 public:
  void TearDown() override {
    if (::testing::GTEST_FLAG(filter) != "*") return;
    for (const Kernels* table : AvailableTargets()) {
      EXPECT_TRUE(TargetsRun().count(table->name)) << table->name << " was never run";
    }
  }
};
const auto* const kEveryTargetRan = ::testing::AddGlobalTestEnvironment(new EveryTargetRan);

}  // namespace
}  // namespace tinyserve
