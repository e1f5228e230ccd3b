// Packing: rows in a file's own format -> one panel in a layout of formats.inl. Plain code, run
// once at load.
namespace tinyserve {
namespace {

// Nibble codes of row r; byte j of `bytes` holds columns j (low) and j + 16 (high), as in the
// file's blocks.
TS_INLINE void PutNibbles(const uint8_t* bytes, uint32_t r, uint8_t* codes) {
  for (uint32_t v = 0; v < 4; ++v)
    StoreWord(codes + v * kVectorBytes + 4 * r, LoadWord(bytes + 4 * v));
}

TS_INLINE void PutBytes(const uint8_t* bytes, uint32_t r, uint8_t* codes) {
  for (uint32_t v = 0; v < 8; ++v)
    StoreWord(codes + v * kVectorBytes + 4 * r, LoadWord(bytes + 4 * v));
}

// Five-bit codes from nibbles and the bits of qh.
TS_INLINE void PutFiveBits(const uint8_t* qs, const uint8_t* qh, uint32_t r, uint8_t* codes) {
  const uint32_t fifth = LoadWord(qh);
  uint8_t bytes[32];
  for (uint32_t i = 0; i < 16; ++i) {
    bytes[i] = (uint8_t)((qs[i] & 15) | (fifth >> i & 1) << 4);
    bytes[i + 16] = (uint8_t)(qs[i] >> 4 | (fifth >> (i + 16) & 1) << 4);
  }
  PutBytes(bytes, r, codes);
}

TS_INLINE void PackBlock(const BlockQ4_0& b, uint32_t r, uint8_t* unit) {
  StoreHalf(unit + 2 * r, b.d);
  PutNibbles(b.qs, r, unit + FormatQ4_0::kHeaderBytes);
}

TS_INLINE void PackBlock(const BlockQ4_1& b, uint32_t r, uint8_t* unit) {
  StoreHalf(unit + 2 * r, b.d);
  StoreHalf(unit + FormatQ4_1::kScaleBytes + 2 * r, b.m);
  PutNibbles(b.qs, r, unit + FormatQ4_1::kHeaderBytes);
}

TS_INLINE void PackBlock(const BlockQ8_0& b, uint32_t r, uint8_t* unit) {
  StoreHalf(unit + 2 * r, b.d);
  uint8_t bytes[32];
  for (uint32_t i = 0; i < 32; ++i) bytes[i] = (uint8_t)(b.qs[i] + FormatQ8_0::kOffset);
  PutBytes(bytes, r, unit + FormatQ8_0::kHeaderBytes);
}

TS_INLINE void PackBlock(const BlockQ5_0& b, uint32_t r, uint8_t* unit) {
  StoreHalf(unit + 2 * r, b.d);
  PutFiveBits(b.qs, b.qh, r, unit + FormatQ5_0::kHeaderBytes);
}

TS_INLINE void PackBlock(const BlockQ5_1& b, uint32_t r, uint8_t* unit) {
  StoreHalf(unit + 2 * r, b.d);
  StoreHalf(unit + FormatQ5_1::kScaleBytes + 2 * r, b.m);
  PutFiveBits(b.qs, b.qh, r, unit + FormatQ5_1::kHeaderBytes);
}

// Two blocks of a K type share 32 bytes: the even one has the low nibbles.
TS_INLINE void PackBlock(const BlockQ4_K& b, uint32_t r, uint8_t* unit) {
  StoreHalf(unit + 2 * r, b.d);
  StoreHalf(unit + 2 * kLanes + 2 * r, b.dmin);
  for (uint32_t i = 0; i < 3; ++i) {
    StoreWord(unit + 4 * kLanes + i * kVectorBytes + 4 * r, LoadWord(b.scales + 4 * i));
  }
  for (uint32_t s = 0; s < 8; ++s) {
    const uint8_t* qs = b.qs + s / 2 * 32;
    const uint32_t shift = s % 2 * 4;
    uint8_t bytes[16];
    for (uint32_t i = 0; i < 16; ++i) {
      bytes[i] = (uint8_t)((qs[i] >> shift & 15) | (qs[i + 16] >> shift & 15) << 4);
    }
    PutNibbles(bytes, r, unit + FormatQ4_K::kHeaderBytes + s * 16 * kLanes);
  }
}

// Becomes eight units of 32 columns with f32 scales: the products d * sc and -(dmin * mn), exact to
// the formula.
TS_INLINE void PackBlock(const BlockQ5_K& b, uint32_t r, uint8_t* unit) {
  const float d = _cvtsh_ss(b.d), dmin = _cvtsh_ss(b.dmin);
  for (uint32_t s = 0; s < 8; ++s, unit += kStrips * FormatQ5_K::kUnitBytes) {
    const uint8_t* packed = b.scales;
    const int sc = s < 4 ? packed[s] & 63 : (packed[s + 4] & 15) | packed[s - 4] >> 6 << 4;
    const int mn = s < 4 ? packed[s + 4] & 63 : packed[s + 4] >> 4 | packed[s] >> 6 << 4;
    const float scale = d * (float)sc, min = -(dmin * (float)mn);
    __builtin_memcpy(unit + 4 * r, &scale, 4);
    __builtin_memcpy(unit + FormatQ5_K::kScaleBytes + 4 * r, &min, 4);
    const uint8_t* qs = b.qs + s / 2 * 32;
    uint8_t bytes[32];
    for (uint32_t i = 0; i < 32; ++i) {
      bytes[i] = (uint8_t)((qs[i] >> s % 2 * 4 & 15) | (b.qh[i] >> s & 1) << 4);
    }
    PutBytes(bytes, r, unit + FormatQ5_K::kHeaderBytes);
  }
}

TS_INLINE void PackBlock(const BlockQ6_K& b, uint32_t r, uint8_t* unit) {
  StoreHalf(unit + 2 * r, b.d);
  for (uint32_t i = 0; i < 4; ++i) {
    StoreWord(unit + FormatQ6_K::kScalesAt + i * kVectorBytes + 4 * r, LoadWord(b.scales + 4 * i));
  }
  for (uint32_t s = 0; s < 8; ++s) {
    const uint32_t half = s / 4, quarter = s % 4;
    const uint8_t* ql = b.ql + half * 64 + quarter % 2 * 32;
    const uint8_t* qh = b.qh + half * 32;
    uint8_t codes[32], nibbles[16], tops[8] = {};
    for (uint32_t i = 0; i < 32; ++i) {
      codes[i] = (uint8_t)((ql[i] >> quarter / 2 * 4 & 15) | (qh[i] >> quarter * 2 & 3) << 4);
    }
    for (uint32_t i = 0; i < 16; ++i) {
      nibbles[i] = (uint8_t)((codes[i] & 15) | (codes[i + 16] & 15) << 4);
      const uint32_t v = i / 4;
      tops[v / 2 * 4 + i % 4] |= (uint8_t)((codes[i] >> 4 | codes[i + 16] >> 4 << 2) << v % 2 * 4);
    }
    uint8_t* block = unit + FormatQ6_K::kHeaderBytes + s * FormatQ6_K::kBlockBytes;
    PutNibbles(nibbles, r, block);
    for (uint32_t t = 0; t < 2; ++t) {
      StoreWord(block + (4 + t) * kVectorBytes + 4 * r, LoadWord(tops + 4 * t));
    }
  }
}

// Every block of every row. A source block becomes kUnits units of format F.
template <class Block, class F, uint32_t kUnits = 1>
void PackBlocks(const uint8_t* const* rows, uint32_t blocks, uint8_t* panel) {
  for (uint32_t row = 0; row < kPanelRows; ++row) {
    if (rows[row] == nullptr) continue;
    uint8_t* strip = panel + row / kLanes * F::kUnitBytes;
    for (uint32_t i = 0; i < blocks; ++i) {
      Block block;
      __builtin_memcpy(&block, rows[row] + (uint64_t)i * sizeof block, sizeof block);
      PackBlock(block, row % kLanes, strip + (uint64_t)i * kUnits * kStrips * F::kUnitBytes);
    }
  }
}

// Where element (row, col) of a panel of elements lies: [cols / group][row][group].
TS_INLINE uint64_t ElementAt(uint32_t row, uint32_t col, uint32_t group) {
  return ((uint64_t)(col / group) * kPanelRows + row) * group + col % group;
}

// Elements as they are; the last group is padded with zeros.
template <class Element>
void PackElements(const uint8_t* const* rows, uint32_t cols, uint32_t group, uint8_t* panel) {
  for (uint32_t row = 0; row < kPanelRows; ++row) {
    if (rows[row] == nullptr) continue;
    for (uint32_t c = 0; c < cols; ++c) {
      __builtin_memcpy(panel + ElementAt(row, c, group) * sizeof(Element),
                       rows[row] + (uint64_t)c * sizeof(Element), sizeof(Element));
    }
  }
}

}  // namespace
}  // namespace tinyserve
