// Packed layouts of quantised weights: how the blocks of interleaved rows lie in a panel.
//
// Lane r of a vector is row r of a strip, so a product needs no horizontal sums and its results are
// stored as they stand. A panel is kStrips strips of kLanes rows, interleaved unit by unit: a
// product walks both at once and still reads one stream of bytes. A unit holds 32 columns (or, of
// the K types, 256) of a strip's rows: scales first, [r], then codes. A code vector holds four
// consecutive columns of each row, [r][4], the form in which dot instructions want them:
//
//   nibbles   4 vectors a block; the low halves of vector v are columns 4v..4v+3, the high halves
//             16+4v..16+4v+3
//   bytes     8 vectors a block; vector v is columns 4v..4v+3
//
// Codes are unsigned; what a type subtracts from them (kOffset) is taken off through the sums of
// the activations. All types keep the size they have in the file, but for the Q5 kinds, which are
// widened to bytes.
#include "kernels/acts.h"
#include "tensor/blocks.h"

namespace tinyserve {
namespace {

constexpr uint32_t kBlockCols = kActBlockCols;
constexpr uint32_t kStrips = 2;  // of a panel
constexpr uint32_t kPanelRows = kStrips * kLanes;

enum class CodeKind {
  kNibbles,  // 0..15, two a byte
  kBytes5,   // 0..31
  kBytes8,   // 0..255
};

TS_INLINE uint32_t LoadWord(const void* p) {
  uint32_t word;
  __builtin_memcpy(&word, p, 4);
  return word;
}
TS_INLINE void StoreWord(void* p, uint32_t word) { __builtin_memcpy(p, &word, 4); }
TS_INLINE void StoreHalf(void* p, uint16_t half) { __builtin_memcpy(p, &half, 2); }

constexpr uint32_t CodeBytes(CodeKind kind) {
  return (kind == CodeKind::kNibbles ? 16 : 32) * kLanes;
}

// Code vector -> column `col` (0..3) of each row.
TS_INLINE VI CodeColumn(VI codes, int col) { return And(ShiftRight(codes, 8 * col), SetInt(255)); }

// Decodes 32 columns to out [32][kLanes]: w = scale * (code - offset) + min.
template <CodeKind kKind, int32_t kOffset, bool kHasMin>
TS_INLINE void DecodeBlock(const uint8_t* codes, VF scale, VF min, float* out) {
  const auto emit = [&](VI vector, uint32_t first_col) {
    for (int j = 0; j < 4; ++j) {
      VF w = Mul(scale, ToFloat(SubInt(CodeColumn(vector, j), SetInt(kOffset))));
      if constexpr (kHasMin) w = Add(w, min);
      Store(out + (first_col + (uint32_t)j) * kLanes, w);
    }
  };
  if constexpr (kKind == CodeKind::kNibbles) {
    for (uint32_t v = 0; v < 4; ++v) {
      const VI raw = LoadInt(codes + v * kVectorBytes);
      emit(And(raw, SetByte(15)), 4 * v);
      emit(And(ShiftRight(raw, 4), SetByte(15)), 16 + 4 * v);
    }
  } else {
    for (uint32_t v = 0; v < 8; ++v) emit(LoadInt(codes + v * kVectorBytes), 4 * v);
  }
}

// ---- types of one scale, and perhaps one minimum, for each 32 columns ----

template <CodeKind kKindOf, int32_t kOffsetOf, bool kMinOf, bool kF32Scales>
struct BlockFormat {
  static constexpr bool kSixBits = false;
  static constexpr CodeKind kKind = kKindOf;
  static constexpr int32_t kOffset = kOffsetOf;
  static constexpr bool kHasMin = kMinOf;
  static constexpr uint32_t kUnitBlocks = 1;
  static constexpr uint32_t kScaleBytes = (kF32Scales ? 4 : 2) * kLanes;
  static constexpr uint32_t kHeaderBytes = kScaleBytes * (kHasMin ? 2 : 1);
  static constexpr uint32_t kUnitBytes = kHeaderBytes + CodeBytes(kKind);

