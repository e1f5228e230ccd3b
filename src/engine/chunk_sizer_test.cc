#include "engine/chunk_sizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

namespace tinyserve {
namespace {

// As the engine takes it of a model of 135 million weights.
constexpr PromptCost kCost{.slope = 1.0 / 5600, .read_tokens = 20};

constexpr uint32_t kLayers = 30;

// A machine's own times, which the sizer knows by the steps that it sees alone.
struct Machine {
  // Roughly those of two cores with that model, and keys in f16.
  double generation = 0.006;  // s, of a step of running streams
  double token = 0.0003;      // s, of a prompt's first
  PromptCost cost = {.slope = 1.0 / 6000, .read_tokens = 15};
  double beside = 1;  // what small chunks cost more

  double Chunk(uint32_t tokens, uint32_t depth) const {
    return tokens == 0 ? 0 : token * beside * cost.Of(tokens, depth);
  }
  double Part(uint32_t tokens, uint32_t depth, SublayerRange part) const {
    return token * beside * cost.OfPart(tokens, depth, part, kLayers);
  }
  double Alone(uint32_t tokens, uint32_t chunk) const {
    double seconds = 0;
    for (uint32_t done = 0; done < tokens; done += chunk) seconds += token * cost.Of(chunk, done);
    return seconds;
  }
};

constexpr uint32_t kStreams = 4, kChunk = 512;

// The streams' own prompts, then streams alone.
void Warm(const Machine& machine, ChunkSizer* sizer) {
  for (int i = 0; i < 8; ++i)
    sizer->Observe({0, kCost.Of(kChunk, 512), 512, machine.token * machine.cost.Of(kChunk, 512)});
  for (int i = 0; i < 20; ++i) sizer->Observe({kStreams, 0, 0, machine.generation});
}

// The steps from a prompt's arrival to its end, in seconds.
std::vector<double> Arrive(const Machine& machine, uint32_t prompt, ChunkSizer* sizer,
                           double disturbed = 0) {
  std::mt19937 random(7);
  std::vector<double> steps;
  for (uint32_t done = 0; done < prompt;) {
    PromptBudget budget = sizer->BudgetBeside(kStreams, done, UINT32_MAX);
    const uint32_t tokens = budget.Take(done, prompt - done);
    double seconds = machine.generation + machine.Chunk(tokens, done);
    seconds *= 1 + disturbed * static_cast<double>(random() % 1000) / 1000;
    sizer->Observe({kStreams, tokens == 0 ? 0 : kCost.Of(tokens, done), done, seconds});
    steps.push_back(seconds);
    done += tokens;
  }
  return steps;
}

double Sum(const std::vector<double>& steps) {
  double sum = 0;
  for (const double seconds : steps) sum += seconds;
  return sum;
}

// Whatever the machine, and however roughly the costs' form is known.
TEST(ChunkSizer, NoStepIsLongerThanThreeFromTheFirstChunkOn) {
  for (const double generation : {0.003, 0.005, 0.02}) {
    for (const double slope : {0.6, 1.0, 1.6}) {
      for (const double read : {0.7, 1.0, 1.5}) {
        for (const double beside : {0.8, 1.0, 1.2}) {
          Machine machine{.generation = generation, .beside = beside};
          machine.cost = {.slope = slope * kCost.slope, .read_tokens = read * kCost.read_tokens};
          SCOPED_TRACE(testing::Message() << generation << " s, slope " << slope << ", read "
                                          << read << ", beside " << beside);
          ChunkSizer sizer(kCost);
          Warm(machine, &sizer);
          // The second begins with what the depth of the first has taught.
          for (int prompt = 0; prompt < 2; ++prompt) {
            uint32_t done = 0;
            for (const double seconds : Arrive(machine, 8000, &sizer)) {
              // Prompts go on where even the least chunk takes longer.
              const double least = machine.Chunk(PromptBudget::kLeast, 8000);
              ASSERT_LE(seconds, generation + std::max(2.02 * generation, least))
                  << "step " << done;
              ++done;
            }
          }
        }
      }
    }
  }
}

TEST(ChunkSizer, APromptBesideStreamsTakesLessThanTwoAndAHalfTimesItsTimeAlone) {
  Machine machine;
  ChunkSizer sizer(kCost);
  Warm(machine, &sizer);
  EXPECT_LT(Sum(Arrive(machine, 6000, &sizer)), 2.5 * machine.Alone(6000, kChunk));
}

TEST(ChunkSizer, StepsThatAreDisturbedDoNotMislead) {
  Machine machine;
  ChunkSizer sizer(kCost);
  Warm(machine, &sizer);
  constexpr double kDisturbed = 0.15;  // at most; alone, too
  std::vector<double> steps = Arrive(machine, 3000, &sizer, kDisturbed);
  EXPECT_LT(Sum(steps), 2.5 * (1 + kDisturbed / 2) * machine.Alone(3000, kChunk));
  std::sort(steps.begin(), steps.end());
  EXPECT_LT(steps[steps.size() * 99 / 100], 3 * machine.generation);
}

// The same where chunks go through the layers by and by.
std::vector<double> ArriveByLayers(const Machine& machine, uint32_t prompt, ChunkSizer* sizer) {
  std::vector<double> steps;
  SublayerRange left;
  for (uint32_t done = 0, tokens = 0; done < prompt;) {
    PromptBudget budget = sizer->BudgetBeside(kStreams, done, UINT32_MAX);
    if (tokens == 0) {
      tokens = budget.TokensByLayers(done, prompt - done);
      left = {0, budget.sublayers()};
    }
    double seconds = machine.generation, units = 0;
    if (tokens == 0) {
      const uint32_t whole = budget.Take(done, prompt - done);
      seconds += machine.Chunk(whole, done);
      units = whole == 0 ? 0 : kCost.Of(whole, done);
      sizer->Observe({kStreams, units, done, seconds});
      done += whole;
    } else {
      const uint32_t now = budget.TakeSublayers(done, tokens, left);
      EXPECT_LE(now, left.count());
      const SublayerRange part{left.begin, left.begin + now};
      seconds += machine.Part(tokens, done, part);
      units = kCost.OfPart(tokens, done, part, kLayers);
      sizer->Observe({kStreams, units, done, seconds, machine.Part(tokens, done, part)});
      left.begin = part.end;
      if (left.empty()) {
        done += tokens;
        tokens = 0;
      }
    }
    steps.push_back(seconds);
  }
  return steps;
}

// Steps are shorter, and the prompt is earlier done than by whole chunks.
TEST(ChunkSizer, ChunksByLayersKeepToTheirShareAtAnyDepth) {
  for (const double generation : {0.003, 0.005, 0.02}) {
    for (const double read : {0.7, 1.0, 1.5}) {
      for (const double beside : {0.8, 1.0, 1.2}) {
        Machine machine{.generation = generation, .beside = beside};
        machine.cost.read_tokens = read * kCost.read_tokens;
        SCOPED_TRACE(testing::Message()
                     << generation << " s, read " << read << ", beside " << beside);
        ChunkSizer sizer(kCost, {.layers = kLayers, .tokens_max = 64});
        Warm(machine, &sizer);
        Arrive(machine, 500, &sizer);
        const std::vector<double> steps = ArriveByLayers(machine, 8000, &sizer);
        for (const double seconds : steps)
          ASSERT_LE(seconds, generation * (1 + 1.2 * ChunkSizer::kPartShare));
        EXPECT_LT(Sum(steps), 2.5 * beside * machine.Alone(8000, kChunk));
      }
    }
  }
}

// Deep attention and shallow feed-forward parts differ by much: a step is filled by cost.
TEST(PromptBudget, TakesSublayersByWhatTheyCost) {
  const PromptCost cost{.slope = 0.001, .read_tokens = 0, .attention_products = 0.25};
  constexpr uint32_t kDepth = 2968, kTokens = 64;  // 4 units a token, 0.75 in feed-forward parts
  const auto sublayers = [&](double units, SublayerRange left) {
    return PromptBudget(cost, units, UINT32_MAX, {.layers = 8, .tokens_max = kTokens})
        .TakeSublayers(kDepth, kTokens, left);
  };
  EXPECT_DOUBLE_EQ(cost.OfPart(kTokens, kDepth, {0, 16}, 8), cost.Of(kTokens, kDepth));
  EXPECT_DOUBLE_EQ(cost.OfPart(kTokens, kDepth, {0, 1}, 8), 26);
  EXPECT_DOUBLE_EQ(cost.OfPart(kTokens, kDepth, {1, 2}, 8), 6);
  EXPECT_DOUBLE_EQ(cost.OfPart(kTokens, kDepth, {3, 6}, 8), 38);
  EXPECT_EQ(sublayers(0, {0, 16}), 0u);
  EXPECT_EQ(sublayers(5, {0, 16}), 1u);  // a prompt goes on
  EXPECT_EQ(sublayers(31, {0, 16}), 1u);
  EXPECT_EQ(sublayers(32, {0, 16}), 2u);
  EXPECT_EQ(sublayers(38, {0, 16}), 2u);
  EXPECT_EQ(sublayers(38, {1, 16}), 3u);
  EXPECT_EQ(sublayers(1000, {3, 16}), 13u);
  // 160 units in two steps of at most 100: alike, not as many as fit and the rest.
  EXPECT_EQ(sublayers(100, {6, 16}), 5u);
  EXPECT_EQ(sublayers(100, {11, 16}), 5u);
}

// What counts is the time that steps took before the prompt came. But prompts go on.
TEST(ChunkSizer, StreamsThatBecomeLongerLeaveAPromptLess) {
  Machine machine;
  const double before = machine.generation;
  ChunkSizer sizer(kCost, {.layers = kLayers, .tokens_max = 64});
  Warm(machine, &sizer);
  const auto room = [&] {
    const PromptBudget budget = sizer.BudgetBeside(kStreams, 0, UINT32_MAX);
    return sizer.SecondsWith(budget, 0);
  };
  const auto observe = [&](int steps) {
    for (int i = 0; i < steps; ++i) {
      const SublayerRange part{0, 8};
      const double seconds = machine.Part(64, 0, part);
      sizer.Observe(
          {kStreams, kCost.OfPart(64, 0, part, kLayers), 0, machine.generation + seconds, seconds});
      if (i % 64 == 63) sizer.Observe({kStreams, 0, 0, machine.generation});
    }
  };
  // The median of equal times is found within a nudge.
  constexpr double kWithin = 0.04;
  const double all = (1 + ChunkSizer::kPartShare) * before;
  observe(10);
  EXPECT_NEAR(room(), all, kWithin * all);
  machine.generation = 1.3 * before;
  observe(64 * 60);
  EXPECT_NEAR(room(), all, kWithin * all);
  machine.generation = 3 * before;
  observe(64 * 60);
  EXPECT_NEAR(room(), (1 + ChunkSizer::kLeastOfShare * ChunkSizer::kPartShare) * 3 * before,
              0.02 * before);
  // Without prompts all is as it is now.
  for (int i = 0; i < 100; ++i) sizer.Observe({kStreams, 0, 0, machine.generation});
  EXPECT_NEAR(room(), 3 * all, 3 * kWithin * all);
}

// The steps that come just before a prompt are few and differ: none of them decides alone.
TEST(ChunkSizer, WhatStepsTookBeforeIsTheirMedian) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    ChunkSizer sizer(kCost, {.layers = kLayers, .tokens_max = 64});
    Warm(Machine(), &sizer);
    std::mt19937 random(seed);
    for (int i = 0; i < 100; ++i) {
      const uint32_t of_ten = random() % 10;
      sizer.Observe({kStreams, 0, 0, of_ten == 0 ? 0.009 : of_ten < 4 ? 0.005 : 0.006});
    }
    const double room = sizer.SecondsWith(sizer.BudgetBeside(kStreams, 0, UINT32_MAX), 0);
    EXPECT_NEAR(room / (1 + ChunkSizer::kPartShare), 0.006, 0.0006) << seed;
  }
}

