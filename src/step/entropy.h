// How sure a model is of its next token.
#ifndef TINYSERVE_STEP_ENTROPY_H_
#define TINYSERVE_STEP_ENTROPY_H_

#include <span>

namespace tinyserve {

// -sum p log p of softmax(logits), nats: from 0, one token has it all, to log(logits.size()). In
// f32, off by less than 1e-4; not finite where a logit is not. REQUIRES: at least one logit.
double EntropyOf(std::span<const float> logits);

}  // namespace tinyserve

#endif  // TINYSERVE_STEP_ENTROPY_H_