  // Walks the scales of a unit's blocks in order.
  struct Scales {
    const uint8_t* unit;
    TS_INLINE void Open(const uint8_t* u) { unit = u; }
    TS_INLINE VF NextScale() { return LoadScales(unit); }
    TS_INLINE VF NextMin() { return LoadScales(unit + kScaleBytes); }
  };

  static TS_INLINE VF LoadScales(const uint8_t* p) {
    if constexpr (kF32Scales) return Load((const float*)p);
    return LoadF16((const uint16_t*)p);
  }
  static TS_INLINE const uint8_t* Codes(const uint8_t* unit, uint32_t) {
    return unit + kHeaderBytes;
  }

  static void Decode(const uint8_t* unit, float* out) {
    Scales scales;
    scales.Open(unit);
    const VF scale = scales.NextScale();
    DecodeBlock<kKind, kOffset, kHasMin>(Codes(unit, 0), scale, kHasMin ? scales.NextMin() : Zero(),
                                         out);
  }
};

using FormatQ4_0 = BlockFormat<CodeKind::kNibbles, 8, false, false>;
using FormatQ4_1 = BlockFormat<CodeKind::kNibbles, 0, true, false>;
using FormatQ8_0 = BlockFormat<CodeKind::kBytes8, 128, false, false>;
using FormatQ5_0 = BlockFormat<CodeKind::kBytes5, 16, false, false>;
using FormatQ5_1 = BlockFormat<CodeKind::kBytes5, 0, true, false>;
using FormatQ5_K = BlockFormat<CodeKind::kBytes5, 0, true, true>;

// ---- Q4_K: 256 columns; d [r], dmin [r], the 12 bytes of 6-bit scales as three vectors [r][4],
// codes of 8 blocks ----

struct FormatQ4_K {
  static constexpr bool kSixBits = false;
  static constexpr CodeKind kKind = CodeKind::kNibbles;
  static constexpr int32_t kOffset = 0;
  static constexpr bool kHasMin = true;
  static constexpr uint32_t kUnitBlocks = 8;
  static constexpr uint32_t kHeaderBytes = 16 * kLanes;
  static constexpr uint32_t kUnitBytes = kHeaderBytes + kUnitBlocks * CodeBytes(kKind);

  struct Scales {
    VF d, negative_dmin;
    VI scale[2], min[2];  // bytes: blocks 0..3 and 4..7 of each row; the next one lowest
    uint32_t block;

    TS_INLINE void Open(const uint8_t* unit) {
      block = 0;
      d = LoadF16((const uint16_t*)unit);
      negative_dmin = Sub(Zero(), LoadF16((const uint16_t*)(unit + 2 * kLanes)));
      const VI a = LoadInt(unit + 4 * kLanes);
      const VI b = LoadInt(unit + 8 * kLanes);
      const VI c = LoadInt(unit + 12 * kLanes);
      scale[0] = And(a, SetByte(63));
      min[0] = And(b, SetByte(63));
      scale[1] = Or(And(c, SetByte(15)), And(ShiftRight(a, 2), SetByte(48)));
      min[1] = Or(And(ShiftRight(c, 4), SetByte(15)), And(ShiftRight(b, 2), SetByte(48)));
    }
    TS_INLINE VF NextScale() {
      if (block++ == 4) scale[0] = scale[1], min[0] = min[1];
      const VF s = Mul(d, ToFloat(And(scale[0], SetInt(255))));
      scale[0] = ShiftRight(scale[0], 8);
      return s;
    }
    TS_INLINE VF NextMin() {  // after NextScale
      const VF m = Mul(negative_dmin, ToFloat(And(min[0], SetInt(255))));
      min[0] = ShiftRight(min[0], 8);
      return m;
    }
  };