// Once a part has taken so long that no step has more than a sublayer of few tokens, such parts
// tell that they are short again.
TEST(ChunkSizer, PartsThatWereHeldUpAreForgotten) {
  Machine machine;
  ChunkSizer sizer(kCost, {.layers = kLayers, .tokens_max = 64});
  Warm(machine, &sizer);
  constexpr uint32_t kDepth = 2000, kTokens = 64;
  const auto sublayers = [&sizer] {
    PromptBudget budget = sizer.BudgetBeside(kStreams, kDepth, UINT32_MAX);
    return budget.TakeSublayers(kDepth, kTokens, {0, budget.sublayers()});
  };
  const auto observe = [&](uint32_t now, double slower) {
    const double part = slower * machine.Part(kTokens, kDepth, {0, now});
    sizer.Observe({kStreams, kCost.OfPart(kTokens, kDepth, {0, now}, kLayers), kDepth,
                   machine.generation + part, part});
  };
  observe(16, 1);
  const uint32_t before = sublayers();
  ASSERT_GT(before, 8u);
  for (int i = 0; i < 10; ++i) observe(sublayers(), 20);
  ASSERT_EQ(sublayers(), 1u);
  for (int i = 0; i < 20; ++i) observe(sublayers(), 1);
  EXPECT_EQ(sublayers(), before);
}

