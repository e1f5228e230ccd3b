// The default model at depths up to 8000 tokens, against what transformers computes in f32 over the
// same decoded weights.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <memory>
#include <numeric>
#include <sstream>
#include <string>
#include <vector>

#include "engine/logprobs.h"
#include "engine/vocab.h"
#include "kernels/targets.h"
#include "tests/golden/golden_run.h"
#include "text/tokenizer.h"

namespace tinyserve::golden {
namespace {

const char* const kModel = TS_SOURCE_DIR "/models/SmolLM2-135M-Instruct.Q4_1.gguf";
const char* const kGolden = TS_SOURCE_DIR "/tests/golden/smollm2.golden.gguf";
const char* const kText = TS_SOURCE_DIR "/tests/golden/moby_dick.txt";
constexpr size_t kTop = 20;  // logits kept for each position
constexpr uint32_t kStepTokens = 500;

// Differences of the top logits are in units of the largest logit at that position (18 to 30).
//
// f32: the reference's own f32 run lies up to 9e-6 from its f64 run (the golden file holds both,
// and a test below checks it); another order of summation may cost as much again on the other side,
// and targets differ in width. Measured here: 3e-6.
constexpr double kF32Tolerance = 5e-5;
// Fast: each of 210 products sees int8 activations, off by about 0.5 % at random, and the residual
// stream averages over them. Measured on AVX2 at all depths: 0.8 to 1.5 %, without a trend in
// depth; targets with int8 keys in prompts may add as much again.
constexpr double kFastTolerance = 0.04;
// The same in log-probabilities of single tokens, nats: at most 0.6 among the 20 best of the
// answers below.
constexpr double kFastLogProbTolerance = 1.0;
// Nats a token; the reference's f32 loss lies 1.3e-6 from its f64 loss.
constexpr double kF32LossTolerance = 2e-5;

class Smollm2 : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(std::ifstream(kModel).good()) << kModel << " is missing: `make model` fetches it";
    golden_ = std::make_unique<GoldenFile>(kGolden);
    tokens_ = golden_->Ints("golden.tokens");
    positions_ = golden_->Ints("golden.positions");
    top_ids_ = golden_->Ints("golden.top_ids");
  }

  // The logits of `row` at the reference's top tokens, position i.
  std::vector<float> AtTop(std::span<const float> row, size_t i) const {
    std::vector<float> picked;
    for (size_t j = 0; j < kTop; ++j)
      picked.push_back(row[static_cast<size_t>(top_ids_[i * kTop + j])]);
    return picked;
  }

  // Largest difference between two rows of logits at the top tokens, over the reference's largest
  // logit there. Both are absolute scores: a constant shift of all logits counts as an error too.
  double OffAt(std::span<const float> actual, const std::string& tensor, size_t i) const {
    const std::span<const float> expected = golden_->Row(tensor, i);
    double worst = 0;
    for (size_t j = 0; j < kTop; ++j) {
      const double off = std::abs(static_cast<double>(actual[j]) - expected[j]);
      if (!(off <= worst)) worst = off;  // NaN stays
    }
    return worst / golden_->Row("logits_max_abs", 0)[i];
  }

  // Runs the text up to the last position below `tokens_max` and compares; `tolerance` is relative
  // to the largest logit.
  void Compare(const Kernels* kernels, Compute compute, const std::string& kv, uint32_t tokens_max,
               double tolerance) {
    const auto end = std::ranges::upper_bound(positions_, static_cast<int32_t>(tokens_max) - 1);
    const std::vector<int32_t> positions(positions_.begin(), end);
    ASSERT_FALSE(positions.empty());
    const auto count = static_cast<uint32_t>(positions.back()) + 1;
    TestBench bench(kModel, {.kernels = kernels,
                             .compute = compute,
                             .kv = kv,
                             .sequence_tokens_max = count,
                             .step_tokens_max = kStepTokens});
    const RunResult run =
        RunSequence(&bench, std::span(tokens_).first(count), count, positions, {}, kStepTokens);
    ASSERT_EQ(run.logits.size(), positions.size());
    for (size_t i = 0; i < positions.size(); ++i) {
      SCOPED_TRACE(fmt::format("after {} tokens", positions[i] + 1));
      const double off = OffAt(AtTop(run.logits[i], i), "top_logits", i);
      RecordProperty(fmt::format("{}_{}", kernels->name, positions[i]), fmt::format("{:.2e}", off));
      EXPECT_LE(off, tolerance);
      const double lse = LogSumExp(run.logits[i]);
      EXPECT_NEAR(lse, golden_->Row("logsumexp", 0)[i],
                  tolerance * golden_->Row("logits_max_abs", 0)[i]);
      // The reference's first choice wins here too, unless the two best are nearer than the
      // rounding.
      const std::span<const float> top = golden_->Row("top_logits", i);
      if (top[0] - top[1] > 2 * tolerance * golden_->Row("logits_max_abs", 0)[i]) {
        EXPECT_EQ(std::ranges::max_element(run.logits[i]) - run.logits[i].begin(),
                  top_ids_[i * kTop]);
      }
    }
  }

