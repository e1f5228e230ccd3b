// Device entries that are wrong: refused with the reason, or caught.
#include <gtest/gtest.h>

#include <string>

#include "tests/simt/engine_testing.h"

namespace tinyserve {
namespace {

constexpr char kFaulty[] = TS_FAULTY_SELECTORS "/faulty_";

std::string RefusalOf(const std::string& fault) {
  const Status status = Engine::Open(TinyOptions([&](EngineOptions* o) {
                          o->plugins = {kFaulty + fault + ".so"};
                          o->selector = "faulty_" + fault;
                        })).status();
  EXPECT_FALSE(status.ok()) << fault;
  return status.message();
}

TEST(DeviceEntry, ThatDoesNotLoadIsRefusedAtStart) {
  for (const auto& [fault, reason] :
       {std::pair{"old", "faulty_old.so: device entry: abi_version is 0: 1 is needed"},
        {"short", "faulty_short.so: device entry: struct_size is 16: version 1 has "},
        {"cut", "faulty_cut.so: device entry: image is PTX without a zero byte at its end"},
        {"arch",
         "selector 'faulty_arch': its device entry does not load: LoadLibrary failed: the image "
         "has no code for this device"},
        {"missing",
         "selector 'faulty_missing': its device entry does not load: the image has no kernel "
         "'no_such_kernel'"}}) {
    const std::string message = RefusalOf(fault);
    EXPECT_NE(message.find(reason), std::string::npos) << message;
  }
}

// One that is not asked for at start is told to the request that names it; others go on.
TEST(DeviceEntry, ThatDoesNotLoadIsRefusedToARequest) {
  auto engine = OpenTiny([](EngineOptions* o) {
    o->plugins = {std::string(kFaulty) + "missing.so"};
    o->selector = kTinyBox;
  });
  ASSERT_NE(engine, nullptr);
  Request request = Prompt(30, 1, 2);
  request.selector = "faulty_missing";
  const Answer refused = Ask(engine.get(), request);
  EXPECT_NE(refused.status.message().find("no_such_kernel"), std::string::npos)
      << refused.status.message();
  EXPECT_TRUE(Ask(engine.get(), Prompt(30, 1, 2)).status.ok());
}

// A score that is no number (in the first layer), and one that is left out (in the second):
// everything is read at that KV head, and counted.
TEST(DeviceEntry, ScoresThatAreNoNumbersReadEverything) {
  const std::string budget = "ratio=0.6,min_tokens=0,min_context=16,recent=1";
  const auto ask = [&](const std::string& selector, SelectionStats* stats) {
    auto engine = OpenTiny([&](EngineOptions* o) {
      o->model_path = kFolder + "llama-llama3.gguf";  // two layers
      o->plugins = {std::string(kFaulty) + "nan.so"};
      o->selector = selector;
    });
    EXPECT_NE(engine, nullptr);
    const Answer answer = Ask(engine.get(), Prompt(120, 3, 6));
    *stats = engine->stats().selection;
    return answer;
  };
  SelectionStats none, one, all, full;
  const Answer dense = ask("full", &full);
  ask("faulty_nan:" + budget, &none);
  ask("faulty_nan:layers=1," + budget, &one);
  const Answer failed = ask("faulty_nan:layers=2," + budget, &all);
  ExpectSame(dense, failed);  // bit for bit
  ASSERT_GT(none.queries, 0u);
  EXPECT_EQ(none.failures, 0u);
  EXPECT_LT(none.pages_read, none.pages_held);
  EXPECT_EQ(all.queries, none.queries);
  EXPECT_EQ(all.failures, all.queries);
  EXPECT_EQ(all.pages_read, all.pages_held);
  EXPECT_EQ(one.failures * 2, all.failures);
  EXPECT_EQ((one.pages_read - none.pages_read) * 2, all.pages_read - none.pages_read);
  EXPECT_EQ((one.bytes_read - none.bytes_read) * 2, all.bytes_read - none.bytes_read);
}

}  // namespace
}  // namespace tinyserve