TEST(ChunkSizer, WhatWasSpentBeforeAStepIsTakenOff) {
  ChunkSizer sizer(kCost);
  Warm(Machine(), &sizer);
  const auto tokens = [&sizer](double spent) {
    return sizer.BudgetBeside(kStreams, 0, UINT32_MAX, spent).Take(0, 1000);
  };
  EXPECT_LT(tokens(0.003), tokens(0));
  EXPECT_EQ(tokens(0.020), 0u);
}

// As when the system holds the process up, just before a prompt comes.
TEST(ChunkSizer, AStepThatWasHeldUpCountsForLittle) {
  Machine machine;
  ChunkSizer sizer(kCost);
  Warm(machine, &sizer);
  sizer.Observe({kStreams, 0, 0, 10 * machine.generation});
  for (const double seconds : Arrive(machine, 2000, &sizer))
    ASSERT_LE(seconds, 3.1 * machine.generation);
}

TEST(ChunkSizer, BeginsWithTheLeastChunk) {
  ChunkSizer sizer(kCost);
  sizer.Observe({1, 0, 0, 0.002});
  EXPECT_EQ(sizer.BudgetBeside(1, 0, UINT32_MAX).Take(0, 100), PromptBudget::kLeast);
  EXPECT_EQ(sizer.BudgetBeside(1, 0, UINT32_MAX).Take(0, 2), 2u);
  EXPECT_EQ(sizer.BudgetBeside(1, 0, 3).Take(0, 100), 3u);
}

