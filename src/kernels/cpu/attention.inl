// Attention of a target unit: pages, decode and prompt kernels over the primitives of simd_*.inl.
// docs/kernels/attention.md has the layouts, the figures and what was tried.
#include "kernels/cpu/attention_decode.inl"
#include "kernels/cpu/attention_prompt.inl"
