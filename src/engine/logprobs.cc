#include "engine/logprobs.h"

#include <algorithm>
#include <cmath>

namespace tinyserve {

float LogSumExp(std::span<const float> logits) {
  float top = -INFINITY;
  for (float x : logits) top = std::max(top, x);
  if (!std::isfinite(top)) return top;
  double sum = 0;
  for (float x : logits) sum += std::exp(x - top);
  return top + static_cast<float>(std::log(sum));
}

std::vector<TokenLogprob> TopLogprobs(std::span<const float> logits, float log_sum, uint32_t n) {
  std::vector<TokenLogprob> best;  // by falling logits
  if (n == 0) return best;
  best.reserve(n + size_t{1});
  for (size_t t = 0; t < logits.size(); ++t) {
    if (best.size() == n && !(logits[t] > best.back().logprob)) continue;
    // After all that are as good: ids come in rising order.
    const auto at = std::find_if(best.begin(), best.end(), [&](const TokenLogprob& other) {
      return logits[t] > other.logprob;
    });
    best.insert(at, {static_cast<int32_t>(t), logits[t]});
    if (best.size() > n) best.pop_back();
  }
  for (TokenLogprob& token : best) token.logprob -= log_sum;
  return best;
}

}  // namespace tinyserve
