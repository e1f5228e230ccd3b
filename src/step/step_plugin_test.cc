#include "step/step_plugin.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "step/builtin_steps.h"
#include "step/entropy.h"
#include "step/step_registry.h"

namespace tinyserve {
namespace {

double SlowEntropy(const std::vector<float>& logits) {
  double top = -INFINITY, sum = 0, entropy = 0;
  for (float x : logits) top = std::max<double>(top, x);
  for (float x : logits) sum += std::exp(x - top);
  for (float x : logits) {
    const double p = std::exp(x - top) / sum;
    if (p > 0) entropy -= p * std::log(p);
  }
  return entropy;
}

TEST(Entropy, EqualsTheDefinition) {
  std::mt19937 random(1);
  for (const float spread : {0.0f, 0.3f, 2.0f, 10.0f, 60.0f}) {
    for (const size_t n : {1u, 7u, 16u, 1000u, 49152u}) {
      std::normal_distribution<float> normal(-3, std::max(spread, 1e-6f));
      std::vector<float> logits(n);
      for (float& x : logits) x = normal(random);
      EXPECT_NEAR(EntropyOf(logits), SlowEntropy(logits), 1e-4) << spread << " " << n;
    }
  }
}

TEST(Entropy, OfWhatIsNoNumberIsNone) {
  std::vector<float> logits(100, 1.0f);
  EXPECT_NEAR(EntropyOf(logits), std::log(100.0), 1e-5);
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    logits[40] = bad;
    EXPECT_FALSE(std::isfinite(EntropyOf(logits))) << bad;
  }
}

Result<std::vector<StepSpec>> Parse(const std::vector<std::string>& texts) {
  return ParseStepPlugins(texts);
}

TEST(StepPlugins, AreAskedByPriorityWhateverTheOrderTyped) {
  const auto specs = Parse({"low_entropy_end:tokens=3", "early_exit:entropy=0.25,layer=4"});
  ASSERT_TRUE(specs.ok()) << specs.status().message();
  EXPECT_EQ(ResolvedSteps(*specs),
            "early_exit:layer=4,every=0,entropy=0.25+low_entropy_end:tokens=3,entropy=0.2");
}

TEST(StepPlugins, BadSpecificationsAreRefusedByName) {
  const auto refused = [](const std::vector<std::string>& texts, const std::string& part) {
    const auto specs = Parse(texts);
    ASSERT_FALSE(specs.ok()) << texts[0];
    EXPECT_NE(specs.status().message().find(part), std::string::npos) << specs.status().message();
  };
  refused({"nothing"}, "there is no step plugin 'nothing': early_exit, low_entropy_end are known");
  refused({"early_exit:entropy=21"}, "entropy is '21': allowed is a number from 0 to 20");
  refused({"early_exit:layer=1.5"}, "a whole number from 0 to 1024");
  refused({"early_exit:depth=3"}, "'depth' is no option of it: it has layer, every, entropy");
  refused({"early_exit:"}, "options are missing");
  refused({"early_exit", "early_exit:layer=2"}, "the same plugin");
  refused(std::vector<std::string>(9, "early_exit"), "at most 8");
  const auto specs = Parse({"early_exit:layer=3"});
  const auto opened = StepPlugins::Open(
      *specs, {.struct_size = sizeof(tinyserve_step_shape), .layers = 3, .vocab = 10});
  ASSERT_FALSE(opened.ok());
  EXPECT_NE(opened.status().message().find("the model has 3 layers"), std::string::npos);
}

TEST(StepPlugins, TablesOfOtherVersionsAreRefused) {
  tinyserve_step_v1 table = *BuiltinSteps()[0];
  EXPECT_EQ(CheckStepTable(&table).message(), "");
  table.abi_version = 2;
  EXPECT_NE(CheckStepTable(&table).message().find("abi_version is 2"), std::string::npos);
  table = *BuiltinSteps()[0];
  table.struct_size -= 8;
  EXPECT_NE(CheckStepTable(&table).message().find("struct_size"), std::string::npos);
  table = *BuiltinSteps()[0];
  table.asks_after = nullptr;
  EXPECT_NE(CheckStepTable(&table).message().find("go together"), std::string::npos);
  table = *BuiltinSteps()[0];
  table.answer_bytes = 8;
  EXPECT_NE(CheckStepTable(&table).message().find("answer_bytes"), std::string::npos);
  table.name = "Not a name";
  EXPECT_FALSE(CheckStepTable(&table).ok());
}

// Answers as its layer says: 0 and 1, something else, or a failure.
int Odd(void*, const tinyserve_layer_in* in, uint32_t* leave) {
  *leave = in->layers_done;
  return in->layers_done == 3;
}

TEST(StepPlugins, FailuresChangeNothingAndAreCounted) {
  tinyserve_step_v1 table = *BuiltinSteps()[0];
  table.leave = Odd;
  table.asks_after = [](void*, uint32_t) { return 1; };
  std::vector<StepSpec> specs = *Parse({"early_exit"});
  specs[0].table = &table;
  const auto steps = StepPlugins::Open(
      specs, {.struct_size = sizeof(tinyserve_step_shape), .layers = 5, .vocab = 4});
  ASSERT_TRUE(steps.ok());
  const float logits[4] = {};
  const auto leaves = [&](uint32_t layers_done) {
    return (*steps)->Leaves({.struct_size = 0,
                             .layers_done = layers_done,
                             .position = 0,
                             .vocab = 4,
                             .logits = logits});
  };
  EXPECT_TRUE(leaves(1));
  EXPECT_FALSE(leaves(2));
  EXPECT_FALSE(leaves(3));
  const StepCounts& counts = (*steps)->plugins()[0]->counts();
  EXPECT_EQ(counts.calls, 3u);
  EXPECT_EQ(counts.effects, 1u);
  EXPECT_EQ(counts.errors, 2u);
}

TEST(LowEntropyEnd, EndsAfterSoManyCertainTokensInARow) {
  const auto steps =
      StepPlugins::Open(*Parse({"low_entropy_end:tokens=3,entropy=0.1"}),
                        {.struct_size = sizeof(tinyserve_step_shape), .layers = 2, .vocab = 8});
  ASSERT_TRUE(steps.ok());
  std::vector<uint64_t> state(((*steps)->answer_bytes() + 7) / 8);
  const std::vector<float> certain = {20, 0, 0, 0, 0, 0, 0, 0}, open(8, 0.0f);
  std::string ends;
  for (const char token : std::string("ccocccc")) {
    const bool end = (*steps)->Ends({.struct_size = 0,
                                     .generated = 1,
                                     .vocab = 8,
                                     .logits = token == 'c' ? certain.data() : open.data(),
                                     .state = nullptr},
                                    reinterpret_cast<uint8_t*>(state.data()));
    ends += end ? '1' : '0';
  }
  EXPECT_EQ(ends, "0000011");
}

}  // namespace
}  // namespace tinyserve
