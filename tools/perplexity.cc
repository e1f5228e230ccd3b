#include "tools/perplexity.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace tinyserve {

std::vector<Window> PlanWindows(uint32_t tokens, uint32_t window_tokens, uint32_t stride) {
  TS_CHECK(stride > 0 && stride <= window_tokens);
  std::vector<Window> windows;
  uint32_t scored = 0;
  for (uint32_t first = 0; scored < tokens; first += stride) {
    const uint32_t last = first + std::min(window_tokens, tokens - first);
    windows.push_back({first, scored, last});
    scored = last;
  }
  return windows;
}

void Perplexity::Add(std::span<const float> logprobs) {
  for (float logprob : logprobs) {
    const double nll = -static_cast<double>(logprob);
    sum_ += nll;
    squares_ += nll * nll;
  }
  tokens_ += logprobs.size();
}

double Perplexity::mean_nll() const { return sum_ / static_cast<double>(tokens_); }

double Perplexity::perplexity() const { return std::exp(mean_nll()); }

double Perplexity::error() const {
  const double n = static_cast<double>(tokens_);
  const double variance = std::max(0.0, squares_ / n - mean_nll() * mean_nll());
  return perplexity() * std::sqrt(variance / n);
}

}  // namespace tinyserve
