#include <stddef.h>

#include "kernels/cuda/sample.h"
#include "kernels/cuda/sample_best.h"
#include "kernels/cuda/sample_row.h"
#include "kernels/cuda/simt.h"

namespace tinyserve::cuda {
namespace {

constexpr uint64_t kGamma = 0x9e3779b97f4a7c15u;
TS_DEVICE uint64_t Mix(uint64_t z) {  // base/random.h
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}
TS_DEVICE double UniformAt(const DrawSeed& at) {
  const uint64_t z = Mix(Mix(at.seed + kGamma * (at.position + 1)));
  return static_cast<double>(z >> 11) * 0x1.0p-53;
}

// Passes the numbers of [first, end) while what is left reaches them; returns the place of the
// first that it does not reach, or `end`.
template <class Numbers>
TS_DEVICE uint32_t Walk(const Numbers& numbers, uint32_t first, uint32_t end, double& left) {
  for (uint32_t i = first; i < end; ++i) {
    const double number = numbers.Get(i);
    if (left < number) return i;
    left -= number;
  }
  return end;
}

// Over the chunks, the groups of one, the tokens from there on.
TS_DEVICE uint32_t TokenAt(const RowWeights& weights, const Shared<double>& chunks, double left,
                           uint32_t best) {
  const uint32_t chunk = Walk(chunks, 0, kWarpLanes, left);
  const uint32_t group = Walk(weights.sums, chunk * weights.ChunkGroups(), weights.Groups(), left);
  const uint32_t token = Walk(weights.weights, group * kSumTokens, weights.vocab, left);
  return token < weights.vocab ? token : best;
}

// ---- scores -------------------------------------------------------------------------------------

// A member of a row's scores, by its offset in floats.
template <class T>
TS_DEVICE Global<T> ScoresAt(const SampleArgs& a, uint32_t row, size_t offset, uint32_t count) {
  const Array<T> all{reinterpret_cast<T*>(a.scores.data), a.scores.count * sizeof(TokenScores) / 4};
  return Global<T>(all, "scores").Part(row * (sizeof(TokenScores) / 4) + offset / 4, count);
}

// All but what is chosen. All threads of the block.
TS_DEVICE void Score(const SampleArgs& a, uint32_t row, const RowLogits& logits,
                     const RowWeights& weights, uint32_t wanted, const Shared<double>& chunks) {
  TS_SHARED(uint32_t, listed, 1);
  if (ThreadIndex() == 0) listed.Set(0, 0);
  const Best best = BlockBest(logits);
  weights.Weigh(logits, best.logit, 1.0f, 0.0f, /*with_nan=*/true);
  const double sum = weights.SumAll(chunks);
  if (ThreadIndex() == 0) {
    const auto numbers = ScoresAt<float>(a, row, 0, 3);
    numbers.Set(offsetof(TokenScores, top) / 4, best.logit);
    numbers.Set(offsetof(TokenScores, sum) / 4, static_cast<float>(sum));
  }
  wanted = wanted < a.vocab ? wanted : a.vocab;
  if (wanted == 0) return;
  Candidates candidates{logits, weights, kLikelyWeight};
  uint64_t floor = candidates.FloorOf(0, wanted, /*by_weight=*/false);
  while (floor == kNoPlace) {
    candidates.least = candidates.least == kLikelyWeight ? kLeastWeight : 0.0f;
    floor = candidates.FloorOf(0, wanted, /*by_weight=*/false);
  }
  const auto tokens = ScoresAt<uint32_t>(a, row, offsetof(TokenScores, tokens), kScoredMax);
  const auto theirs = ScoresAt<float>(a, row, offsetof(TokenScores, logits), kScoredMax);
  candidates.Each(floor, [&](uint32_t t, float, uint64_t) {
    const uint32_t at = AtomicAdd(listed, 0, 1u);
    tokens.Set(at, t);
    theirs.Set(at, logits.At(t));
  });
  SyncBlock();
}

// ---- a row --------------------------------------------------------------------------------------

// All threads of the block; thread 0 has the token.
TS_DEVICE uint32_t Draw(const SampleArgs& a, uint32_t row, const RowLogits& logits,
                        const RowWeights& weights, const Shared<double>& chunks) {
  const DrawScale scale = Global<const DrawScale>(a.scales, "scales").Get(row);
  const Best best = BlockBest(logits);
  if (ThreadIndex() == 0) Global<float>(a.tops, "tops").Set(row, best.logit);
  if (!(scale.temperature > 0) || !(fabsf(best.logit) < INFINITY)) return best.token;
  const bool keeps_best = scale.top_k > 0 || scale.top_p < 1.0f;
  weights.Weigh(logits, best.logit, 1.0f / scale.temperature, keeps_best ? 0.0f : scale.min_p,
                /*with_nan=*/false);
  double total = weights.SumAll(chunks);
  if (keeps_best) {
    const Kept kept = KeepBest(logits, weights, scale, total);
    DropOthers({logits, weights, kept.least}, kept, scale.min_p);
    total = weights.SumAll(chunks);
  }
  if (ThreadIndex() != 0) return best.token;
  const double uniform = UniformAt(Global<const DrawSeed>(a.seeds, "seeds").Get(row));
  return TokenAt(weights, chunks, uniform * total, best.token);
}

TS_DEVICE uint32_t OwnToken(const SampleArgs& a, uint32_t row, const DrawPenalties& penalties) {
  if (penalties.counts_own == 0) return kNoToken;
  const uint32_t of = Global<const uint32_t>(a.rows_of, "rows_of").Get(row);
  return static_cast<uint32_t>(Global<const int32_t>(a.ids, "ids").Get(of));
}

// A block is a row.
TS_KERNEL SampleKernel(SampleArgs a) {
  TS_SHARED(double, chunks, kWarpLanes);
  const uint32_t row = BlockX(), groups = (a.vocab + kSumTokens - 1) / kSumTokens;
  const DrawLists lists = Global<const DrawLists>(a.lists, "lists").Get(row);
  const DrawPenalties penalties = Global<const DrawPenalties>(a.penalties, "penalties").Get(row);
  const Global<const uint32_t> words(a.words, "words");
  const Global<float> logits =
      Global<float>(a.logits, "logits").Part(uint64_t{row} * a.vocab, a.vocab);
  const RowWeights weights{
      Global<float>(a.weights, "weights").Part(uint64_t{row} * a.vocab, a.vocab),
      Global<double>(a.sums, "sums").Part(uint64_t{row} * groups, groups), a.vocab};
  if (lists.scored >= 0) {
    Score(a, row, {logits, words, a.vocab, kNoMask}, weights, static_cast<uint32_t>(lists.scored),
          chunks);
  }
  const RowEdits edits{
      logits,
      Global<float>(a.edited, "edited").Part(uint64_t{row} * (kEditsMax + 1), kEditsMax + 1),
      words,
      lists,
      penalties,
      OwnToken(a, row, penalties)};
  const bool edited = lists.edits > 0 || edits.own != kNoToken;
  const uint32_t changed = edited ? edits.Apply() : 0;
  const uint32_t token = Draw(a, row, {logits, words, a.vocab, lists.mask_at}, weights, chunks);
  if (edited) edits.TakeBack(changed);
  if (ThreadIndex() != 0) return;
  Global<int32_t>(a.tokens, "tokens").Set(row, static_cast<int32_t>(token));
  if (lists.scored < 0) return;
  ScoresAt<float>(a, row, 0, 3).Set(offsetof(TokenScores, chosen) / 4, logits.Get(token));
}

}  // namespace

Status Sample(const SampleArgs& args, Stream stream) {
  if (args.rows == 0 || args.vocab == 0 || args.vocab > 1u << kIdBits) {
    return Status(Code::kInvalidArgument,
                  "Sample: there must be rows, and a vocabulary of at most 2^24 tokens");
  }
  return Launch(
      {.kernel = "Sample", .grid = {args.rows}, .threads = kSampleThreads, .stream = stream},
      SampleKernel, args);
}

}  // namespace tinyserve::cuda
