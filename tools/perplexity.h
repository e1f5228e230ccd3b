// Perplexity of a text that is longer than the context: windows that slide over it.
#ifndef TINYSERVE_TOOLS_PERPLEXITY_H_
#define TINYSERVE_TOOLS_PERPLEXITY_H_

#include <cstdint>
#include <span>
#include <vector>

namespace tinyserve {

// Window over text tokens [first, last); tokens [scored, last) are scored with what stands before
// them in the window.
//
//   window 0   |=========scored========|
//   window 1           |----context----|==scored==|        each starts `stride` after the last
struct Window {
  uint32_t first, scored, last;
};

// Windows of at most `window_tokens` text tokens that score every token of [0, tokens) once.
// REQUIRES: 0 < stride <= window_tokens.
std::vector<Window> PlanWindows(uint32_t tokens, uint32_t window_tokens, uint32_t stride);

class Perplexity {
 public:
  void Add(std::span<const float> logprobs);

  uint64_t tokens() const { return tokens_; }
  double mean_nll() const;  // nats a token
  double perplexity() const;
  // Standard error of perplexity(), as if the tokens were independent.
  double error() const;

 private:
  uint64_t tokens_ = 0;
  double sum_ = 0, squares_ = 0;  // of negative log-probabilities
};

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_PERPLEXITY_H_
