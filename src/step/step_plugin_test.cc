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
  refused(
      {"nothing"},
      "there is no step plugin 'nothing': early_exit, low_entropy_end, token_pruning are known");
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
  tinyserve_step_v2 table = *BuiltinSteps()[0];
  EXPECT_EQ(CheckStepTable(&table).message(), "");
  table.abi_version = 1;
  EXPECT_NE(CheckStepTable(&table).message().find("abi_version is 1: 2 is needed"),
            std::string::npos);
  table = *BuiltinSteps()[0];
  table.struct_size -= 8;
  EXPECT_NE(CheckStepTable(&table).message().find("struct_size"), std::string::npos);
  table = *BuiltinSteps()[0];
  table.asks_after = nullptr;
  EXPECT_NE(CheckStepTable(&table).message().find("go together"), std::string::npos);
  table = *BuiltinSteps()[2];
  EXPECT_EQ(CheckStepTable(&table).message(), "");
  table.measures_every = nullptr;
  EXPECT_NE(CheckStepTable(&table).message().find("measures_every go together"), std::string::npos);
  table.prune = nullptr;
  EXPECT_NE(CheckStepTable(&table).message().find("leave, end or prune"), std::string::npos);
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
  tinyserve_step_v2 table = *BuiltinSteps()[0];
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

std::unique_ptr<StepPlugins> OpenSteps(const std::string& text) {
  auto steps = StepPlugins::Open(
      *Parse({text}), {.struct_size = sizeof(tinyserve_step_shape), .layers = 2, .vocab = 8});
  EXPECT_TRUE(steps.ok()) << steps.status().message();
  return *std::move(steps);
}

// Which of ten units of 32 tokens are dropped, of a sequence that holds 5 tokens more.
std::string Dropped(const StepPlugins& steps, const std::vector<float>& mass,
                    uint32_t dropped_before = 0) {
  std::vector<uint8_t> drop(mass.size());
  const auto units = static_cast<uint32_t>(mass.size());
  steps.Prune({.struct_size = 0,
               .position = 32 * units + 5 + dropped_before,
               .held = 32 * units + 5,
               .unit_tokens = 32,
               .n_units = units,
               .mass = mass.data()},
              drop);
  std::string text;
  for (const uint8_t d : drop) text += d != 0 ? 'x' : '.';
  return text;
}

TEST(TokenPruning, DropsTheUnitsOfLeastMassBetweenSinksAndNewestTokens) {
  const std::vector<float> mass = {0.01f, 0.3f,  0.05f, 0.05f, 0.2f,
                                   0.04f, 0.06f, 0.1f,  0.02f, 0.0f};
  const auto half = OpenSteps("token_pruning:keep=0.5,min_tokens=0,sink=16,recent=37,every=9");
  EXPECT_TRUE(half->prunes());
  EXPECT_EQ(half->measure_every(), 9u);
  // 325 tokens, 162.5 to keep: five units go, the earlier one of equals first.
  EXPECT_EQ(Dropped(*half, mass), "..xx.xx.x.");
  EXPECT_EQ(Dropped(*OpenSteps("token_pruning:keep=0.5,min_tokens=260,sink=0,recent=0"), mass),
            "x........x");
  EXPECT_EQ(Dropped(*OpenSteps("token_pruning:keep=0.01,min_tokens=0,sink=64,recent=200"), mass),
            "..x.......");
  EXPECT_EQ(Dropped(*OpenSteps("token_pruning:keep=1,min_tokens=0"), mass), "..........");
  EXPECT_EQ(Dropped(*OpenSteps("token_pruning:keep=0.01,min_tokens=0,recent=4096"), mass),
            "..........");
  // What was dropped before counts as context: half of 645 is 322.5.
  EXPECT_EQ(Dropped(*half, mass, 320), "..........");
  // Without a measurement a unit stays.
  std::vector<float> few = mass;
  for (const size_t unit : {2u, 3u, 5u, 6u}) few[unit] = INFINITY;
  EXPECT_EQ(Dropped(*half, few), ".x..x..xx.");
  EXPECT_EQ(half->plugins()[0]->counts().errors, 0u);
  few[4] = NAN;
  EXPECT_EQ(Dropped(*half, few), "..........");
  EXPECT_EQ(half->plugins()[0]->counts().errors, 1u);
}

// One that answers with anything but 0 and 1 drops nothing.
TEST(TokenPruning, FailuresDropNothing) {
  tinyserve_step_v2 table = *BuiltinSteps()[2];
  table.prune = [](void*, const tinyserve_prune_in* in, uint8_t* drop) {
    drop[0] = 1;
    drop[1] = in->n_units == 2 ? 2 : 0;
    return in->n_units == 3 ? 1 : 0;
  };
  table.measures_every = [](void*) { return 1u; };
  std::vector<StepSpec> specs = *Parse({"token_pruning"});
  specs[0].table = &table;
  const auto steps = *StepPlugins::Open(
      specs, {.struct_size = sizeof(tinyserve_step_shape), .layers = 5, .vocab = 4});
  EXPECT_EQ(steps->measure_every(), 8u);
  EXPECT_EQ(Dropped(*steps, {0, 0}), "..");
  EXPECT_EQ(Dropped(*steps, {0, 0, 0}), "...");
  EXPECT_EQ(Dropped(*steps, {0, 0, 0, 0}), "x...");
  EXPECT_EQ(steps->plugins()[0]->counts().errors, 2u);
  EXPECT_EQ(steps->plugins()[0]->counts().effects, 1u);
}

}  // namespace
}  // namespace tinyserve
