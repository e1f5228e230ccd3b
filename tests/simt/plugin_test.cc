// A selector plugin with a device entry, examples/skeleton_selector.cc, on a device and on the CPU.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/simt/engine_testing.h"

namespace tinyserve {
namespace {

constexpr char kBudget[] = "ratio=0.6,min_tokens=0,min_context=16,recent=1";

std::unique_ptr<Engine> OpenWith(const std::string& selector, const std::string& device) {
  return OpenTiny([&](EngineOptions* o) {
    o->model_path = kFolder + "llama-llama3.gguf";  // two layers
    o->selector = selector;
    o->device = device;
    o->plugins = {TS_SKELETON_SELECTOR};
  });
}

// The same bound of a page as the built-in box's, so the same pages and the same bits.
TEST(DevicePlugin, ChoosesAsTheBuiltInBox) {
  for (const char* device : {"cuda", "cpu"}) {
    Answer answers[2];
    SelectionStats stats[2];
    for (const bool plugin : {false, true}) {
      auto engine = OpenWith(std::string(plugin ? "skeleton:" : "box:pool=max,") + kBudget, device);
      ASSERT_NE(engine, nullptr);
      answers[plugin] = Ask(engine.get(), Prompt(120, 3, 8));
      stats[plugin] = engine->stats().selection;
    }
    ExpectSame(answers[0], answers[1]);
    EXPECT_GT(stats[1].queries, 0u);
    EXPECT_GT(stats[1].pages_scored, 0u);
    EXPECT_LT(stats[1].pages_read, stats[1].pages_held);
    EXPECT_EQ(stats[0].pages_scored, stats[1].pages_scored);
    EXPECT_EQ(stats[0].pages_read, stats[1].pages_read);
    EXPECT_EQ(stats[0].bytes_read, stats[1].bytes_read);
    EXPECT_EQ(stats[1].failures, 0u);
  }
}

TEST(DevicePlugin, ItsOptionsReachTheKernel) {
  Answer answers[2];
  for (const bool slack : {false, true}) {
    auto engine =
        OpenWith(std::string(slack ? "skeleton:slack=1," : "skeleton:") + kBudget, "cuda");
    ASSERT_NE(engine, nullptr);
    answers[slack] = Ask(engine.get(), Prompt(120, 3, 4));
    ASSERT_TRUE(answers[slack].status.ok()) << answers[slack].status.message();
  }
  EXPECT_NE(answers[0].logprobs, answers[1].logprobs);
}

// Rows of a step that a plugin's kernel is asked for beside others, at other budgets.
TEST(DevicePlugin, ComputesTheSameInCompany) {
  auto engine = OpenTiny([&](EngineOptions* o) {
    o->model_path = kFolder + "llama-llama3.gguf";
    o->selector = kTinyBox;
    o->plugins = {TS_SKELETON_SELECTOR};
  });
  ASSERT_NE(engine, nullptr);
  const std::string selectors[] = {std::string("skeleton:") + kBudget, kTinyBox,
                                   std::string("skeleton:slack=1,") + kBudget, "full"};
  std::vector<Request> requests;
  std::vector<Answer> alone(4), together(4);
  for (uint32_t i = 0; i < 4; ++i) {
    requests.push_back(Prompt(60 + 20 * i, i, 6));
    requests[i].selector = selectors[i];
    alone[i] = Ask(engine.get(), requests[i]);
  }
  std::vector<RequestId> ids;
  for (uint32_t i = 0; i < 4; ++i) {
    const auto id = engine->Submit(requests[i], CollectInto(&together[i]));
    ASSERT_TRUE(id.ok()) << id.status().message();
    ids.push_back(*id);
  }
  for (const RequestId id : ids) engine->Wait(id);
  for (uint32_t i = 0; i < 4; ++i) ExpectSame(alone[i], together[i]);
}

TEST(DevicePlugin, OfTheHostAloneIsRefused) {
  const Status status = Engine::Open(TinyOptions([](EngineOptions* o) {
                          o->plugins = {TS_SUBPAGE_SELECTOR};
                          o->selector = "subpage";
                        })).status();
  EXPECT_EQ(status.code(), Code::kUnsupported);
  EXPECT_NE(status.message().find("selector 'subpage': its code runs on the host, where the pages "
                                  "of a device are not, and it brings no device entry"),
            std::string::npos)
      << status.message();
}

// Coded pages keep boxes for it beside their own records: over planes the same as the built-in
// box's, over int8, whose ranges that one reads, as many pages.
TEST(DevicePlugin, ReadsCodedPages) {
  for (const char* kv : {"planes", "int8"}) {
    Answer answers[2];
    SelectionStats stats[2];
    for (const bool plugin : {false, true}) {
      auto engine = OpenTiny([&](EngineOptions* o) {
        o->model_path = kFolder + "llama-llama3.gguf";
        o->selector = std::string(plugin ? "skeleton:" : "box:pool=max,") + kBudget;
        o->plugins = {TS_SKELETON_SELECTOR};
        o->kv = kv;
      });
      ASSERT_NE(engine, nullptr);
      answers[plugin] = Ask(engine.get(), Prompt(140, 3, 4));
      ASSERT_TRUE(answers[plugin].status.ok()) << answers[plugin].status.message();
      stats[plugin] = engine->stats().selection;
    }
    if (std::string(kv) == "planes") ExpectSame(answers[0], answers[1]);
    EXPECT_GT(stats[1].pages_scored, 0u);
    EXPECT_LT(stats[1].pages_read, stats[1].pages_held);
    EXPECT_EQ(stats[0].pages_scored, stats[1].pages_scored) << kv;
    EXPECT_EQ(stats[0].pages_read, stats[1].pages_read) << kv;
    EXPECT_EQ(stats[1].failures, 0u);
  }
}

}  // namespace
}  // namespace tinyserve
