// Target avx512-bf16: AVX-512 with VNNI and BF16. See docs/ARCHITECTURE.md, "Targets".
#define TS_TARGET_NAME "avx512-bf16"
#define TS_TARGET_TABLE Avx512Bf16Kernels
#include "kernels/cpu/simd_avx512.inl"
#include "kernels/cpu/target.inl"
