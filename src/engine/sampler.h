// From logits to a token: bias, penalties, temperature, top-k, top-p, min-p, and a random number
// that depends on the seed and the position alone.
#ifndef TINYSERVE_ENGINE_SAMPLER_H_
#define TINYSERVE_ENGINE_SAMPLER_H_

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "engine/step_batch.h"
#include "tinyserve/engine.h"
#include "tinyserve/status.h"

namespace tinyserve {

// Ranges of every sampling option. Errors: kInvalidArgument, naming the option and what is allowed.
Status CheckSampling(const SamplingOptions& options, uint32_t vocab);

// Index of the largest logit, the lowest index among equals; NaN never wins. REQUIRES: not empty.
int32_t Argmax(std::span<const float> logits);

// Logits of tokens without their bit become minus infinity: bit t % 32 of allowed[t / 32].
// REQUIRES: a bit for each logit.
void RuleOut(std::span<const uint32_t> allowed, std::span<float> logits);

// One request's sampling state. The order is: logit bias, penalties, temperature, top-k, top-p,
// min-p.
class Sampler {
 public:
  // REQUIRES: CheckSampling(options, vocab) is ok, prompt tokens are inside the vocabulary.
  Sampler(const SamplingOptions& options, uint32_t vocab, std::span<const int32_t> prompt);

  // The token that follows; `logits` [vocab] are changed. `position`: absolute position of the
  // sampled token. `banned`: tokens that must not be chosen (end tokens before min_tokens).
  int32_t Sample(std::span<float> logits, uint64_t position, std::span<const int32_t> banned);
  // How many logits it changes, and the same draw as a rule for an executor: `edits` gets them, and
  // what `banned` rules out.
  size_t edits() const { return edits_.size(); }
  DrawRule RuleWith(std::span<const int32_t> banned, std::vector<LogitEdit>* edits) const;
  // Counts a sampled token for the penalties.
  void Observe(int32_t token);

 private:
  struct Candidate {
    float logit;
    int32_t token;
  };
  LogitEdit* EditOf(int32_t token);  // one without a change where there was none
  void AdjustLogits(std::span<float> logits) const;
  // Whether top-k or top-p leaves some out.
  bool KeepsBest() const { return options_.top_k > 0 || options_.top_p < 1.0f; }
  // weights_ = e^((logit - top) / temperature), 0 for what is never drawn.
  void Weigh(std::span<const float> logits, float top);
  // Sums of the weights by block, and of all.
  double SumBlocks();
  // The tokens of `least` weight or more become candidates.
  void GatherFrom(std::span<const float> logits, float least);
  // Applies top-k and top-p to the candidates, where all tokens weigh `total`; false where there
  // are too few for that and they are not `all`.
  bool KeepBest(double total, bool all);
  float WeightOf(const Candidate& c) const { return weights_[static_cast<size_t>(c.token)]; }
  int32_t Draw(std::span<const float> logits, uint64_t position);
  int32_t DrawFromAll(double uniform, int32_t best);

  SamplingOptions options_;
  bool penalties_;
  std::vector<LogitEdit> edits_;  // of biased tokens and, with penalties, of those that were seen
  std::unordered_map<int32_t, size_t> edit_of_;  // token -> its place in edits_
  std::vector<float> weights_;  // [vocab], where the temperature is above 0, as the sums
  std::vector<float> block_sums_;
  std::vector<Candidate> candidates_;
};

}  // namespace tinyserve

#endif  // TINYSERVE_ENGINE_SAMPLER_H_
