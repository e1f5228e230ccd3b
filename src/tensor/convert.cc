#include "tensor/convert.h"

#include <bit>
#include <cstring>

#include "base/check.h"
#include "tensor/blocks.h"

namespace tinyserve {
namespace {

// Rows lie at any byte address of a file, so blocks and elements are copied out before they are
// used.
template <class T>
T Load(const uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// Never forms a denormal float, so that a thread which flushes those to zero decodes the same
// values.
inline float HalfToFloat(uint16_t half) {
  constexpr uint32_t kRebias = uint32_t{127 - 15} << 23;
  constexpr uint32_t kMinNormal = uint32_t{127 - 14} << 23;  // 2^-14
  const uint32_t sign = uint32_t{half & 0x8000u} << 16;
  const uint32_t magnitude = uint32_t{half & 0x7fffu} << 13;
  const uint32_t exponent = half & 0x7c00u;
  const uint32_t normal = magnitude + kRebias;
  // A denormal is m * 2^-24: the mantissa is put under the exponent of 2^-14, whose 1 is then taken
  // off.
  const uint32_t denormal = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude | kMinNormal) -
                                                    std::bit_cast<float>(kMinNormal));
  const uint32_t quiet = (half & 0x3ffu) != 0 ? 0x00400000u : 0;
  const uint32_t infinite = (magnitude + 2 * kRebias) | quiet;
  uint32_t bits = exponent == 0 ? denormal : normal;
  bits = exponent == 0x7c00u ? infinite : bits;
  return std::bit_cast<float>(bits | sign);
}

inline float BrainToFloat(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

// The 6-bit scales and minima of a K block's eight sub-blocks, spread over 12 bytes: the first four
// of each lie in the low six bits of bytes 0-3 and 4-7; the last four have their low nibble in
// bytes 8-11 and their upper two bits in the top of bytes 0-7.
struct ScalesK {
  uint8_t scale[8], min[8];
};

inline ScalesK UnpackScalesK(const uint8_t packed[12]) {
  ScalesK out;
  for (int s = 0; s < 4; ++s) {
    out.scale[s] = packed[s] & 63;
    out.min[s] = packed[s + 4] & 63;
    out.scale[s + 4] = static_cast<uint8_t>((packed[s + 8] & 15) | (packed[s] >> 6 << 4));
    out.min[s + 4] = static_cast<uint8_t>((packed[s + 8] >> 4) | (packed[s + 4] >> 6 << 4));
  }
  return out;
}

void Decode(const BlockQ4_0& block, float* out) {
  const float d = HalfToFloat(block.d);
  for (int j = 0; j < 16; ++j) {
    out[j] = d * static_cast<float>((block.qs[j] & 15) - 8);
    out[j + 16] = d * static_cast<float>((block.qs[j] >> 4) - 8);
  }
}

void Decode(const BlockQ4_1& block, float* out) {
  const float d = HalfToFloat(block.d);
  const float m = HalfToFloat(block.m);
  for (int j = 0; j < 16; ++j) {
    out[j] = d * static_cast<float>(block.qs[j] & 15) + m;
    out[j + 16] = d * static_cast<float>(block.qs[j] >> 4) + m;
  }
}

void Decode(const BlockQ5_0& block, float* out) {
  const float d = HalfToFloat(block.d);
  const uint32_t high = Load<uint32_t>(block.qh);
  for (int j = 0; j < 16; ++j) {
    const int low_q = (block.qs[j] & 15) | static_cast<int>(high >> j & 1) << 4;
    const int high_q = (block.qs[j] >> 4) | static_cast<int>(high >> (j + 16) & 1) << 4;
    out[j] = d * static_cast<float>(low_q - 16);
    out[j + 16] = d * static_cast<float>(high_q - 16);
  }
}

void Decode(const BlockQ5_1& block, float* out) {
  const float d = HalfToFloat(block.d);
  const float m = HalfToFloat(block.m);
  const uint32_t high = Load<uint32_t>(block.qh);
  for (int j = 0; j < 16; ++j) {
    const int low_q = (block.qs[j] & 15) | static_cast<int>(high >> j & 1) << 4;
    const int high_q = (block.qs[j] >> 4) | static_cast<int>(high >> (j + 16) & 1) << 4;
    out[j] = d * static_cast<float>(low_q) + m;
    out[j + 16] = d * static_cast<float>(high_q) + m;
  }
}

void Decode(const BlockQ8_0& block, float* out) {
  const float d = HalfToFloat(block.d);
  for (int j = 0; j < 32; ++j) out[j] = d * static_cast<float>(block.qs[j]);
}

void Decode(const BlockQ4_K& block, float* out) {
  const float d = HalfToFloat(block.d);
  const float dmin = HalfToFloat(block.dmin);
  const ScalesK scales = UnpackScalesK(block.scales);
  for (int s = 0; s < 8; ++s) {
    // Two sub-blocks share 32 bytes: the even one has the low nibbles.
    const uint8_t* qs = block.qs + s / 2 * 32;
    const int shift = s % 2 * 4;
    const float scale = d * static_cast<float>(scales.scale[s]);
    const float min = dmin * static_cast<float>(scales.min[s]);
    for (int j = 0; j < 32; ++j) {
      out[s * 32 + j] = scale * static_cast<float>(qs[j] >> shift & 15) - min;
    }
  }
}

void Decode(const BlockQ5_K& block, float* out) {
  const float d = HalfToFloat(block.d);
  const float dmin = HalfToFloat(block.dmin);
  const ScalesK scales = UnpackScalesK(block.scales);
  for (int s = 0; s < 8; ++s) {
    const uint8_t* qs = block.qs + s / 2 * 32;
    const int shift = s % 2 * 4;
    const float scale = d * static_cast<float>(scales.scale[s]);
    const float min = dmin * static_cast<float>(scales.min[s]);
    for (int j = 0; j < 32; ++j) {
      const int q = (qs[j] >> shift & 15) | (block.qh[j] >> s & 1) << 4;
      out[s * 32 + j] = scale * static_cast<float>(q) - min;
    }
  }
}

void Decode(const BlockQ6_K& block, float* out) {
  const float d = HalfToFloat(block.d);
  for (int s = 0; s < 16; ++s) {
    // Per half of 128: low nibbles of 64 bytes, then their high nibbles; qh has two bits for each
    // quarter.
    const int half = s / 8, quarter = s % 8 / 2, first = s % 2 * 16;
    const uint8_t* ql = block.ql + half * 64 + quarter % 2 * 32 + first;
    const uint8_t* qh = block.qh + half * 32 + first;
    const int low_shift = quarter / 2 * 4;
    const int high_shift = quarter * 2;
    const float scale = d * static_cast<float>(block.scales[s]);
    for (int j = 0; j < 16; ++j) {
      const int q = (ql[j] >> low_shift & 15) | (qh[j] >> high_shift & 3) << 4;
      out[s * 16 + j] = scale * static_cast<float>(q - 32);
    }
  }
}

template <class Block, int kElems>
void DecodeRow(const uint8_t* row, uint64_t cols, float* out) {
  for (uint64_t i = 0; i < cols; i += kElems, row += sizeof(Block)) {
    Decode(Load<Block>(row), out + i);
  }
}

}  // namespace

float F16ToF32(uint16_t bits) { return HalfToFloat(bits); }

uint16_t F32ToF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {  // NaN: quiet, the payload's upper bits kept
    half = 0x7e00u | (magnitude >> 13 & 0x3ffu);
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    half = 0x7c00u;
  } else if (magnitude <
             0x38800000u) {  // below 2^-14: adding 0.5 rounds at 2^-24, the half's last place
    constexpr uint32_t kHalf = 0x3f000000u;
    half = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + std::bit_cast<float>(kHalf)) -
           kHalf;
  } else {
    const uint32_t odd = magnitude >> 13 & 1;
    half = (magnitude - (uint32_t{127 - 15} << 23) + 0xfffu + odd) >> 13;
  }
  return static_cast<uint16_t>(sign | half);
}

