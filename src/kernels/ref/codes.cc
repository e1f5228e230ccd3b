#include "kernels/ref/codes.h"

#include <cstring>

#include "base/check.h"
#include "tensor/blocks.h"
#include "tensor/convert.h"

namespace tinyserve::ref {
namespace {

template <class Block>
Block LoadBlock(const uint8_t* row, uint32_t index) {
  Block block;
  std::memcpy(&block, row + uint64_t{index} * sizeof block, sizeof block);
  return block;
}

// Code i of a block of 32 nibbles: bytes hold i (low) and i + 16 (high).
int Nibble(const uint8_t* qs, int i) { return i < 16 ? qs[i] & 15 : qs[i - 16] >> 4; }

int FifthBit(const uint8_t* qh, int i) { return (qh[i / 8] >> i % 8 & 1) << 4; }

// Scale and minimum of sub-block s (0..7) of a K block: six bits each, the upper two of s >= 4 kept
// in the top of the first eight bytes.
void SubScale(const uint8_t* packed, int s, int* scale, int* min) {
  if (s < 4) {
    *scale = packed[s] & 63;
    *min = packed[s + 4] & 63;
  } else {
    *scale = (packed[s + 4] & 15) | (packed[s - 4] >> 6) << 4;
    *min = (packed[s + 4] >> 4) | (packed[s] >> 6) << 4;
  }
}

CodeBlock FromQ4_0(const BlockQ4_0& block) {
  CodeBlock out;
  for (int i = 0; i < 32; ++i) out.code[i] = static_cast<int16_t>(Nibble(block.qs, i) - 8);
  out.scale = F16ToF32(block.d);
  out.min = 0;
  return out;
}

CodeBlock FromQ4_1(const BlockQ4_1& block) {
  CodeBlock out;
  for (int i = 0; i < 32; ++i) out.code[i] = static_cast<int16_t>(Nibble(block.qs, i));
  out.scale = F16ToF32(block.d);
  out.min = F16ToF32(block.m);
  return out;
}

CodeBlock FromQ5_0(const BlockQ5_0& block) {
  CodeBlock out;
  for (int i = 0; i < 32; ++i) {
    out.code[i] = static_cast<int16_t>((Nibble(block.qs, i) | FifthBit(block.qh, i)) - 16);
  }
  out.scale = F16ToF32(block.d);
  out.min = 0;
  return out;
}

CodeBlock FromQ5_1(const BlockQ5_1& block) {
  CodeBlock out;
  for (int i = 0; i < 32; ++i) {
    out.code[i] = static_cast<int16_t>(Nibble(block.qs, i) | FifthBit(block.qh, i));
  }
  out.scale = F16ToF32(block.d);
  out.min = F16ToF32(block.m);
  return out;
}

CodeBlock FromQ8_0(const BlockQ8_0& block) {
  CodeBlock out;
  for (int i = 0; i < 32; ++i) out.code[i] = block.qs[i];
  out.scale = F16ToF32(block.d);
  out.min = 0;
  return out;
}

// Two sub-blocks share 32 bytes; the even one has the low nibbles. `qh` is null for Q4_K.
CodeBlock FromQ4Q5K(uint16_t d, uint16_t dmin, const uint8_t* scales, const uint8_t* qs,
                    const uint8_t* qh, int s) {
  CodeBlock out;
  const uint8_t* bytes = qs + s / 2 * 32;
  for (int i = 0; i < 32; ++i) {
    const int fifth = qh == nullptr ? 0 : (qh[i] >> s & 1) << 4;
    out.code[i] = static_cast<int16_t>((bytes[i] >> s % 2 * 4 & 15) | fifth);
  }
  int scale, min;
  SubScale(scales, s, &scale, &min);
  out.scale = F16ToF32(d) * static_cast<float>(scale);
  out.min = -(F16ToF32(dmin) * static_cast<float>(min));
  return out;
}

CodeBlock FromQ6K(const BlockQ6_K& block, int s) {
  CodeBlock out;
  const int half = s / 4, quarter = s % 4;
  const uint8_t* ql = block.ql + half * 64 + quarter % 2 * 32;
  const uint8_t* qh = block.qh + half * 32;
  for (int i = 0; i < 32; ++i) {
    const int q = (ql[i] >> quarter / 2 * 4 & 15) | (qh[i] >> quarter * 2 & 3) << 4;
    out.code[i] = static_cast<int16_t>((q - 32) * block.scales[s * 2 + i / 16]);
  }
  out.scale = F16ToF32(block.d);
  out.min = 0;
  return out;
}

}  // namespace

bool HasCodes(DType type) {
  return type != DType::kF32 && type != DType::kF16 && type != DType::kBF16;
}

CodeBlock DecodeCodes(DType type, const uint8_t* row, uint32_t block) {
  const int s = static_cast<int>(block % 8);
  switch (type) {
    case DType::kQ4_0:
      return FromQ4_0(LoadBlock<BlockQ4_0>(row, block));
    case DType::kQ4_1:
      return FromQ4_1(LoadBlock<BlockQ4_1>(row, block));
    case DType::kQ5_0:
      return FromQ5_0(LoadBlock<BlockQ5_0>(row, block));
    case DType::kQ5_1:
      return FromQ5_1(LoadBlock<BlockQ5_1>(row, block));
    case DType::kQ8_0:
      return FromQ8_0(LoadBlock<BlockQ8_0>(row, block));
    case DType::kQ4_K: {
      const auto b = LoadBlock<BlockQ4_K>(row, block / 8);
      return FromQ4Q5K(b.d, b.dmin, b.scales, b.qs, nullptr, s);
    }
    case DType::kQ5_K: {
      const auto b = LoadBlock<BlockQ5_K>(row, block / 8);
      return FromQ4Q5K(b.d, b.dmin, b.scales, b.qs, b.qh, s);
    }
    case DType::kQ6_K:
      return FromQ6K(LoadBlock<BlockQ6_K>(row, block / 8), s);
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
      break;
  }
  TS_CHECK(false && "a type without codes");
  return {};
}

}  // namespace tinyserve::ref
