#include "tensor/convert.h"

#include <gtest/gtest.h>
#ifdef __x86_64__
#include <xmmintrin.h>
#endif

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "base/file.h"

namespace tinyserve {
namespace {

// The definition of a half, in doubles that hold every half exactly.
double HalfByDefinition(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double sign = bits >> 15 != 0 ? -1.0 : 1.0;
  if (exponent == 31) {
    return mantissa != 0 ? std::numeric_limits<double>::quiet_NaN()
                         : sign * std::numeric_limits<double>::infinity();
  }
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(1024 + mantissa, exponent - 25);
}

// The nearest half by search over the finite ones' spacing: value / ulp rounded to even in double.
uint16_t NearestHalf(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double magnitude = std::fabs(static_cast<double>(value));
  if (std::isnan(value)) return sign | 0x7e00;
  if (magnitude >= 65520.0) return sign | 0x7c00;
  const int exponent = magnitude < 0x1p-14 ? -14 : std::ilogb(magnitude);
  const double steps =
      std::nearbyint(std::ldexp(magnitude, 10 - exponent));  // exact but for the rounding
  return static_cast<uint16_t>(sign + ((exponent + 14) << 10) + static_cast<int>(steps));
}

TEST(HalfTest, EveryHalfDecodesToItsDefinition) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float got = F16ToF32(static_cast<uint16_t>(bits));
    const double want = HalfByDefinition(static_cast<uint16_t>(bits));
    if (std::isnan(want)) {
      EXPECT_TRUE(std::isnan(got)) << bits;
    } else {
      EXPECT_EQ(static_cast<double>(got), want) << bits;
    }
    EXPECT_EQ(std::signbit(got), bits >> 15 != 0) << bits;
  }
}

TEST(HalfTest, EveryHalfComesBack) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const bool nan = (bits & 0x7fff) > 0x7c00;
    const uint32_t want = nan ? bits | 0x200 : bits;  // NaNs come back quiet, payload kept
    EXPECT_EQ(F32ToF16(F16ToF32(static_cast<uint16_t>(bits))), want) << bits;
  }
}

TEST(HalfTest, RoundsToTheNearestAndTiesToEven) {
  for (uint32_t bits = 0; bits < 0x7c00; ++bits) {
    const float here = F16ToF32(static_cast<uint16_t>(bits));
    const float next = bits + 1 == 0x7c00 ? 65536.0f : F16ToF32(static_cast<uint16_t>(bits + 1));
    const float middle = here + (next - here) / 2;  // exact
    const uint32_t even = bits % 2 == 0 ? bits : bits + 1;
    EXPECT_EQ(F32ToF16(middle), even) << bits;
    EXPECT_EQ(F32ToF16(-middle), even | 0x8000) << bits;
    EXPECT_EQ(F32ToF16(std::nextafter(middle, 0.0f)), bits);
    EXPECT_EQ(F32ToF16(std::nextafter(middle, 1e9f)), bits + 1);
  }
}

TEST(HalfTest, AgreesWithTheDefinitionOnRandomFloats) {
  std::mt19937 rng(1);
  for (int i = 0; i < 1000000; ++i) {
    // All bit patterns, and as many of a half's own range.
    const float value =
        i % 2 == 0 ? std::bit_cast<float>(static_cast<uint32_t>(rng()))
                   : std::ldexp(static_cast<float>(rng()), -16 - static_cast<int>(rng() % 44));
    const uint16_t got = F32ToF16(value);
    if (std::isnan(value)) {
      ASSERT_TRUE((got & 0x7c00) == 0x7c00 && (got & 0x3ff) != 0);
      continue;
    }
    ASSERT_EQ(got, NearestHalf(value)) << value;
  }
}

#ifdef __SSE__
TEST(HalfTest, DenormalHalvesSurviveFlushingToZero) {
  const unsigned saved = _mm_getcsr();
  _mm_setcsr(saved | 0x8040);  // flush to zero, denormals are zero
  std::vector<float> decoded;
  for (uint32_t bits = 0; bits < 1024; ++bits)
    decoded.push_back(F16ToF32(static_cast<uint16_t>(bits)));
  std::vector<uint16_t> encoded;
  for (const float value : decoded) encoded.push_back(F32ToF16(value));
  _mm_setcsr(saved);
  for (uint32_t bits = 0; bits < 1024; ++bits) {
    EXPECT_EQ(static_cast<double>(decoded[bits]), std::ldexp(bits, -24));
    EXPECT_EQ(encoded[bits], bits);
  }
}
#endif

TEST(BrainFloatTest, EveryPatternIsTheUpperHalfOfAFloat) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = BF16ToF32(static_cast<uint16_t>(bits));
    EXPECT_EQ(std::bit_cast<uint32_t>(value), bits << 16);
    const bool nan = (bits & 0x7fff) > 0x7f80;
    EXPECT_EQ(F32ToBF16(value), nan ? bits | 0x40 : bits);
  }
}

