// Step plugins as requests see them: at start, by request, counted, refused.
#include <gtest/gtest.h>

#include "tests/oracles/answers.h"

namespace tinyserve {
namespace {

std::unique_ptr<Engine> Open(const std::vector<std::string>& step_plugins) {
  EngineOptions options;
  options.model_path = TS_SOURCE_DIR "/tests/golden/tiny/llama.gguf";
  options.threads = 1;
  options.sequences_max = 4;
  options.context_tokens = 256;
  options.step_plugins = step_plugins;
  auto engine = Engine::Open(options);
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return *std::move(engine);
}

Request Prompt(uint32_t tokens = 40) {
  Request request;
  for (uint32_t t = 0; t < tokens; ++t)
    request.prompt.push_back(static_cast<int32_t>((t * 7) % 200));
  request.max_tokens = 30;
  request.top_logprobs = 0;
  // The tiny model's own end token does not end it.
  request.sampling.logit_bias = {{0, -100.0f}, {1, -100.0f}, {2, -100.0f}};
  return request;
}

TEST(StepPlugins, EndAnswersWhereTheyMay) {
  const auto engine = Open({"low_entropy_end:tokens=3,entropy=20"});
  Request request = Prompt();
  Answer answer = Ask(engine.get(), request);
  // The first token is not asked about; the fourth would be the third that is certain.
  EXPECT_EQ(answer.tokens.size(), 3u);
  EXPECT_EQ(answer.finish, FinishReason::kStop);
  request.min_tokens = 10;
  EXPECT_EQ(Ask(engine.get(), request).tokens.size(), 12u);
  request.min_tokens = 0;
  request.ignore_eos = true;
  EXPECT_EQ(Ask(engine.get(), request).tokens.size(), 30u);
  request.ignore_eos = false;
  request.step_plugins.emplace();
  EXPECT_EQ(Ask(engine.get(), request).tokens.size(), 30u);
  const std::vector<StepPluginStats> stats = engine->stats().step_plugins;
  ASSERT_EQ(stats.size(), 1u);
  EXPECT_EQ(stats[0].name, "low_entropy_end");
  EXPECT_EQ(stats[0].calls, 6u);
  EXPECT_EQ(stats[0].effects, 2u);
}

// The example's shared object, built against plugin.h alone, ends answers where the built-in rule
// does, over answers that end early, late and not at all.
TEST(StepPlugins, ASharedObjectEqualsTheBuiltIn) {
  EngineOptions options;
  options.model_path = TS_SOURCE_DIR "/tests/golden/tiny/llama.gguf";
  options.threads = 1;
  options.context_tokens = 256;
  options.plugins = {TS_SKELETON_STEP};
  const auto engine = *Engine::Open(options);
  Request request = Prompt();
  request.max_tokens = 50;
  std::vector<size_t> lengths;
  for (const char* rule : {"tokens=1,entropy=4", "tokens=2,entropy=4.6", "tokens=3,entropy=4.8",
                           "tokens=40,entropy=20", "tokens=51,entropy=20", "tokens=1,entropy=0"}) {
    request.step_plugins = {std::string("low_entropy_end:") + rule};
    const Answer built_in = Ask(engine.get(), request);
    request.step_plugins = {std::string("skeleton_end:") + rule};
    const Answer plugin = Ask(engine.get(), request);
    EXPECT_EQ(plugin.tokens, built_in.tokens) << rule;
    EXPECT_EQ(plugin.finish, built_in.finish) << rule;
    lengths.push_back(plugin.tokens.size());
  }
  EXPECT_EQ(lengths[3], 40u);
  EXPECT_EQ(lengths[4], 50u);
  EXPECT_EQ(lengths[5], 50u);
  request.step_plugins.emplace();
  Ask(engine.get(), request);  // counts are told once a step: all of those above
  const std::vector<StepPluginStats> stats = engine->stats().step_plugins;
  ASSERT_EQ(stats.size(), 2u);
  EXPECT_EQ(stats[0].calls, stats[1].calls);
  EXPECT_EQ(stats[0].effects, stats[1].effects);
  EXPECT_GE(stats[0].effects, 1u);
  EXPECT_EQ(stats[0].errors + stats[1].errors, 0u);
}

// The selector moves for new requests alone: a text is that of an engine without a target.
TEST(Tuning, ARequestKeepsTheSelectorThatItWasAdmittedWith) {
  EngineOptions options;
  options.model_path = TS_SOURCE_DIR "/tests/golden/tiny/llama.gguf";
  options.threads = 1;
  options.sequences_max = 4;
  options.step_tokens_max = 32;
  options.context_tokens = 512;
  options.selector = "box:ratio=0.5,min_tokens=0,min_context=0";
  options.target = "ref";  // so that every step takes longer than the shortest target
  Request request = Prompt(100);
  request.max_tokens = 300;
  request.ignore_eos = true;
  const Answer expected = Ask(Engine::Open(options)->get(), request);
  options.target_itl_ms = 1e-3;
  EXPECT_NE(Engine::Open(options).status().message().find("target_itl_ms"), std::string::npos);
  options.target_itl_ms = 0.1;
  options.min_ratio = 0.2;
  std::vector<TuningStats> moves;
  options.on_tuning = [&](const TuningStats& t) { moves.push_back(t); };
  auto engine = *Engine::Open(options);
  EXPECT_EQ(engine->stats().tuning.ratio, 0.5);
  EXPECT_EQ(Ask(engine.get(), request).tokens, expected.tokens);
  const TuningStats tuning = engine->stats().tuning;
  engine.reset();
  EXPECT_EQ(tuning.moves, moves.size());
  ASSERT_FALSE(moves.empty());
  EXPECT_LT(moves.back().ratio, 0.5);
  for (const TuningStats& move : moves) {
    EXPECT_GE(move.ratio, 0.2);
    EXPECT_GE(move.sequences, 1u);
  }
}

TEST(StepPlugins, BadOnesAreRefused) {
  const auto engine = Open({});
  Request request = Prompt();
  request.step_plugins = {"early_exit:entropy=-1"};
  const auto submitted = engine->Submit(request, [](const TokenEvent&) {});
  ASSERT_FALSE(submitted.ok());
  EXPECT_EQ(submitted.status().code(), Code::kInvalidArgument);
  EXPECT_NE(submitted.status().message().find("allowed is a number from 0 to 20"),
            std::string::npos);
  // Known to be wrong once a model is there.
  request.step_plugins = {"early_exit:layer=900"};
  const Answer answer = Ask(engine.get(), request);
  EXPECT_EQ(answer.finish, FinishReason::kError);
  EXPECT_NE(answer.status.message().find("layer is 900"), std::string::npos);
}

// What was generated with early exits is not what others would have generated.
TEST(StepPlugins, GeneratedBlocksAreSharedUnderTheSamePluginsAlone) {
  const auto engine = Open({});
  Request first = Prompt(62);
  first.max_tokens = 70;
  first.ignore_eos = true;
  first.step_plugins = {"early_exit:layer=1,entropy=4"};
  const Answer answer = Ask(engine.get(), first);
  Request next = first;
  next.prompt.insert(next.prompt.end(), answer.tokens.begin(), answer.tokens.end());
  next.max_tokens = 1;
  const uint32_t shared = Ask(engine.get(), next).usage.cached_tokens;
  EXPECT_GT(shared, 62u);
  next.step_plugins.reset();
  EXPECT_LE(Ask(engine.get(), next).usage.cached_tokens, 64u);
}

}  // namespace
}  // namespace tinyserve