  static TS_INLINE const uint8_t* Codes(const uint8_t* unit, uint32_t block) {
    return unit + kHeaderBytes + block * CodeBytes(kKind);
  }
  static void Decode(const uint8_t* unit, float* out) {
    Scales scales;
    scales.Open(unit);
    for (uint32_t b = 0; b < kUnitBlocks; ++b) {
      const VF scale = scales.NextScale();
      const VF min = scales.NextMin();
      DecodeBlock<kKind, kOffset, kHasMin>(Codes(unit, b), scale, min,
                                           out + b * kBlockCols * kLanes);
    }
  }
};

// ---- Q6_K: 256 columns; d [r], 16 int8 scales as four vectors [r][4], then for each block of 32
// columns four vectors of low nibbles as above and two vectors of upper bit pairs: vector v / 2,
// bits 4 (v % 2) for the low nibbles of vector v and 4 (v % 2) + 2 for its high ones. Columns 0-15
// of a block have one scale, columns 16-31 the next ----

struct FormatQ6_K {
  static constexpr bool kSixBits = true;
  static constexpr uint32_t kUnitBlocks = 8;
  static constexpr uint32_t kScalesAt = 2 * kLanes;
  static constexpr uint32_t kHeaderBytes = 18 * kLanes;
  static constexpr uint32_t kBlockBytes = 24 * kLanes;
  static constexpr uint32_t kUnitBytes = kHeaderBytes + kUnitBlocks * kBlockBytes;
  static constexpr int32_t kOffset = 32;

  static TS_INLINE const uint8_t* Codes(const uint8_t* unit, uint32_t block) {
    return unit + kHeaderBytes + block * kBlockBytes;
  }
  // Of the low nibbles, and of the upper bits. Opaque: a compiler short of registers makes such
  // constants anew at each use, in three instructions, where a load from the stack is free.
  struct Masks {
    VI low = SetByte(15), top = SetByte(48);
    TS_INLINE Masks() {
      TS_OPAQUE(low);
      TS_OPAQUE(top);
    }
  };
  // Codes of vector v, 0..63: of its low nibbles, and of its high ones.
  static TS_INLINE void LoadCodes(const uint8_t* codes, uint32_t v, const Masks& masks, VI* low,
                                  VI* high) {
    const VI raw = LoadInt(codes + v * kVectorBytes);
    const VI top = LoadInt(codes + (4 + v / 2) * kVectorBytes);
    const VI top_low = v % 2 == 0 ? ShiftLeft(top, 4) : top;
    const VI top_high = v % 2 == 0 ? ShiftLeft(top, 2) : ShiftRight(top, 2);
    *low = Or(And(raw, masks.low), And(top_low, masks.top));
    *high = Or(And(ShiftRight(raw, 4), masks.low), And(top_high, masks.top));
  }

  static void Decode(const uint8_t* unit, float* out) {
    const Masks masks;
    const VF d = LoadF16((const uint16_t*)unit);
    for (uint32_t b = 0; b < kUnitBlocks; ++b, out += kBlockCols * kLanes) {
      VI pair = LoadInt(unit + kScalesAt + b / 2 * kVectorBytes);
      if (b % 2 == 1) pair = ShiftRight(pair, 16);
      const VI low_scale = ShiftRightSigned(ShiftLeft(pair, 24), 24);
      const VI high_scale = ShiftRightSigned(ShiftLeft(pair, 16), 24);
      for (uint32_t v = 0; v < 4; ++v) {
        VI low, high;
        LoadCodes(Codes(unit, b), v, masks, &low, &high);
        for (int j = 0; j < 4; ++j) {
          const uint32_t col = 4 * v + (uint32_t)j;
          const VI q_low = SubInt(CodeColumn(low, j), SetInt(kOffset));
          const VI q_high = SubInt(CodeColumn(high, j), SetInt(kOffset));
          Store(out + col * kLanes, Mul(Mul(d, ToFloat(low_scale)), ToFloat(q_low)));
          Store(out + (col + 16) * kLanes, Mul(Mul(d, ToFloat(high_scale)), ToFloat(q_high)));
        }
      }
    }
  }
};

}  // namespace
}  // namespace tinyserve
