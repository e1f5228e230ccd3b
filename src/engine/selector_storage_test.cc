#include "engine/selector_storage.h"

#include <gtest/gtest.h>

namespace tinyserve {
namespace {

TEST(SelectorStorage, EverySelectorIsServedFromItsOwn) {
  for (const char* text : {"full", "box", "moments", "streaming", "random", "oracle"}) {
    EXPECT_EQ(KvFor(*ParseSelector(text)), "f16") << text;
  }
  for (const char* text : {"cascade", "default"}) {
    EXPECT_EQ(KvFor(*ParseSelector(text)), "planes") << text;
  }
}

TEST(SelectorStorage, RefusesWhatCannotBeRead) {
  const auto message = [](const char* selector, const char* kv) {
    return CheckStored(*ParseSelector(selector), **FindCodec(kv)).message();
  };
  EXPECT_EQ(message("full", "planes"), "");
  EXPECT_EQ(message("full", "bf16"), "");
  EXPECT_EQ(message("box", "f32"), "");
  EXPECT_EQ(message("cascade", "planes"), "");
  EXPECT_EQ(message("default", "f16"),
            "selector 'default': the KV cache is stored as f16, and it reads pages in planes only: "
            "choose planes for the KV cache");
  EXPECT_EQ(message("oracle", "planes"), "");
  EXPECT_EQ(message("oracle", "int4"), "");
  EXPECT_NE(message("cascade", "int8"), "");
}

}  // namespace
}  // namespace tinyserve
