// Embeddings = a plain forward's states, normed and pooled by plain loops; and neither chunks, the
// cache nor lost blocks change them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/targets.h"
#include "tests/golden/golden_run.h"
#include "tests/oracles/answers.h"

namespace tinyserve {
namespace {

constexpr uint32_t kTokens = 75;

std::string PathOf(const std::string& model) {
  return TS_SOURCE_DIR "/tests/golden/tiny/" + model + ".gguf";
}

std::vector<int32_t> Tokens(uint32_t seed) {
  std::vector<int32_t> tokens;
  for (uint32_t t = 0; t < kTokens; ++t)
    tokens.push_back(static_cast<int32_t>((t * 7 + t * t * seed) % 200));
  return tokens;
}

Request EmbeddingOf(std::vector<int32_t> tokens, Pooling pooling) {
  Request request;
  request.prompt = std::move(tokens);
  request.max_tokens = 0;
  request.pooling = pooling;
  return request;
}

std::unique_ptr<Engine> Open(const std::string& model, uint32_t step_tokens,
                             uint64_t kv_bytes = 8 << 20) {
  EngineOptions options;
  options.model_path = PathOf(model);
  options.threads = 2;
  options.kv = "f32";
  options.compute = "f32";
  options.kv_memory_bytes = kv_bytes;
  options.sequences_max = std::min(4u, step_tokens);
  options.step_tokens_max = step_tokens;
  options.context_tokens = 128;
  auto engine = Engine::Open(options);
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return *std::move(engine);
}

std::vector<float> Embed(Engine* engine, const Request& request) {
  const Answer answer = Ask(engine, request);
  EXPECT_EQ(answer.finish, FinishReason::kLength);
  EXPECT_TRUE(answer.tokens.empty());
  EXPECT_EQ(answer.embedding.size(), engine->info().dim);
  return answer.embedding;
}

// RMS norm; with a bias, layer norm.
std::vector<double> NormOf(std::span<const float> x, std::span<const float> weight,
                           std::span<const float> bias, double eps) {
  const auto n = static_cast<double>(x.size());
  const double mean = bias.empty() ? 0 : std::accumulate(x.begin(), x.end(), 0.0) / n;
  double squares = 0;
  for (const double value : x) squares += (value - mean) * (value - mean);
  std::vector<double> normed;
  for (size_t i = 0; i < x.size(); ++i) {
    normed.push_back((x[i] - mean) / std::sqrt(squares / n + eps) * weight[i] +
                     (bias.empty() ? 0 : bias[i]));
  }
  return normed;
}

class EmbeddingTest : public testing::TestWithParam<const char*> {};

TEST_P(EmbeddingTest, IsThatOfAPlainForward) {
  const Kernels* kernels = *TargetFor("");
  golden::TestBench bench(PathOf(GetParam()), {.kernels = kernels});
  const golden::GoldenFile weights(PathOf(GetParam()));
  const std::span<const float> weight = weights.Row("output_norm.weight", 0);
  std::span<const float> bias;
  if (GetParam() == std::string("gpt2")) bias = weights.Row("output_norm.bias", 0);
  const ModelConfig& config = bench.model->config();
  const std::vector<int32_t> tokens = Tokens(1);
  std::vector<int32_t> positions(kTokens);
  std::iota(positions.begin(), positions.end(), 0);
  const auto last_layer = static_cast<int32_t>(config.layers - 1);
  const golden::RunResult run =
      golden::RunSequence(&bench, tokens, kTokens, positions, {{last_layer}}, kTokens);
  std::vector<double> sum(config.dim), last;
  for (const std::vector<float>& state : run.hidden.at(config.layers - 1)) {
    last = NormOf(state, weight, bias, config.norm_eps);
    for (size_t i = 0; i < last.size(); ++i) sum[i] += last[i];
  }
  auto engine = Open(GetParam(), 32);
  for (const auto& [pooling, expected] :
       {std::pair(Pooling::kMean, sum), std::pair(Pooling::kLast, last)}) {
    const std::vector<float> found = Embed(engine.get(), EmbeddingOf(tokens, pooling));
    double length = 0;
    for (const double x : expected) length += x * x;
    for (size_t i = 0; i < found.size(); ++i)
      EXPECT_NEAR(found[i], expected[i] / std::sqrt(length), 2e-5) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Architectures, EmbeddingTest, testing::Values("llama", "gpt2"));

TEST(Embedding, DependsOnItsPromptAlone) {
  auto whole = Open("llama", 128), cut = Open("llama", 32);
  for (const Pooling pooling : {Pooling::kMean, Pooling::kLast}) {
    const std::vector<float> expected = Embed(whole.get(), EmbeddingOf(Tokens(2), pooling));
    EXPECT_EQ(Embed(cut.get(), EmbeddingOf(Tokens(2), pooling)), expected);
    // Of a prompt that the cache holds, and of one of which it holds the beginning.
    EXPECT_EQ(Embed(cut.get(), EmbeddingOf(Tokens(2), pooling)), expected);
    EXPECT_NE(Embed(cut.get(), EmbeddingOf(Tokens(3), pooling)), expected);
  }
  const Answer cached = Ask(cut.get(), EmbeddingOf(Tokens(2), Pooling::kLast));
  EXPECT_GT(cached.usage.cached_tokens, 0u);
  EXPECT_EQ(Ask(cut.get(), EmbeddingOf(Tokens(2), Pooling::kMean)).usage.cached_tokens, 0u);
}

TEST(Embedding, IsTheSameInAPoolTooSmallForAll) {
  auto large = Open("llama", 32);
  const uint64_t token = large->info().kv_bytes_per_token;
  const uint64_t fixed =
      large->info().kv_pool_bytes - uint64_t{large->stats().blocks_total} * 32 * token;
  // So slow beside the writer that it comes to need their blocks.
  auto small = Open("llama", 2, fixed + 5 * 32 * token);
  ASSERT_EQ(small->stats().blocks_total, 5u);
  Request writer;
  writer.prompt = Tokens(9);
  writer.prompt.resize(30);
  writer.max_tokens = 90;
  writer.ignore_eos = true;
  writer.priority = Priority::kHigh;
  std::vector<Answer> answers(7);
  std::vector<RequestId> ids = {*small->Submit(writer, CollectInto(&answers[6]))};
  for (uint32_t i = 0; i < 6; ++i) {
    const Request request = EmbeddingOf(Tokens(i), i % 2 == 0 ? Pooling::kMean : Pooling::kLast);
    ids.push_back(*small->Submit(request, CollectInto(&answers[i])));
  }
  for (const RequestId id : ids) small->Wait(id);
  for (uint32_t i = 0; i < 6; ++i) {
    const Request request = EmbeddingOf(Tokens(i), i % 2 == 0 ? Pooling::kMean : Pooling::kLast);
    EXPECT_EQ(answers[i].embedding, Embed(large.get(), request)) << i;
  }
  EXPECT_GT(small->stats().preemptions, 0u);
  EXPECT_EQ(small->stats().blocks_used, 0u);
}

TEST(Embedding, IsOfAPromptAlone) {
  auto engine = Open("llama", 32);
  Request request = EmbeddingOf(Tokens(1), Pooling::kMean);
  request.max_tokens = 1;
  EXPECT_NE(engine->Submit(request, [](const TokenEvent&) {}).status().message().find("max_tokens"),
            std::string::npos);
  request.pooling = Pooling::kNone;
  EXPECT_TRUE(Ask(engine.get(), request).embedding.empty());
}

}  // namespace
}  // namespace tinyserve