  std::unique_ptr<GoldenFile> golden_;
  std::vector<int32_t> tokens_, positions_, top_ids_;
};

// Mean loss (nats a token) of tokens 1 .. n-1, the text in steps of kStepTokens.
double MeanLoss(TestBench* bench, std::span<const int32_t> tokens) {
  CpuExecutor* executor = bench->executor.get();
  const Result<SequenceSlot> slot = executor->cache()->AddSequence();
  EXPECT_TRUE(slot.ok());
  double sum = 0;
  StepBatch batch;
  for (uint32_t begin = 0; begin < tokens.size(); begin += kStepTokens) {
    const uint32_t length = std::min<uint32_t>(kStepTokens, tokens.size() - begin);
    batch.Clear();
    batch.inputs.assign(tokens.begin() + begin, tokens.begin() + begin + length);
    batch.rows.push_back({.slot = *slot,
                          .first_position = begin,
                          .length = length,
                          .first_input = 0,
                          .token_class = TokenClass::kPrompt,
                          .want = Want::kLogProbs});
    EXPECT_TRUE(executor->cache()->Reserve(*slot, begin + length).ok());
    executor->Run(batch);
    executor->cache()->Commit(*slot, begin + length);
    for (const float logprob : executor->logprobs(0)) sum -= logprob;
    if (begin + length < tokens.size()) {
      const std::span<const float> logits = executor->logits(0);
      sum -= logits[static_cast<size_t>(tokens[begin + length])] - LogSumExp(logits);
    }
  }
  executor->cache()->RemoveSequence(*slot);
  return sum / static_cast<double>(tokens.size() - 1);
}

std::unique_ptr<Tokenizer> ModelTokenizer() {
  const Result<std::unique_ptr<GgufFile>> file = GgufFile::Open(kModel);
  EXPECT_TRUE(file.ok()) << file.status().message();
  const Result<VocabSpec> vocab = ReadVocab(**file);
  EXPECT_TRUE(vocab.ok()) << vocab.status().message();
  Result<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Create(*vocab);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  return *std::move(tokenizer);
}

TEST_F(Smollm2, TheTextIsTheReferencesTokens) {
  const std::unique_ptr<Tokenizer> tokenizer = ModelTokenizer();
  std::stringstream text;
  text << std::ifstream(kText).rdbuf();
  const Result<std::vector<int32_t>> ids = tokenizer->Encode(text.str(), false, false);
  ASSERT_TRUE(ids.ok()) << ids.status().message();
  ASSERT_GE(ids->size(), tokens_.size());
  EXPECT_EQ(std::vector<int32_t>(ids->begin(), ids->begin() + static_cast<long>(tokens_.size())),
            tokens_);
}

TEST_F(Smollm2, TheReferencesOwnRoundingIsInsideTheTolerance) {
  for (size_t i = 0; i < positions_.size(); ++i)
    EXPECT_LE(OffAt(golden_->Row("top_logits", i), "top_logits_exact", i), kF32Tolerance / 4);
}

TEST_F(Smollm2, EveryTargetIsNearTheReferenceOverAShortText) {
  for (const Kernels* kernels : AvailableTargets()) {
    SCOPED_TRACE(kernels->name);
    Compare(kernels, Compute::kF32, "f32", 128, kF32Tolerance);
    Compare(kernels, Compute::kFast, "f16", 128, kFastTolerance);
  }
}

TEST_F(Smollm2, F32IsNearTheReferenceToADepthOf8000) {
  Compare(AvailableTargets().front(), Compute::kF32, "f32", 8000, kF32Tolerance);
}

TEST_F(Smollm2, FastComputeIsNearTheReferenceToADepthOf8000) {
  Compare(AvailableTargets().front(), Compute::kFast, "f16", 8000, kFastTolerance);
}

TEST_F(Smollm2, PerplexityIsTheReferencesInF32AndWithinHalfAPercentWhenFast) {
  const std::vector<int32_t> counts = golden_->Ints("golden.loss_tokens");
  const std::vector<double> losses = golden_->Floats("golden.loss");
  for (size_t i = 0; i < counts.size(); ++i) {
    SCOPED_TRACE(fmt::format("{} tokens", counts[i]));
    const auto text = std::span(tokens_).first(static_cast<size_t>(counts[i]));
    const auto loss = [&](Compute compute, const std::string& kv) {
      TestBench bench(kModel, {.kernels = AvailableTargets().front(),
                               .compute = compute,
                               .kv = kv,
                               .sequence_tokens_max = static_cast<uint32_t>(counts[i]),
                               .step_tokens_max = kStepTokens});
      return MeanLoss(&bench, text);
    };
    const double f32 = loss(Compute::kF32, "f32");
    EXPECT_NEAR(f32, losses[i], kF32LossTolerance);
    // Perplexity is exp(loss): half a percent of it is 0.005 of the loss itself.
    EXPECT_NEAR(loss(Compute::kFast, "f16"), f32, 0.005);
  }
}