// A step without a prompt shows what one takes: where that is not known, and now and then.
TEST(ChunkSizer, AStepWhoseTimeIsNotKnownHoldsNoPrompt) {
  const auto holds = [](const ChunkSizer& sizer, uint32_t generating) {
    return sizer.BudgetBeside(generating, 0, UINT32_MAX).Take(0, 100) > 0;
  };
  ChunkSizer sizer(kCost);
  EXPECT_FALSE(holds(sizer, 4));
  sizer.Observe({4, 0, 0, 0.005});
  EXPECT_TRUE(holds(sizer, 4));
  EXPECT_TRUE(holds(sizer, 5));
  EXPECT_FALSE(holds(sizer, 8));
  for (uint32_t i = 0; i < ChunkSizer::kStale; ++i) {
    EXPECT_TRUE(holds(sizer, 4));
    sizer.Observe({4, 10, 0, 0.010});
  }
  EXPECT_FALSE(holds(sizer, 4));
  sizer.Observe({4, 0, 0, 0.005});
  EXPECT_TRUE(holds(sizer, 4));
}

TEST(ChunkSizer, IsNotMisledByStepsThatSayNothing) {
  ChunkSizer sizer(kCost);
  const auto tokens = [&sizer] { return sizer.BudgetBeside(4, 0, UINT32_MAX).Take(0, 1000); };
  sizer.Observe({0, 500, 0, 0.1});
  sizer.Observe({4, 0, 0, 0.04});
  sizer.Observe({4, 100, 0, 0.04 + 0.02});
  const uint32_t before = tokens();
  EXPECT_EQ(before, 311u);  // 1.6 * 40 ms / 0.2 ms = 320 units, for tokens that become dearer
  sizer.Observe({4, 100, 0, 0.03});   // less than generation alone
  sizer.Observe({4, 2, 0, 0.30});     // of few tokens
  sizer.Observe({40, 100, 0, 0.30});  // of another generation
  EXPECT_EQ(tokens(), before);
}

