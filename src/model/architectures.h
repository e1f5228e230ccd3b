// The equations that exist. A relative of one of them is a row in config.cc, not a file.
#ifndef TINYSERVE_MODEL_ARCHITECTURES_H_
#define TINYSERVE_MODEL_ARCHITECTURES_H_

#include <memory>

#include "model/model.h"

namespace tinyserve {

// Llama (arXiv 2302.13971) and its relatives: RMS norm, RoPE, grouped heads, SwiGLU; biases on q,
// k, v where the file has them.
std::unique_ptr<Model> MakeLlama();
// GPT-2 (Radford et al. 2019): learned positions, layer norm, fused qkv, GELU, biases everywhere.
std::unique_ptr<Model> MakeGpt2();

}  // namespace tinyserve

#endif  // TINYSERVE_MODEL_ARCHITECTURES_H_
