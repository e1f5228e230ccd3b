// The byte layouts of GGML's quantised blocks, as found in GGUF files (little endian, packed).
// `d` and `m` are IEEE half floats. Formulas give the value w[i] of element i.
#ifndef TINYSERVE_TENSOR_BLOCKS_H_
#define TINYSERVE_TENSOR_BLOCKS_H_

#include <cstdint>

namespace tinyserve {

// 32 elements: w[i] = d * (q[i] - 8); qs[j] holds i=j (low nibble) and i=j+16 (high).
struct BlockQ4_0 {
  uint16_t d;
  uint8_t qs[16];
};
struct BlockQ4_1 {  // w[i] = d * q[i] + m; nibbles as in Q4_0
  uint16_t d, m;
  uint8_t qs[16];
};
struct BlockQ5_0 {  // w[i] = d * (q[i] - 16); bit i of qh (little endian) is bit 4 of q[i]
  uint16_t d;
  uint8_t qh[4];
  uint8_t qs[16];
};
struct BlockQ5_1 {  // w[i] = d * q[i] + m
  uint16_t d, m;
  uint8_t qh[4];
  uint8_t qs[16];
};
struct BlockQ8_0 {  // w[i] = d * q[i]
  uint16_t d;
  int8_t qs[32];
};
// 256 elements in 8 sub-blocks of 32: w = d * sc[s] * q - dmin * mn[s]; sc, mn 6 bits each.
struct BlockQ4_K {
  uint16_t d, dmin;
  uint8_t scales[12];
  uint8_t qs[128];
};
struct BlockQ5_K {  // as Q4_K with a fifth bit in qh
  uint16_t d, dmin;
  uint8_t scales[12];
  uint8_t qh[32];
  uint8_t qs[128];
};
// 256 elements in 16 sub-blocks of 16: w = d * sc[s] * (q - 32); q 6 bits, sc int8.
struct BlockQ6_K {
  uint8_t ql[128];
  uint8_t qh[64];
  int8_t scales[16];
  uint16_t d;
};
static_assert(sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20 && sizeof(BlockQ5_0) == 22 &&
              sizeof(BlockQ5_1) == 24 && sizeof(BlockQ8_0) == 34 && sizeof(BlockQ4_K) == 144 &&
              sizeof(BlockQ5_K) == 176 && sizeof(BlockQ6_K) == 210);

}  // namespace tinyserve

#endif  // TINYSERVE_TENSOR_BLOCKS_H_