TEST(PromptBudget, IsSharedByPromptsInOrder) {
  PromptBudget budget(kCost, 100);
  EXPECT_EQ(budget.Take(0, 20), 20u);
  const uint32_t second = budget.Take(3000, 1000);
  EXPECT_NEAR(kCost.Of(20, 0) + kCost.Of(second, 3000), 100, 2.1);
  // Less than one token there is left.
  EXPECT_EQ(budget.Take(3000, 10), 0u);
  // The first goes on, however deep it is.
  EXPECT_EQ(PromptBudget(kCost, 10).Take(1 << 20, 100), PromptBudget::kLeast);
  EXPECT_EQ(PromptBudget(kCost, 0).Take(0, 10), 0u);
  // But not past the end of its window.
  PromptCost windows = kCost;
  windows.window = 64;
  EXPECT_EQ(PromptBudget(windows, 1).Take(6014, 100), 2u);
}

TEST(PromptCost, FitsWhatItCosts) {
  for (const uint32_t depth : {0u, 100u, 5000u, 30000u}) {
    for (const double units : {500.0, 5000.0}) {
      const uint32_t tokens = kCost.Fitting(units, depth);
      EXPECT_LE(kCost.Of(tokens, depth), units);
      EXPECT_GT(kCost.Of(tokens + 1, depth), units);
    }
  }
  // Windows that are touched for little are left out.
  PromptCost windows = kCost;
  windows.window = 64;
  for (const uint32_t depth : {0u, 60u, 100u, 2047u, 5000u, 30000u}) {
    for (double units = 1; units < 600; units *= 1.3) {
      const uint32_t tokens = windows.Fitting(units, depth);
      EXPECT_TRUE(tokens == 0 || windows.Of(tokens, depth) <= units * (1 + 1e-9));
      for (uint32_t more = tokens + 1; more < 700; ++more)
        EXPECT_GT(windows.Of(more, depth), units) << depth << ": " << tokens << ", " << more;
    }
  }
  EXPECT_EQ(windows.Fitting(20, 6000), 0u);
  EXPECT_EQ(windows.Fitting(30, 6016), 4u);
  EXPECT_EQ(windows.Fitting(30, 6013), 3u);  // to the end of the window
  EXPECT_EQ(PromptCost().Fitting(11, 1000), 11u);
  EXPECT_EQ(PromptCost().Fitting(1e18, 0), UINT32_MAX);
}

}  // namespace
}  // namespace tinyserve
