// A long prompt beside streams goes through the layers by and by. Whatever becomes of it, nobody's
// answer changes, and all blocks come back.
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <latch>
#include <string>

#include "tests/oracles/answers.h"

namespace tinyserve {
namespace {

struct Setup {
  const char* name;
  const char* kv;
  const char* selector;
};

constexpr uint32_t kStreams = 2, kPromptTokens = 900, kBlockTokens = 16;

class PromptByLayers : public testing::TestWithParam<Setup> {
 protected:
  ~PromptByLayers() override { std::remove(trace_.c_str()); }

  // blocks: of the pool; 0: more than enough.
  void Open(uint32_t blocks = 0) {
    EngineOptions options;
    options.model_path = TS_SOURCE_DIR "/tests/golden/tiny/llama.gguf";
    options.threads = 2;
    options.sequences_max = 4;
    options.step_tokens_max = 256;
    options.context_tokens = 1024;
    options.block_tokens = kBlockTokens;
    options.kv = GetParam().kv;
    options.selector = GetParam().selector;
    options.prefix_cache = false;
    options.kv_memory_bytes = 16 << 20;
    if (blocks != 0) {
      const auto large = Engine::Open(options);
      const ModelInfo& info = (*large)->info();
      options.kv_memory_bytes = info.kv_pool_bytes - ((*large)->stats().blocks_total - blocks) *
                                                         uint64_t{kBlockTokens} *
                                                         info.kv_bytes_per_token;
    }
    options.trace_path = trace_;
    auto engine = Engine::Open(options);
    ASSERT_TRUE(engine.ok()) << engine.status().message();
    engine_ = *std::move(engine);
    ASSERT_TRUE(blocks == 0 || engine_->stats().blocks_total == blocks);
  }

  static Request MakeRequest(uint32_t seed, uint32_t prompt, uint32_t max_tokens) {
    Request request;
    for (uint32_t t = 0; t < prompt; ++t)
      request.prompt.push_back(static_cast<int32_t>((t * (7 + 2 * seed) + t * t % 11) % 200));
    request.max_tokens = max_tokens;
    request.ignore_eos = true;
    request.top_logprobs = 0;
    return request;
  }
  static Request Stream(uint32_t i) {
    Request stream = MakeRequest(1 + i, 20 + 30 * i, 400);
    stream.priority = Priority::kHigh;
    return stream;
  }
  static Request LongPrompt() {
    Request prompt = MakeRequest(9, kPromptTokens, 8);
    prompt.priority = Priority::kLow;
    return prompt;
  }

  // Runs the streams, with the long prompt from the second one's `arrival`th token on.
  // cancel_after: tokens of that stream, from then on, after which it is cancelled; 0: it is not.
  void RunTogether(uint32_t arrival, uint32_t cancel_after) {
    std::latch here(1), sent(1), late(1), cancelled(1);
    std::vector<RequestId> ids;
    for (uint32_t i = 0; i < kStreams; ++i) {
      streams_[i] = Answer();
      EventSink sink = CollectInto(&streams_[i]);
      if (i == 1) {
        sink = [&, collect = std::move(sink)](const TokenEvent& event) {
          collect(event);
          const size_t tokens = streams_[1].tokens.size();
          if (event.kind != TokenEvent::Kind::kToken) return;
          if (tokens == arrival) {
            here.count_down();
            sent.wait();
          } else if (cancel_after != 0 && tokens == arrival + cancel_after) {
            late.count_down();
            cancelled.wait();
          }
        };
      }
      ids.push_back(*engine_->Submit(Stream(i), std::move(sink)));
    }
    here.wait();
    prompt_ = Answer();
    const RequestId prompt = *engine_->Submit(LongPrompt(), CollectInto(&prompt_));
    sent.count_down();
    if (cancel_after != 0) {
      late.wait();
      engine_->Cancel(prompt);
      cancelled.count_down();
    }
    ids.push_back(prompt);
    for (const RequestId id : ids) engine_->Wait(id);
  }
  void ExpectStreamsAsAlone() const {
    for (uint32_t i = 0; i < kStreams; ++i) ExpectAs(alone_[i], streams_[i]);
  }
  static void ExpectAs(const Answer& expected, const Answer& found) {
    EXPECT_EQ(found.finish, FinishReason::kLength);
    EXPECT_EQ(found.tokens, expected.tokens);
    EXPECT_EQ(found.logprobs, expected.logprobs);
  }
  void AskAlone() {
    for (uint32_t i = 0; i < kStreams; ++i) alone_[i] = Ask(engine_.get(), Stream(i));
    prompt_alone_ = Ask(engine_.get(), LongPrompt());
    ASSERT_EQ(prompt_alone_.finish, FinishReason::kLength);
  }

  // How many steps took some layers of a chunk and left others, as the trace tells it.
  int PartsLeft() {
    EXPECT_TRUE(engine_->EndTrace().ok());
    std::ifstream trace(trace_);
    int left = 0;
    for (std::string line; std::getline(trace, line);) {
      left += line.find("\"name\":\"part\"") != std::string::npos &&
              line.find("\"end_sublayer\":6") == std::string::npos;
    }
    return left;
  }

  const std::string trace_ = testing::TempDir() + "prompt_by_layers_" + GetParam().name + ".json";
  std::unique_ptr<Engine> engine_;
  Answer alone_[kStreams], streams_[kStreams], prompt_alone_, prompt_;
};

TEST_P(PromptByLayers, ThatFinishesIsAnsweredAsAlone) {
  Open();
  AskAlone();
  for (const uint32_t arrival : {20u, 33u}) {
    RunTogether(arrival, 0);
    ExpectStreamsAsAlone();
    ExpectAs(prompt_alone_, prompt_);
    EXPECT_EQ(prompt_.prefilled[kPromptTokens], 1);
  }
  EXPECT_EQ(engine_->stats().blocks_used, 0u);
  EXPECT_GT(PartsLeft(), 0);
}

TEST_P(PromptByLayers, ThatIsCancelledLeavesNothing) {
  Open();
  AskAlone();
  for (uint32_t after = 1; after < 10; ++after) {
    RunTogether(20, after);
    ExpectStreamsAsAlone();
    EXPECT_EQ(prompt_.finish, FinishReason::kCancelled) << after;
    EXPECT_TRUE(prompt_.tokens.empty());
    EXPECT_EQ(engine_->stats().blocks_used, 0u);
  }
  // The next one takes over what is left of it, and its blocks.
  RunTogether(20, 0);
  ExpectAs(prompt_alone_, prompt_);
  EXPECT_GT(PartsLeft(), 0);
}

// The streams come to need what the prompt holds.
TEST_P(PromptByLayers, ThatIsPreemptedBeginsAnew) {
  // Of the first stream, the second, the prompt, and one for each stream, without which it would
  // not be let in: a few tokens later there is none left.
  Open(/*blocks=*/9 + 10 + 57 + 2);
  AskAlone();
  for (int i = 0; i < 3; ++i) {
    RunTogether(/*arrival=*/109, 0);
    ExpectStreamsAsAlone();
    ExpectAs(prompt_alone_, prompt_);
  }
  EXPECT_GT(engine_->stats().preemptions, 0u);
  EXPECT_EQ(engine_->stats().blocks_used, 0u);
  EXPECT_GT(PartsLeft(), 0);
}

INSTANTIATE_TEST_SUITE_P(Storages, PromptByLayers,
                         testing::Values(Setup{"f16", "f16", "full"},
                                         Setup{"cascade", "planes", kTinyCascade}),
                         [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace tinyserve