float BF16ToF32(uint16_t bits) { return BrainToFloat(bits); }

uint16_t F32ToBF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

void DequantizeRow(DType type, const uint8_t* row, uint64_t cols, float* out) {
  TS_CHECK(cols % InfoOf(type).block_elems == 0);
  switch (type) {
    case DType::kF32:
      std::memcpy(out, row, cols * sizeof(float));
      return;
    case DType::kF16:
      for (uint64_t i = 0; i < cols; ++i) out[i] = HalfToFloat(Load<uint16_t>(row + 2 * i));
      return;
    case DType::kBF16:
      for (uint64_t i = 0; i < cols; ++i) out[i] = BrainToFloat(Load<uint16_t>(row + 2 * i));
      return;
    case DType::kQ4_0:
      return DecodeRow<BlockQ4_0, 32>(row, cols, out);
    case DType::kQ4_1:
      return DecodeRow<BlockQ4_1, 32>(row, cols, out);
    case DType::kQ5_0:
      return DecodeRow<BlockQ5_0, 32>(row, cols, out);
    case DType::kQ5_1:
      return DecodeRow<BlockQ5_1, 32>(row, cols, out);
    case DType::kQ8_0:
      return DecodeRow<BlockQ8_0, 32>(row, cols, out);
    case DType::kQ4_K:
      return DecodeRow<BlockQ4_K, 256>(row, cols, out);
    case DType::kQ5_K:
      return DecodeRow<BlockQ5_K, 256>(row, cols, out);
    case DType::kQ6_K:
      return DecodeRow<BlockQ6_K, 256>(row, cols, out);
  }
  TS_CHECK(false && "a DType outside its enumerators");
}

}  // namespace tinyserve
