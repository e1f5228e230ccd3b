// An engine whose device fails: requests are told, the engine stays.
#include <gtest/gtest.h>

#include <string>

#include "tests/oracles/answers.h"
#include "tests/simt/emulated_runtime.h"

namespace tinyserve {
namespace {

EngineOptions Options() {
  EngineOptions options;
  options.model_path = TS_SOURCE_DIR "/tests/golden/tiny/llama-q4_k.gguf";
  options.device = "cuda";
  options.threads = 1;
  options.kv_memory_bytes = 1 << 20;
  options.sequences_max = 2;
  options.step_tokens_max = 32;
  options.context_tokens = 64;
  return options;
}

Request Prompt(uint32_t max_tokens) {
  Request request;
  request.prompt = {1, 2, 3, 4, 5};
  request.max_tokens = max_tokens;
  request.ignore_eos = true;
  return request;
}

class DeviceFaults : public testing::Test {
 protected:
  void TearDown() override {
    simt::ReplaceDevice();
    simt::SetDeviceMemory(0);
    EXPECT_EQ(simt::Counts().bytes_in_use, before_);
  }
  uint64_t before_ = simt::Counts().bytes_in_use;
};

TEST_F(DeviceFaults, ALostDeviceEndsItsRequestsAndLeavesTheEngine) {
  auto engine = *Engine::Open(Options());
  const uint64_t before = simt::Counts().launches;
  ASSERT_TRUE(Ask(engine.get(), Prompt(1)).status.ok());
  // Some launches into the second answer.
  simt::LoseDeviceAt(simt::Counts().launches - before + 10);
  const Answer lost = Ask(engine.get(), Prompt(20));
  EXPECT_EQ(lost.finish, FinishReason::kError);
  EXPECT_EQ(lost.status.code(), Code::kInternal);
  EXPECT_NE(lost.status.message().find("lost"), std::string::npos) << lost.status.message();
  EXPECT_EQ(engine->stats().blocks_used, 0u);
  const Answer after = Ask(engine.get(), Prompt(1));
  EXPECT_EQ(after.finish, FinishReason::kError);
  EXPECT_NE(engine->stats().device_error, "");
}

TEST_F(DeviceFaults, TooLittleMemoryIsToldBeforeAnythingRuns) {
  // Enough for some of what is allocated one after another, never for all.
  for (const uint64_t bytes : {1u << 10, 600u << 10, 2u << 20}) {
    simt::SetDeviceMemory(simt::Counts().bytes_in_use + bytes);
    const Status status = Engine::Open(Options()).status();
    EXPECT_EQ(status.code(), Code::kOutOfMemory) << bytes << ": " << status.message();
    EXPECT_NE(status.message().find("are free"), std::string::npos) << status.message();
    EXPECT_EQ(simt::Counts().bytes_in_use, before_);
  }
}

// Steps allocate nothing, and steps that decode are graphs.
TEST_F(DeviceFaults, StepsAllocateNothingAndAreReplayed) {
  auto engine = *Engine::Open(Options());
  ASSERT_TRUE(Ask(engine.get(), Prompt(4)).status.ok());
  const simt::DeviceCounts before = simt::Counts();
  ASSERT_TRUE(Ask(engine.get(), Prompt(8)).status.ok());
  const simt::DeviceCounts after = simt::Counts();
  EXPECT_EQ(after.allocations, before.allocations);
  EXPECT_EQ(after.graph_launches - before.graph_launches, 7u);  // all but the prompt's
  EXPECT_EQ(after.waits - before.waits, 8u);                    // one a step
}

// All rows of a prompt go through attention together; over f32 pages some go after others.
TEST_F(DeviceFaults, ALongPromptTakesAsManyLaunchesAsAShortOne) {
  for (const auto& [kv, alike] :
       {std::pair{"f16", true}, {"planes", true}, {"k8v4", true}, {"f32", false}}) {
    EngineOptions options = Options();
    options.kv = kv;
    options.selector = "full";
    auto engine = *Engine::Open(options);
    uint64_t launches[2];
    for (const bool longer : {false, true}) {
      Request request = Prompt(1);
      request.prompt.resize(longer ? 30 : 2, 7);
      const uint64_t before = simt::Counts().launches;
      ASSERT_TRUE(Ask(engine.get(), request).status.ok());
      launches[longer] = simt::Counts().launches - before;
    }
    EXPECT_EQ(launches[0] == launches[1], alike)
        << kv << ": " << launches[0] << ", " << launches[1];
  }
}

}  // namespace
}  // namespace tinyserve
