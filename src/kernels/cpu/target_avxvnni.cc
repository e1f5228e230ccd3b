// Target avx-vnni: AVX2 with the 256-bit VNNI of client CPUs. See docs/ARCHITECTURE.md, "Targets".
#define TS_TARGET_NAME "avx-vnni"
#define TS_TARGET_TABLE AvxVnniKernels
#include "kernels/cpu/simd_avx2.inl"
#include "kernels/cpu/target.inl"
