// Attention by plain loops in f32: the oracle that every other target is held against.
//
// A page is K [page_tokens][head_dim], then V [page_tokens][head_dim], in the shape's element type.
// Sums run over increasing channels and increasing positions; the softmax of a prompt row is exact
// (its maximum is taken over all keys before the first exponential).
#ifndef TINYSERVE_KERNELS_REF_ATTENTION_H_
#define TINYSERVE_KERNELS_REF_ATTENTION_H_

#include "kernels/kernels.h"

namespace tinyserve::ref {

// The entries of the kernel table (kernels/kernels.h).
void PageBytes(const KvShape* shape, uint32_t* k_bytes, uint32_t* v_bytes);
void Append(const AppendArgs* args);
void ReadToken(const KvShape* shape, const uint8_t* page, uint32_t v_offset, const uint8_t* spread,
               uint32_t slot, float* k, float* v);
uint64_t DecodeScratchBytes(const KvShape* shape, uint32_t group, uint32_t split_tokens);
void AttendDecode(const DecodeArgs* args);
void MergePartials(const Partial* partials, uint32_t n, uint32_t group, uint32_t head_dim,
                   float* out);
uint64_t PromptScratchBytes(const KvShape* shape, uint32_t group, uint32_t rows);
void AttendPrompt(const PromptArgs* args);

}  // namespace tinyserve::ref

#endif  // TINYSERVE_KERNELS_REF_ATTENTION_H_