// Questions as the model's chat template puts them. The first one's answer may begin in two ways
// that are nearly tied: 0.08 nats apart.
const char* const kQuestions[] = {"What is the capital of France?",
                                  "What is the capital of Spain?",
                                  "What is the capital of Japan?",
                                  "What is the capital of Peru?",
                                  "What is a cache?",
                                  "Name a colour.",
                                  "Write a haiku about rain.",
                                  "Who wrote Hamlet?",
                                  "What is 2 + 2?",
                                  "How do I boil an egg?",
                                  "Explain gravity to a child.",
                                  "List three fruits.",
                                  "Why is the sky blue?",
                                  "Tell me a joke.",
                                  "What should I eat tonight?",
                                  "Translate 'good morning' into French."};

std::vector<int32_t> Asked(const Tokenizer& tokenizer, const std::string& question) {
  const Result<std::vector<int32_t>> ids = tokenizer.Encode(
      "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
      "Face<|im_end|>\n<|im_start|>user\n" +
          question + "<|im_end|>\n<|im_start|>assistant\n",
      false, true);
  EXPECT_TRUE(ids.ok()) << ids.status().message();
  return *ids;
}

// Logits of an answer's first token.
std::vector<float> FirstLogits(TestBench* bench, const std::vector<int32_t>& prompt) {
  const auto count = static_cast<uint32_t>(prompt.size());
  const int32_t last = static_cast<int32_t>(count) - 1;
  return RunSequence(bench, prompt, count, {&last, 1}, {}, count).logits.front();
}

// Ids of the `count` largest logits, best first.
std::vector<size_t> Best(const std::vector<float>& logits, size_t count) {
  std::vector<size_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::ranges::partial_sort(ids, ids.begin() + static_cast<long>(count),
                            [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  ids.resize(count);
  return ids;
}

TestBenchOptions Setting(const Kernels* kernels, Compute compute) {
  return {.kernels = kernels, .compute = compute, .kv = "f16", .step_tokens_max = 128};
}

// Rounding activations to int8 moves how far the two best logits lie apart by some tenths of a nat,
// one way or the other: a nearer tie may be decided otherwise than with f32 products. It is noise,
// of known size, and favours neither.
TEST_F(Smollm2, FastComputeMovesNearTiesEitherWay) {
  const std::unique_ptr<Tokenizer> tokenizer = ModelTokenizer();
  TestBench f32(kModel, Setting(AvailableTargets().front(), Compute::kF32));
  TestBench fast(kModel, Setting(AvailableTargets().front(), Compute::kFast));
  double sum = 0, squares = 0;
  for (const char* question : kQuestions) {
    const std::vector<int32_t> prompt = Asked(*tokenizer, question);
    const std::vector<float> exact = FirstLogits(&f32, prompt),
                             rounded = FirstLogits(&fast, prompt);
    const std::vector<size_t> best = Best(exact, 2);
    const double moved =
        (double{rounded[best[0]]} - rounded[best[1]]) - (double{exact[best[0]]} - exact[best[1]]);
    const double shift = LogSumExp(rounded) - LogSumExp(exact);
    for (const size_t id : Best(exact, kTop))
      EXPECT_NEAR(rounded[id] - shift, exact[id], kFastLogProbTolerance) << question << id;
    sum += moved;
    squares += moved * moved;
  }
  // Measured: mean -0.02, root mean square 0.29 (20 questions, avx512-vnni); the mean of so many
  // that favour neither strays by 0.07.
  const auto count = static_cast<double>(std::size(kQuestions));
  RecordProperty("mean", fmt::format("{:.3f}", sum / count));
  RecordProperty("rms", fmt::format("{:.3f}", std::sqrt(squares / count)));
  EXPECT_LT(std::abs(sum / count), 0.28);
  EXPECT_LT(std::sqrt(squares / count), 0.6);
  EXPECT_GT(squares, 0);
}

// Log-probabilities, which are what an answer is drawn by: the rounding also shifts all logits
// alike, at short prompts by up to 4.5 % of the largest one (measured), and no probability sees it.
TEST_F(Smollm2, ANearTieIsWithinTheToleranceOnEveryTarget) {
  const std::vector<int32_t> prompt = Asked(*ModelTokenizer(), kQuestions[0]);
  TestBench f32(kModel, Setting(AvailableTargets().front(), Compute::kF32));
  const std::vector<float> exact = FirstLogits(&f32, prompt);
  const std::vector<size_t> best = Best(exact, kTop);
  EXPECT_NEAR(exact[best[0]] - exact[best[1]], 0.083, 0.01);
  for (const Kernels* kernels : AvailableTargets()) {
    TestBench fast(kModel, Setting(kernels, Compute::kFast));
    const std::vector<float> rounded = FirstLogits(&fast, prompt);
    const double shift = LogSumExp(rounded) - LogSumExp(exact);
    for (const size_t id : best)
      EXPECT_NEAR(rounded[id] - shift, exact[id], kFastLogProbTolerance) << kernels->name << id;
  }
}

}  // namespace
}  // namespace tinyserve::golden
