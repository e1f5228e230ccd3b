// Target avx512-vnni: AVX-512 with VNNI. See docs/ARCHITECTURE.md, "Targets".
#define TS_TARGET_NAME "avx512-vnni"
#define TS_TARGET_TABLE Avx512VnniKernels
#include "kernels/cpu/simd_avx512.inl"
#include "kernels/cpu/target.inl"
