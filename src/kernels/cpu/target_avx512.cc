// Target avx512: AVX-512 F, BW, DQ, VL. See docs/ARCHITECTURE.md, "Targets".
#define TS_TARGET_NAME "avx512"
#define TS_TARGET_TABLE Avx512Kernels
#include "kernels/cpu/simd_avx512.inl"
#include "kernels/cpu/target.inl"
