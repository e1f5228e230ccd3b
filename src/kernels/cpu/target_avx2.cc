// Target avx2: AVX2, FMA, F16C, BMI2, the floor. See docs/ARCHITECTURE.md, "Targets".
#define TS_TARGET_NAME "avx2"
#define TS_TARGET_TABLE Avx2Kernels
#include "kernels/cpu/simd_avx2.inl"
#include "kernels/cpu/target.inl"
