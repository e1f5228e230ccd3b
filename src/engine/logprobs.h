// Log-probabilities of logits.
#ifndef TINYSERVE_ENGINE_LOGPROBS_H_
#define TINYSERVE_ENGINE_LOGPROBS_H_

#include <cstdint>
#include <span>
#include <vector>

#include "tinyserve/engine.h"

namespace tinyserve {

// log(sum(exp(x))), stable.
float LogSumExp(std::span<const float> logits);
// The `n` likeliest tokens, best first, equal ones by their ids. `log_sum`: LogSumExp(logits).
std::vector<TokenLogprob> TopLogprobs(std::span<const float> logits, float log_sum, uint32_t n);

}  // namespace tinyserve

#endif  // TINYSERVE_ENGINE_LOGPROBS_H_
