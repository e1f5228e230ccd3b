#include "engine/latency_tuner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <random>

namespace tinyserve {
namespace {

// A server in so many words: a step takes a base, time for each running sequence by what it reads,
// and time for its prompt tokens; and machines are noisy. A request keeps the ratio under which it
// was admitted.
class Plant {
 public:
  explicit Plant(const TunerBounds& bounds) : tuner(bounds) {}

  void Run(uint32_t clients, int steps) {
    for (int step = 0; step < steps; ++step) {
      const LatencyTuner::Setting& now = tuner.setting();
      while (running_.size() > clients) running_.pop_front();
      while (running_.size() < std::min(clients, now.sequences)) running_.push_back(now.ratio);
      // One request after another ends, and the next one is admitted.
      if (step % 10 == 0 && !running_.empty()) {
        running_.pop_front();
        if (running_.size() < std::min(clients, now.sequences)) running_.push_back(now.ratio);
      }
      seconds = 0.004;
      for (const double ratio : running_) seconds += 0.001 + 0.01 * ratio;
      if (step % 4 == 0) seconds += 4e-5 * now.chunk_tokens;  // prompts come now and then
      seconds *= 0.95 + 0.1 * static_cast<double>(random_() % 1000) / 1000;
      tuner.Observe(seconds);
    }
  }

  LatencyTuner tuner;
  double seconds = 0;

 private:
  std::deque<double> running_;
  std::mt19937 random_{7};
};

TunerBounds Bounds() {
  return {.target_seconds = 0.030,
          .chunk_tokens = 512,
          .ratio = 0.4,
          .ratio_min = 0.1,
          .sequences = 32};
}

TEST(LatencyTuner, DoesNothingWhereThereIsRoom) {
  Plant plant(Bounds());
  plant.Run(1, 5000);
  EXPECT_EQ(plant.tuner.moves(), 0u);
  EXPECT_EQ(plant.tuner.setting().chunk_tokens, 512u);
  EXPECT_EQ(plant.tuner.setting().ratio, 0.4);
}

TEST(LatencyTuner, SettlesWithoutOscillating) {
  Plant plant(Bounds());
  plant.Run(12, 4000);
  EXPECT_LE(plant.tuner.window_seconds(), 0.030 * 1.02);
  EXPECT_LT(plant.tuner.setting().ratio, 0.4);
  EXPECT_GE(plant.tuner.setting().ratio, 0.1);
  const uint64_t moves = plant.tuner.moves();
  plant.Run(12, 24 * 400);  // windows: a rung up, and down again, is tried in few of them
  EXPECT_LE(plant.tuner.moves() - moves, 24u);
  EXPECT_LE(plant.tuner.window_seconds(), 0.030 * 1.02);
}

TEST(LatencyTuner, FollowsALoadStepAndComesBack) {
  Plant plant(Bounds());
  plant.Run(2, 2000);
  const uint32_t before = plant.tuner.rung();
  plant.Run(32, 6000);
  EXPECT_GT(plant.tuner.rung(), before);
  EXPECT_LT(plant.tuner.setting().sequences, 32u);
  EXPECT_LE(plant.tuner.window_seconds(), 0.030 * 1.02);
  plant.Run(2, 24 * 200);
  EXPECT_LE(plant.tuner.rung(), before + 1);
  EXPECT_EQ(plant.tuner.setting().ratio, 0.4);
  EXPECT_EQ(plant.tuner.setting().sequences, 32u);
}

TEST(LatencyTuner, NeverLeavesItsBounds) {
  TunerBounds bounds = Bounds();
  bounds.target_seconds = 1e-6;  // out of reach
  Plant plant(bounds);
  plant.Run(8, 24 * 200);
  EXPECT_EQ(plant.tuner.rung() + 1, plant.tuner.rungs());
  EXPECT_EQ(plant.tuner.setting().chunk_tokens, LatencyTuner::kChunkLeast);
  EXPECT_EQ(plant.tuner.setting().ratio, 0.1);
  EXPECT_EQ(plant.tuner.setting().sequences, 1u);
  // Each move is one rung.
  EXPECT_EQ(plant.tuner.moves(), plant.tuner.rungs() - 1);
}

TEST(LatencyTuner, LeavesASelectorWithoutARatioAlone) {
  TunerBounds bounds = Bounds();
  bounds.ratio = bounds.ratio_min = 0;
  Plant plant(bounds);
  plant.Run(32, 5000);
  EXPECT_EQ(plant.tuner.setting().ratio, 0);
}

}  // namespace
}  // namespace tinyserve
