#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

namespace tinyserve {
namespace {

ScheduledRequest Ask(RequestId id, uint32_t prompt, uint32_t max_tokens,
                     Priority priority = Priority::kNormal) {
  return {.id = id, .prompt_tokens = prompt, .max_tokens = max_tokens, .priority = priority};
}

TEST(Scheduler, DecodesComeFirstThenPromptsInOrder) {
  Scheduler scheduler(
      {.step_tokens_max = 100, .sequences_max = 4, .blocks = 100, .block_tokens = 32});
  scheduler.Submit(Ask(1, 30, 10));
  scheduler.Admit();
  std::vector<ScheduledRow> rows;
  scheduler.Plan(&rows);
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_TRUE(rows[0].prompt && rows[0].last_prompt);
  scheduler.Submit(Ask(2, 150, 10));
  scheduler.Submit(Ask(3, 20, 10));
  scheduler.Admit();
  scheduler.Plan(&rows);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].id, 1u);
  EXPECT_FALSE(rows[0].prompt);
  EXPECT_EQ(rows[0].first_position, 30u);
  EXPECT_EQ(rows[1].id, 2u);
  EXPECT_EQ(rows[1].length, 99u);
  EXPECT_FALSE(rows[1].last_prompt);
  scheduler.Plan(&rows);
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_EQ(rows[1].length, 51u);
  EXPECT_TRUE(rows[1].last_prompt);
  EXPECT_EQ(rows[2].id, 3u);
  EXPECT_EQ(rows[2].length, 20u);
}

TEST(Scheduler, HigherClassesAreAdmittedFirstAndTheFirstInLineIsNotOvertaken) {
  Scheduler scheduler(
      {.step_tokens_max = 64, .sequences_max = 8, .blocks = 10, .block_tokens = 32});
  scheduler.Submit(Ask(1, 32 * 6, 1));
  scheduler.Submit(Ask(2, 32 * 6, 1));  // does not fit beside 1
  scheduler.Submit(Ask(3, 32, 1));      // would fit, but must not overtake 2
  scheduler.Submit(Ask(4, 32, 1, Priority::kHigh));
  EXPECT_EQ(scheduler.Admit(), (std::vector<RequestId>{4, 1}));
  EXPECT_EQ(scheduler.waiting(), 2u);
  EXPECT_TRUE(scheduler.Remove(1));
  EXPECT_FALSE(scheduler.Remove(1));
  EXPECT_EQ(scheduler.Admit(), (std::vector<RequestId>{2, 3}));
}

// Random arrivals, ends and cancels: promises never exceed the pool, budgets hold, positions of
// each sequence follow each other, and every request that is not cancelled runs to its end.
TEST(Scheduler, SimulatedLoadKeepsItsPromises) {
  for (uint32_t seed = 1; seed <= 50; ++seed) {
    std::mt19937 generator(seed);
    const auto random = [&] { return static_cast<uint32_t>(generator()); };
    const SchedulerLimits limits{.step_tokens_max = 16 + random() % 100,
                                 .sequences_max = 1 + random() % 12,
                                 .blocks = 20 + random() % 50,
                                 .block_tokens = 16};
    Scheduler scheduler(limits);
    struct Live {
      ScheduledRequest request;
      uint32_t done = 0;
    };
    std::map<RequestId, Live> live;
    RequestId next = 1;
    uint32_t finished = 0, cancelled = 0;
    std::vector<ScheduledRow> rows;
    for (int step = 0; step < 100000 && (step < 600 || !live.empty()); ++step) {
      if (step < 600 && random() % 3 == 0) {
        const uint32_t tokens_max = limits.blocks * limits.block_tokens;
        const ScheduledRequest r =
            Ask(next++, 1 + random() % (tokens_max / 2), random() % (tokens_max / 2),
                static_cast<Priority>(random() % 3));
        scheduler.Submit(r);
        live[r.id] = {r};
      }
      if (!live.empty() && random() % 20 == 0) {
        const auto victim = std::next(live.begin(), static_cast<long>(random() % live.size()));
        ASSERT_TRUE(scheduler.Remove(victim->first));
        live.erase(victim);
        ++cancelled;
      }
      scheduler.Admit();
      ASSERT_LE(scheduler.blocks_promised(), limits.blocks) << "seed " << seed;
      ASSERT_LE(scheduler.running(), limits.sequences_max) << "seed " << seed;
      scheduler.Plan(&rows);
      ASSERT_EQ(rows.empty(), scheduler.running() == 0) << "seed " << seed;
      uint32_t tokens = 0;
      std::set<RequestId> seen;
      for (const ScheduledRow& row : rows) {
        Live& l = live.at(row.id);
        ASSERT_TRUE(seen.insert(row.id).second) << "seed " << seed;
        ASSERT_EQ(row.first_position, l.done) << "seed " << seed;
        ASSERT_GE(row.length, 1u);
        l.done += row.length;
        tokens += row.length;
        ASSERT_EQ(row.prompt, row.first_position < l.request.prompt_tokens);
        ASSERT_EQ(row.last_prompt, row.prompt && l.done == l.request.prompt_tokens);
        ASSERT_LE((l.done + limits.block_tokens - 1) / limits.block_tokens,
                  scheduler.BlocksFor(l.request));
        // A token is sampled after the last chunk and after each generated one.
        if (l.done + 1 >= l.request.prompt_tokens + std::max(1u, l.request.max_tokens)) {
          ASSERT_TRUE(scheduler.Remove(row.id));
          live.erase(row.id);
          ++finished;
        }
      }
      ASSERT_LE(tokens, limits.step_tokens_max) << "seed " << seed;
    }
    EXPECT_TRUE(live.empty()) << "seed " << seed << ": " << live.size() << " requests starve";
    EXPECT_EQ(finished + cancelled, next - 1) << "seed " << seed;
    EXPECT_EQ(scheduler.blocks_promised(), 0u);
  }
}

}  // namespace
}  // namespace tinyserve
