// From logits to tokens on a device, by the engine's rule (engine/sampler.h): edits of single
// logits, tokens that are ruled out, the largest or a draw at a temperature among the best.
// What is drawn follows from seed and position, so a request's text does not depend on where it is
// sampled, but for draws and cuts within the rounding of a sum.
#ifndef TINYSERVE_KERNELS_CUDA_SAMPLE_H_
#define TINYSERVE_KERNELS_CUDA_SAMPLE_H_

#include <cstdint>

#include "kernels/cuda/launch.h"
#include "tinyserve/status.h"

namespace tinyserve::cuda {

// Logits of one row that are changed, at most; the newest token beside them.
constexpr uint32_t kEditsMax = 2048;
// The likeliest tokens that a row may ask for.
constexpr uint32_t kScoredMax = 20;

// One logit of a row; a row's edits are of different tokens. Penalties are those of its row.
struct alignas(16) LogitEdit {
  uint32_t token;
  float bias;          // added first; minus infinity rules the token out
  uint32_t seen;       // 1: the repetition penalty holds
  uint32_t generated;  // so many times, for the others
};

// ---- what a row wishes --------------------------------------------------------------------------

struct alignas(16) DrawScale {
  float temperature;  // 0: the largest logit, the first of equals, whatever else is wished
  float min_p;        // of the best token's weight: others below are not drawn
  float top_p;        // 1: all
  uint32_t top_k;     // 0: all
};
struct alignas(16) DrawPenalties {
  float repetition, presence, frequency;
  // 1: the row's own token (SampleArgs::ids) was generated once more than its edit says, if it has
  // one: the host does not know it yet.
  uint32_t counts_own;
};
struct alignas(16) DrawLists {
  uint32_t edits_at, edits;  // LogitEdits in SampleArgs::words, from a multiple of 4 on
  uint32_t mask_at;          // [(vocab + 31) / 32] words: bit t % 32 of word t / 32: t may come
  int32_t scored;            // so many of the likeliest tokens are named; -1: no scores
};
struct alignas(16) DrawSeed {
  uint64_t seed;
  uint64_t position;  // absolute, of the sampled token
};
constexpr uint32_t kNoMask = 0xffffffffu;

// ---- what comes back ----------------------------------------------------------------------------

// Of the logits before anything of the above: log-probabilities are the model's own.
struct TokenScores {
  float top;     // the largest
  float sum;     // of e^(logit - top); no number where one of them is none
  float chosen;  // that of the token that was drawn
  float unused;
  uint32_t tokens[kScoredMax];  // the likeliest ones, in any order
  float logits[kScoredMax];     // theirs
};

struct SampleArgs {
  Array<float> logits;  // [rows][vocab]; changed meanwhile, as before afterwards
  uint32_t rows, vocab;
  // [rows] each, read on the device.
  Array<const DrawScale> scales;
  Array<const DrawPenalties> penalties;
  Array<const DrawLists> lists;
  Array<const DrawSeed> seeds;
  Array<const uint32_t> words;  // of edits and masks
  // [rows] which of `ids` is a row's own token: count 0 where no row counts it.
  Array<const uint32_t> rows_of;
  Array<const int32_t> ids;
  Array<float> weights;       // [rows][vocab]: scratch
  Array<double> sums;         // [rows][(vocab + 63) / 64]: scratch
  Array<float> edited;        // [rows][kEditsMax + 1]: scratch
  Array<int32_t> tokens;      // [rows]
  Array<float> tops;          // [rows] the largest logit of those that may come; no number: none
  Array<TokenScores> scores;  // [rows], of those that ask; count 0: none does
};
Status Sample(const SampleArgs& args, Stream stream);

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_SAMPLE_H_
