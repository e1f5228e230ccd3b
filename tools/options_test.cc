#include "tools/options.h"

#include <gtest/gtest.h>

namespace tinyserve {
namespace {

class NamedFlags : public testing::Test {
 protected:
  NamedFlags() {
    AddEngineOptions(&app_, &engine_);
    AddSamplingOptions(&app_, &sampling_);
  }

  CLI::App app_;
  EngineFlags engine_;
  SamplingFlags sampling_;
};

TEST_F(NamedFlags, StandForTheFieldsOfTheApi) {
  EXPECT_EQ(NameFlags("context_tokens is 9: at most 4", app_), "--ctx is 9: at most 4");
  EXPECT_EQ(NameFlags("too little (kv_memory_bytes)", app_), "too little (--kv-memory)");
  EXPECT_EQ(NameFlags("prompt (3 tokens) and max_tokens (5) make 8", app_),
            "prompt (3 tokens) and --max-tokens (5) make 8");
  EXPECT_EQ(NameFlags("top_p, min_p and top_p", app_), "--top-p, --min-p and --top-p");
  EXPECT_EQ(NameFlags("target \"z80\" is unknown", app_), "--target \"z80\" is unknown");
}

TEST_F(NamedFlags, LeaveOtherTextAlone) {
  for (const char* message :
       {"", "sequences_max is 0", "the next_page_tokens", "page_tokens_max is 3",
        "models/top_p.gguf: no such file", "top_p/x: no such file", "llama.context_tokens is 3",
        "no stop, no target and no threads"}) {
    EXPECT_EQ(NameFlags(message, app_), message);
  }
}

TEST_F(NamedFlags, AreThoseOfTheSubcommand) {
  app_.remove_option(app_.get_option("--ctx"));
  EXPECT_EQ(NameFlags("context_tokens is 9", app_), "context_tokens is 9");
  app_.add_option("--context", engine_.context_tokens);
  EXPECT_EQ(NameFlags("context_tokens is 9", app_), "--context is 9");
}

}  // namespace
}  // namespace tinyserve