TEST(BrainFloatTest, RoundsToTheNearestAndTiesToEven) {
  for (uint32_t bits = 0; bits < 0x7f80; ++bits) {
    const uint32_t middle = bits << 16 | 0x8000;
    const uint32_t even = bits % 2 == 0 ? bits : bits + 1;  // past the last finite: infinity
    EXPECT_EQ(F32ToBF16(std::bit_cast<float>(middle)), even) << bits;
    EXPECT_EQ(F32ToBF16(std::bit_cast<float>(middle | 0x80000000u)), even | 0x8000) << bits;
    EXPECT_EQ(F32ToBF16(std::bit_cast<float>(middle - 1)), bits);
    EXPECT_EQ(F32ToBF16(std::bit_cast<float>(middle + 1)), bits + 1);
  }
  // A NaN whose payload lies in the lower half must not become infinity.
  EXPECT_TRUE(std::isnan(BF16ToF32(F32ToBF16(std::bit_cast<float>(0x7f800001u)))));
}

struct GoldenRow {
  std::vector<uint8_t> bytes;
  std::vector<float> values;
};

// tests/golden/blocks.bin, written by make_blocks.py beside it.
std::map<std::string, GoldenRow> ReadGoldenRows() {
  std::map<std::string, GoldenRow> rows;
  Result<std::string> file = ReadFile(TS_SOURCE_DIR "/tests/golden/blocks.bin", 1 << 20);
  EXPECT_TRUE(file.ok()) << file.status().message();
  if (!file.ok()) return rows;
  for (size_t at = 0; at < file->size();) {
    char name[9] = {};
    uint32_t elems, bytes;
    std::memcpy(name, file->data() + at, 8);
    std::memcpy(&elems, file->data() + at + 8, 4);
    std::memcpy(&bytes, file->data() + at + 12, 4);
    at += 16;
    GoldenRow& row = rows[name];
    row.bytes.assign(file->begin() + at, file->begin() + at + bytes);
    at += bytes;
    row.values.resize(elems);
    std::memcpy(row.values.data(), file->data() + at, elems * sizeof(float));
    at += elems * sizeof(float);
  }
  return rows;
}

constexpr DType kGoldenTypes[] = {DType::kF16,  DType::kBF16, DType::kQ4_0, DType::kQ4_1,
                                  DType::kQ5_0, DType::kQ5_1, DType::kQ8_0, DType::kQ4_K,
                                  DType::kQ5_K, DType::kQ6_K};

TEST(DequantizeRowTest, EveryTypeMatchesTheGoldenFileBitForBit) {
  const std::map<std::string, GoldenRow> rows = ReadGoldenRows();
  EXPECT_EQ(rows.size(), std::size(kGoldenTypes));
  for (const DType type : kGoldenTypes) {
    SCOPED_TRACE(InfoOf(type).name);
    ASSERT_EQ(rows.count(InfoOf(type).name), 1u);
    const GoldenRow& row = rows.at(InfoOf(type).name);
    ASSERT_EQ(row.bytes.size(), RowBytes(type, row.values.size()));
    std::vector<float> got(row.values.size());
    DequantizeRow(type, row.bytes.data(), got.size(), got.data());
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(row.values[i]))
          << "element " << i << ": " << got[i] << " and " << row.values[i];
    }
  }
}

TEST(DequantizeRowTest, RowsMayLieAtAnyAddress) {
  const std::map<std::string, GoldenRow> rows = ReadGoldenRows();
  for (const auto& [name, row] : rows) {
    for (const DType type : kGoldenTypes) {
      if (name != InfoOf(type).name) continue;
      std::vector<uint8_t> shifted(row.bytes.size() + 1);
      std::memcpy(shifted.data() + 1, row.bytes.data(), row.bytes.size());
      std::vector<float> got(row.values.size());
      DequantizeRow(type, shifted.data() + 1, got.size(), got.data());
      EXPECT_EQ(std::memcmp(got.data(), row.values.data(), got.size() * sizeof(float)), 0) << name;
    }
  }
}

TEST(DequantizeRowTest, ReadsAndWritesExactlyTheRow) {
  for (const DType type : kGoldenTypes) {
    const uint64_t cols = 2 * InfoOf(type).block_elems;
    std::vector<uint8_t> row(RowBytes(type, cols),
                             0x11);  // its own allocation: ASan sees one byte more
    std::vector<float> out(cols + 1, -7.0f);
    DequantizeRow(type, row.data(), cols, out.data());
    EXPECT_EQ(out[cols], -7.0f) << InfoOf(type).name;
    DequantizeRow(type, nullptr, 0, out.data());
  }
}

TEST(DequantizeRowTest, FloatsAreCopied) {
  const std::vector<float> values = {0.0f, -0.0f, 1.5f, std::numeric_limits<float>::denorm_min()};
  std::vector<float> out(values.size());
  DequantizeRow(DType::kF32, reinterpret_cast<const uint8_t*>(values.data()), values.size(),
                out.data());
  EXPECT_EQ(std::memcmp(out.data(), values.data(), sizeof(float) * values.size()), 0);
}

TEST(DequantizeRowDeathTest, HalfABlockIsABug) {
  float out[32];
  uint8_t row[18] = {};
  EXPECT_DEATH(DequantizeRow(DType::kQ4_0, row, 31, out), "check failed");
}

TEST(DTypeTest, RowBytesDoNotTruncate) {
  // 2^33 elements: their bytes do not fit in 32 bits either.
  EXPECT_EQ(RowBytes(DType::kQ4_0, uint64_t{1} << 33), (uint64_t{1} << 28) * 18);
  EXPECT_EQ(RowBytes(DType::kF32, uint64_t{1} << 33), uint64_t{1} << 35);
  EXPECT_EQ(RowBytes(DType::kQ6_K, 512), 420u);
}

}  // namespace
}  // namespace tinyserve
