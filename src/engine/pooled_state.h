// The hidden states of a prompt's tokens made one vector.
#ifndef TINYSERVE_ENGINE_POOLED_STATE_H_
#define TINYSERVE_ENGINE_POOLED_STATE_H_

#include <cstdint>
#include <span>
#include <vector>

namespace tinyserve {

// Sums in the order of the tokens and in double, so that a mean does not depend on how the prompt
// was cut into chunks.
class PooledState {
 public:
  // REQUIRES: every state has the same size.
  void Add(std::span<const float> state);
  void Clear() { sum_.clear(); }
  // The mean's direction: of length 1, or all 0 where the mean is. Empty before any Add.
  std::vector<float> Unit() const;

 private:
  std::vector<double> sum_;
};

}  // namespace tinyserve

#endif  // TINYSERVE_ENGINE_POOLED_STATE_H_
