// What `tinyserve eval --method` measures: how far a method's predictions are from dense ones.
// Plain arithmetic; eval_runner.h runs the model.
#ifndef TINYSERVE_TOOLS_EVAL_FIGURES_H_
#define TINYSERVE_TOOLS_EVAL_FIGURES_H_

#include <cstdint>
#include <span>
#include <vector>

namespace tinyserve {

// First tokens of at most `windows_max` disjoint windows, spread evenly over a text of `tokens`
// tokens. One more token follows each window: what its last token should predict.
std::vector<uint64_t> SpreadWindows(uint64_t tokens, uint64_t window_tokens, uint64_t windows_max);

// How a method predicts one token, beside how dense attention does.
struct TokenComparison {
  double kl;              // KL(dense || method) over the whole vocabulary, nats
  bool same_top;          // both find the same token likeliest
  double dense_nll, nll;  // -log p of the token that follows in the text
  bool dense_hit, hit;    // that token is the likeliest
};

// Logits of both after the same token. REQUIRES: equal sizes, `next` inside.
TokenComparison Compare(std::span<const float> dense, std::span<const float> method, int32_t next);

// The middle value, or the mean of the two; NaN of nothing.
double Median(std::vector<double> values);

class MethodFigures {
 public:
  // `position`: of the token among those that its window scores.
  void Add(uint32_t position, const TokenComparison& comparison);

  uint64_t tokens() const { return kl_.size(); }
  double kl() const;                       // mean
  double kl_se() const;                    // its standard error, as if tokens were independent
  double kl_quantile(double share) const;  // least KL that `share` of the tokens do not exceed
  double top1() const;                     // share of tokens with the same likeliest token
  double dense_perplexity() const;
  // perplexity / dense perplexity - 1, and its standard error from the paired differences of the
  // tokens' nll, as if the tokens were independent.
  double dppl() const;
  double dppl_se() const;
  // Mean KL of the positions [i * period, (i + 1) * period), i = 0, 1, ...
  std::vector<double> KlByPosition(uint32_t period) const;

 private:
  double MeanDifference() const;

  std::vector<double> kl_, difference_;  // [token]; difference: nll - dense nll
  std::vector<uint32_t> position_;       // [token]
  uint64_t same_top_ = 0;
  double dense_nll_ = 0;  // sum
};

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_EVAL_FIGURES_H_
