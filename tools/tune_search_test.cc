#include "tools/tune_search.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <set>

#include "tools/config_file.h"

namespace tinyserve {
namespace {

TuneSetting SettingOf(const std::string& typed, double tokens_per_s) {
  return {.method = (*ParseMethods({typed}, ""))[0],
          .quality = {.kl = 0.002, .kl_se = 0.0005, .top1 = 0.97, .scored_tokens = 1024},
          .speed = {.tokens_per_s = tokens_per_s, .speedup = 2},
          .timed = tokens_per_s > 0};
}

TEST(TuneSearch, EverySettingOfTheGridCanBeRead) {
  std::set<std::string> resolved;
  const Result<std::vector<Method>> methods = ParseMethods(DefaultGrid(), "");
  ASSERT_TRUE(methods.ok()) << methods.status().message();
  for (const Method& method : *methods) {
    EXPECT_TRUE(resolved.insert(method.resolved + method.kv).second) << method.typed;
  }
}

TEST(TuneSearch, TwoErrorsDecideWhatIsWithinTheCeiling) {
  const TuneQuality quality{.kl = 0.005, .kl_se = 0.001, .top1 = 1, .scored_tokens = 100};
  EXPECT_TRUE(IsWithin(quality, 0.0071));
  EXPECT_FALSE(IsWithin(quality, 0.0069));
  EXPECT_TRUE(MayBeWithin(quality, 0.0031));
  EXPECT_FALSE(MayBeWithin(quality, 0.0029));
  EXPECT_TRUE(IsWithin({.kl = 0, .kl_se = 0, .top1 = 1, .scored_tokens = 100}, 0));  // dense
}

TEST(TuneSearch, TheFastestOfThoseThatWereTimedIsChosen) {
  const std::vector<TuneSetting> settings = {SettingOf("full", 100), SettingOf("box", 0),
                                             SettingOf("moments", 150), SettingOf("default", 150)};
  EXPECT_EQ(Fastest(settings), 2u);
}

TEST(TuneSearch, HalvesShareNoToken) {
  const TuneTexts texts = Halves({.prefix = {1}, .tokens = {10, 11, 12, 13, 14}});
  EXPECT_EQ(texts.tuning.tokens, (std::vector<int32_t>{10, 11}));
  EXPECT_EQ(texts.check.tokens, (std::vector<int32_t>{12, 13, 14}));
  EXPECT_EQ(texts.tuning.prefix, texts.check.prefix);
}

// What is written is read by --config as it was meant.
TEST(TuneSearch, TheConfigurationFileSetsWhatWasFound) {
  TuneSetting tuned = SettingOf("box:ratio=0.2@int8", 100), measured = tuned;
  measured.quality.kl = 0.02;
  const TuneSetup setup{.model = "a model\nwith lines",
                        .text = "one text",
                        .check_text = "another",
                        .ceiling = 0.006,
                        .context = 4096,
                        .batch = 8,
                        .page_tokens = 32,
                        .plugins = {"a \"quoted\" \\path.so"}};
  const std::string text = TunedConfig(tuned, measured, setup);
  EXPECT_NE(text.find("above what was wanted"), std::string::npos) << text;
  const std::string path = testing::TempDir() + "tuned.toml";
  std::FILE* file = std::fopen(path.c_str(), "w");
  ASSERT_NE(file, nullptr);
  std::fputs(text.c_str(), file);
  std::fclose(file);
  CLI::App app;
  std::string selector, kv;
  uint32_t page_tokens = 16;
  std::vector<std::string> plugins;
  app.add_option("--selector", selector);
  app.add_option("--kv", kv);
  app.add_option("--page-tokens", page_tokens);
  app.add_option("--plugin", plugins);
  ASSERT_EQ(ApplyConfigFile(path, &app).message(), "") << text;
  std::remove(path.c_str());
  EXPECT_EQ(selector, "box:ratio=0.2");
  EXPECT_EQ(kv, "int8");
  EXPECT_EQ(page_tokens, 32u);
  EXPECT_EQ(plugins, setup.plugins);
  // The storage that a selector has anyway is not fixed: another --selector may follow.
  EXPECT_EQ(TunedConfig(SettingOf("default", 1), measured, setup).find("kv"), std::string::npos);
}

TEST(TuneSearch, ReportsSayWhetherTheCeilingHolds) {
  TuneSetting tuned = SettingOf("default", 200), measured = tuned;
  TuneSetup setup{.ceiling = 0.006, .context = 4096, .batch = 1};
  EXPECT_TRUE(TunedJson(tuned, measured, setup, "x.toml").at("holds").as_bool());
  measured.quality.kl = 0.0061;
  EXPECT_FALSE(TunedJson(tuned, measured, setup, "x.toml").at("holds").as_bool());
  EXPECT_NE(TunedText(measured, setup, "x.toml").find("a lower --kl"), std::string::npos);
  tuned.timed = false;
  EXPECT_TRUE(TuneSettingJson(tuned, setup).at("tokens_per_s").is_null());
}

}  // namespace
}  // namespace tinyserve
