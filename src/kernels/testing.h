// For the tests of the kernels: random matrices of every type, packing, and the comparator.
#ifndef TINYSERVE_KERNELS_TESTING_H_
#define TINYSERVE_KERNELS_TESTING_H_

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "kernels/kernels.h"
#include "tensor/convert.h"
#include "tensor/dtype.h"

namespace tinyserve::testing {

inline constexpr DType kAllTypes[] = {DType::kF32,  DType::kF16,  DType::kBF16, DType::kQ4_0,
                                      DType::kQ4_1, DType::kQ5_0, DType::kQ5_1, DType::kQ8_0,
                                      DType::kQ4_K, DType::kQ5_K, DType::kQ6_K};

inline bool IsQuantised(DType type) { return InfoOf(type).block_elems > 1; }

class Random {
 public:
  explicit Random(uint64_t seed) : numbers_(seed) {}
  uint64_t Next() { return numbers_.Next(); }
  // Uniform in -1 .. 1.
  float Signed() { return static_cast<float>(static_cast<double>(Next() >> 11) * 0x1p-52 - 1.0); }

 private:
  SplitMix64 numbers_;
};

// 64-byte aligned and zeroed.
class Buffer {
 public:
  explicit Buffer(uint64_t bytes)
      : bytes_((bytes + 63) / 64 * 64 + 64),
        data_(static_cast<uint8_t*>(std::aligned_alloc(64, bytes_))) {
    std::memset(data_.get(), 0, bytes_);
  }
  uint8_t* data() { return data_.get(); }
  const uint8_t* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
  };
  uint64_t bytes_;
  std::unique_ptr<uint8_t, Free> data_;
};

// Byte offsets of a block's half floats (scale, and minimum where there is one).
inline std::vector<uint32_t> HalfOffsets(DType type) {
  switch (type) {
    case DType::kQ4_1:
    case DType::kQ5_1:
    case DType::kQ4_K:
    case DType::kQ5_K:
      return {0, 2};
    case DType::kQ6_K:
      return {208};
    default:
      return {0};
  }
}

// A matrix in its file's format. Quantised blocks have random codes and sub-scales, or all bits set
// where `extreme`, and finite scales of both signs.
struct Source {
  DType type;
  uint32_t rows, cols;
  uint64_t row_bytes;
  std::vector<uint8_t> data;

  const uint8_t* Row(uint32_t r) const { return data.data() + r * row_bytes; }
  std::vector<float> Values(uint32_t r) const {
    std::vector<float> out(cols);
    DequantizeRow(type, Row(r), cols, out.data());
    return out;
  }
};

inline void FillElements(Source& source, Random& random) {
  for (uint64_t i = 0; i < uint64_t{source.rows} * source.cols; ++i) {
    const float value = random.Signed();
    const uint16_t half = source.type == DType::kF16 ? F32ToF16(value) : F32ToBF16(value);
    if (source.type == DType::kF32) {
      std::memcpy(&source.data[i * 4], &value, 4);
    } else {
      std::memcpy(&source.data[i * 2], &half, 2);
    }
  }
}

inline Source MakeSource(DType type, uint32_t rows, uint32_t cols, uint64_t seed,
                         bool extreme = false) {
  Source source{type, rows, cols, RowBytes(type, cols), {}};
  source.data.resize(source.row_bytes * rows);
  Random random(seed);
  if (!IsQuantised(type)) {
    FillElements(source, random);
    return source;
  }
  for (uint8_t& byte : source.data) byte = extreme ? 0xff : static_cast<uint8_t>(random.Next());
  for (uint64_t at = 0; at < source.data.size(); at += InfoOf(type).block_bytes) {
    for (const uint32_t offset : HalfOffsets(type)) {
      const uint16_t half = F32ToF16(random.Signed() * 0.02f);
      std::memcpy(&source.data[at + offset], &half, 2);
    }
    if (!extreme) continue;
    // 0xff bytes are the largest code of most types; these two go to both ends, block by block.
    const uint64_t block = at / InfoOf(type).block_bytes;
    if (type == DType::kQ8_0) std::memset(&source.data[at + 2], block % 2 == 0 ? 0x80 : 0x7f, 32);
    if (type == DType::kQ6_K) {
      std::memset(&source.data[at], block % 2 == 0 ? 0xff : 0, 192);
      std::memset(&source.data[at + 192], block / 2 % 2 == 0 ? 0x80 : 0x7f, 16);
    }
  }
  return source;
}

// A source packed for a table, with its bytes.
struct Packed {
  PackedMatrix matrix;
  Buffer bytes;
};

inline Packed Pack(const Kernels& kernels, Compute compute, const Source& source) {
  PackedMatrix matrix = {};
  kernels.plan_matrix(source.type, compute, source.rows, source.cols, &matrix);
  Packed packed{matrix, Buffer(uint64_t{matrix.panels} * matrix.panel_bytes)};
  packed.matrix.data = packed.bytes.data();
  for (uint32_t p = 0; p < matrix.panels; ++p) {
    std::vector<const uint8_t*> rows(matrix.panel_rows, nullptr);
    for (uint32_t i = 0; i < matrix.panel_rows; ++i) {
      const uint32_t r = p * matrix.panel_rows + i;
      if (r < source.rows) rows[i] = source.Row(r);
    }
    kernels.pack_panel(&matrix, rows.data(), packed.bytes.data() + p * matrix.panel_bytes);
  }
  return packed;
}

// Where `got` leaves `want` by more than tolerance[i] (or is no number); empty when it nowhere
// does.
inline std::string Mismatch(const std::vector<float>& got, const std::vector<float>& want,
                            const std::vector<double>& tolerance) {
  if (got.size() != want.size() || got.size() != tolerance.size()) return "sizes differ";
  for (size_t i = 0; i < got.size(); ++i) {
    const double distance = std::fabs(static_cast<double>(got[i]) - want[i]);
    if (distance <= tolerance[i]) continue;  // false for NaN
    return "element " + std::to_string(i) + ": got " + std::to_string(got[i]) + ", want " +
           std::to_string(want[i]) + ", distance " + std::to_string(distance) + " over " +
           std::to_string(tolerance[i]);
  }
  return "";
}

// A target's name as part of a test's.
struct TargetName {
  template <class Info>
  std::string operator()(const Info& info) const {
    std::string name = info.param->name;
    for (char& c : name) c = c == '-' ? '_' : c;
    return name;
  }
};

inline bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace tinyserve::testing

#endif  // TINYSERVE_KERNELS_TESTING_H_
