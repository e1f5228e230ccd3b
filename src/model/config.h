// What a model file says about its architecture, checked: one row of configuration a model.
#ifndef TINYSERVE_MODEL_CONFIG_H_
#define TINYSERVE_MODEL_CONFIG_H_

#include <cstdint>
#include <string>
#include <vector>

#include "tensor/gguf.h"
#include "tinyserve/status.h"

namespace tinyserve {

enum class RopeScaling : uint8_t { kNone, kLinear, kYarn };

struct RopeConfig {
  uint32_t dims = 0;         // rotated channels of a head; 0: the architecture has no RoPE
  bool interleaved = false;  // pairs (2i, 2i+1); else (i, i + dims/2)
  double base = 10000;
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1;              // context extension
  uint32_t original_context = 0;  // tokens the model was trained on before the extension (YaRN)
  double attention_factor = 1;    // YaRN: multiplies the magnitude that the factor implies
  double beta_fast = 32,
         beta_slow = 1;  // YaRN: rotations over the original context that bound the ramp
};

struct ModelConfig {
  std::string architecture, name;
  uint32_t layers = 0;
  uint32_t dim = 0;       // width of the residual stream
  uint32_t heads = 0;     // query heads
  uint32_t kv_heads = 0;  // divides heads
  uint32_t head_dim = 0;
  uint32_t ffn_dim = 0;
  uint32_t vocab = 0;
  uint32_t context = 0;  // tokens the model was trained for
  float norm_eps = 0;
  RopeConfig rope;
};

// Reads `<architecture>.*` keys. Errors: kUnsupported (architecture, by name, with the list),
// kNotFound and kCorrupt (key and allowed range).
Result<ModelConfig> ReadModelConfig(const GgufFile& file);

// Frequencies in radians a token for each rotated pair [dims/2], scaling applied; `divisors`: the
// file's rope_freqs (Llama 3 scaling), empty where it has none. `magnitude` multiplies sines and
// cosines (YaRN; 1 elsewhere). Sources: RoFormer (arXiv 2104.09864) 3.4.2; YaRN (arXiv
// 2309.00071) 3.2-3.4.
std::vector<float> RopeFrequencies(const RopeConfig& rope, const std::vector<float>& divisors,
                                   float* magnitude);

}  // namespace tinyserve

#endif  // TINYSERVE_MODEL_CONFIG_H_
