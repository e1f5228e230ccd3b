#include "tools/method.h"

#include <gtest/gtest.h>

namespace tinyserve {
namespace {

using Texts = std::vector<std::string>;

Texts Stored(const Texts& typed, const std::string& kv) {
  Texts stored;
  for (const Method& method : *ParseMethods(typed, kv)) stored.push_back(method.kv);
  return stored;
}

std::string MessageOf(const std::string& typed, const std::string& kv) {
  return ParseMethods({typed}, kv).status().message();
}

TEST(Method, IsStoredAsItReads) {
  const Texts typed = {"full",    "cascade:ratio=0.5", "box:ratio=0.2",
                       "default", "full@planes",       "moments@f32"};
  EXPECT_EQ(Stored(typed, ""), (Texts{"f16", "planes", "f16", "planes", "planes", "f32"}));
  EXPECT_EQ(Stored(typed, "bf16"), (Texts{"bf16", "planes", "bf16", "planes", "planes", "f32"}));
  EXPECT_EQ(Stored({"full", "cascade", "full@f16"}, "planes"), (Texts{"planes", "planes", "f16"}));
  EXPECT_EQ(Stored({"box@planes", "box"}, ""), (Texts{"planes", "f16"}));
  EXPECT_EQ(Stored({"box", "moments@f32"}, "planes"), (Texts{"planes", "f32"}));
}

TEST(Method, KeepsWhatWasTypedAndWhatItMeans) {
  const Method method = (*ParseMethods({"box:ratio=0.2@f32"}, ""))[0];
  EXPECT_EQ(method.typed, "box:ratio=0.2@f32");
  EXPECT_EQ(method.spec.typed, "box:ratio=0.2");
  EXPECT_EQ(method.spec.resolved, ParseSelector("box:ratio=0.2")->resolved);
  EXPECT_EQ((*ParseMethods({"default"}, ""))[0].spec.resolved, ParseSelector("cascade")->resolved);
}

TEST(Method, RefusesAStorageThatItsSelectorDoesNotRead) {
  EXPECT_EQ(MessageOf("cascade@f16", ""),
            "selector 'cascade': the KV cache is stored as f16, and it reads pages in planes only: "
            "choose planes for the KV cache");
  EXPECT_EQ(MessageOf("full@q3", ""),
            "full@q3: kv is 'q3': allowed are f32, f16, bf16, planes, int8, k8v4, int4");
  EXPECT_EQ(MessageOf("full@", ""),
            "full@: kv is '': allowed are f32, f16, bf16, planes, int8, k8v4, int4");
  EXPECT_NE(MessageOf("boxes@f16", ""), "");
}

TEST(Method, DenseInTheBaseStorageIsTheBase) {
  const std::vector<Method> methods = *ParseMethods({"full", "full@planes", "streaming"}, "");
  EXPECT_TRUE(methods[0].IsBase(BaseKv("")));
  EXPECT_FALSE(methods[1].IsBase(BaseKv("")));
  EXPECT_TRUE(methods[1].IsBase(BaseKv("planes")));
  EXPECT_FALSE(methods[2].IsBase(BaseKv("")));
}

TEST(Method, StoragesHaveTheirOwnSelectors) {
  const std::vector<Method> methods =
      *ParseMethods({"full", "cascade", "box", "moments@f32", "full@planes"}, "");
  EXPECT_EQ(StoragesOf(methods), (Texts{"f16", "planes", "f32"}));
  const auto names = [&](const std::string& kv) {
    Texts typed;
    for (const SelectorSpec& spec : SelectorsOf(methods, kv)) typed.push_back(spec.typed);
    return typed;
  };
  EXPECT_EQ(names("f16"), (Texts{"full", "box"}));
  EXPECT_EQ(names("planes"), (Texts{"cascade", "full"}));
  EXPECT_EQ(names("f32"), (Texts{"moments"}));
  EXPECT_EQ(names("bf16"), Texts{});
  EXPECT_EQ(ListStorages(StoragesOf(methods)), "f16, planes and f32");
  EXPECT_EQ(ListStorages({"f16"}), "f16");
}

TEST(Method, ResolvedLinesSayWhatShortNamesMean) {
  EXPECT_EQ(ResolvedLines(*ParseMethods({"full", "default", "full@planes"}, "")),
            "default is " + ParseSelector("cascade")->resolved + " over planes\n");
}

}  // namespace
}  // namespace tinyserve
