#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <string>

namespace tinyserve {
namespace {

ScheduledRequest Ask(RequestId id, uint32_t prompt, uint32_t max_tokens,
                     Priority priority = Priority::kNormal, uint64_t client = 0) {
  return {.id = id,
          .prompt_tokens = prompt,
          .max_tokens = max_tokens,
          .priority = priority,
          .client = client};
}

std::vector<RequestId> AdmitAndStart(Scheduler* scheduler) {
  std::vector<RequestId> admitted = scheduler->Admit();
  for (RequestId id : admitted) scheduler->Start(id, 0);
  return admitted;
}

std::vector<ScheduledRow> Plan(Scheduler* scheduler, uint32_t prompt_tokens_max = UINT32_MAX) {
  ScheduledStep step;
  scheduler->Plan(PromptBudget({}, prompt_tokens_max), &step);
  EXPECT_TRUE(step.preempted.empty());
  return step.rows;
}

TEST(Scheduler, WhatIsCachedIsNotPlannedAndWhatWaitsIsLeftOut) {
  Scheduler scheduler(
      {.step_tokens_max = 100, .sequences_max = 4, .blocks = 100, .block_tokens = 32});
  scheduler.Submit(Ask(1, 30, 10));
  scheduler.Submit(Ask(2, 70, 10));
  scheduler.Admit();
  scheduler.Start(2, 64);
  const std::vector<ScheduledRow> rows = Plan(&scheduler);
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0].id, 2u);
  EXPECT_EQ(rows[0].first_position, 64u);
  EXPECT_EQ(rows[0].length, 6u);
  EXPECT_TRUE(rows[0].prompt && rows[0].sampled);
  scheduler.Start(1, 0);
  EXPECT_EQ(Plan(&scheduler).size(), 2u);
}

TEST(Scheduler, DecodesComeFirstThenPromptsInOrder) {
  Scheduler scheduler(
      {.step_tokens_max = 100, .sequences_max = 4, .blocks = 100, .block_tokens = 32});
  scheduler.Submit(Ask(1, 1, 10));  // the shortest prompt there is
  AdmitAndStart(&scheduler);
  std::vector<ScheduledRow> rows = Plan(&scheduler);
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_TRUE(rows[0].prompt && rows[0].sampled);
  scheduler.Submit(Ask(2, 150, 10));
  scheduler.Submit(Ask(3, 20, 10));
  AdmitAndStart(&scheduler);
  rows = Plan(&scheduler);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].id, 1u);
  EXPECT_FALSE(rows[0].prompt);
  EXPECT_EQ(rows[0].first_position, 1u);
  EXPECT_EQ(rows[1].id, 2u);
  EXPECT_EQ(rows[1].length, 99u);
  EXPECT_FALSE(rows[1].sampled);
  // Beside generation, prompts have a budget of their own.
  EXPECT_EQ(scheduler.generating(), 1u);
  rows = Plan(&scheduler, 20);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[1].length, 20u);
  EXPECT_EQ(Plan(&scheduler, 0).size(), 1u);
  rows = Plan(&scheduler);
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_EQ(rows[1].length, 31u);
  EXPECT_TRUE(rows[1].sampled);
  EXPECT_EQ(rows[2].id, 3u);
  EXPECT_EQ(rows[2].length, 20u);
}

// While tokens of the step before are not known yet.
TEST(Scheduler, TellsWhenTheNextStepIsCertain) {
  Scheduler scheduler(
      {.step_tokens_max = 100, .sequences_max = 4, .blocks = 100, .block_tokens = 32});
  EXPECT_FALSE(scheduler.OnlyGenerates());  // there is none
  scheduler.Submit(Ask(1, 30, 3));
  scheduler.Submit(Ask(2, 5, 10));
  AdmitAndStart(&scheduler);
  EXPECT_FALSE(scheduler.OnlyGenerates());
  EXPECT_EQ(Plan(&scheduler).size(), 2u);
  for (int step = 0; step < 2; ++step) {
    EXPECT_TRUE(scheduler.OnlyGenerates());
    EXPECT_EQ(Plan(&scheduler).size(), 2u);
  }
  // By length the first one's last token is that of the step before, whatever it is.
  EXPECT_TRUE(scheduler.OnlyGenerates());
  std::vector<ScheduledRow> rows = Plan(&scheduler);
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0].id, 2u);
  scheduler.Submit(Ask(3, 20, 1));
  EXPECT_TRUE(scheduler.OnlyGenerates());
  scheduler.Admit();
  EXPECT_FALSE(scheduler.OnlyGenerates());
  scheduler.Start(3, 0);
  EXPECT_EQ(Plan(&scheduler).size(), 2u);
  EXPECT_TRUE(scheduler.OnlyGenerates());
  scheduler.Remove(2);
  EXPECT_FALSE(scheduler.OnlyGenerates());
  EXPECT_TRUE(Plan(&scheduler).empty());
}

TEST(Scheduler, IsNotCertainOfAStepInWhichSomebodyGivesWay) {
  Scheduler scheduler(
      {.step_tokens_max = 100, .sequences_max = 4, .blocks = 3, .block_tokens = 32});
  scheduler.Submit(Ask(1, 31, 30));
  scheduler.Submit(Ask(2, 31, 30));
  AdmitAndStart(&scheduler);
  EXPECT_EQ(Plan(&scheduler).size(), 2u);
  EXPECT_TRUE(scheduler.OnlyGenerates());
  EXPECT_EQ(Plan(&scheduler).size(), 2u);
  EXPECT_FALSE(scheduler.OnlyGenerates());  // two more blocks for one that is left
  ScheduledStep step;
  scheduler.Plan(PromptBudget({}, 0), &step);
  EXPECT_EQ(step.preempted, std::vector<RequestId>{2});
  EXPECT_TRUE(scheduler.OnlyGenerates());
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

// One at a time: of 42 admissions, 32, 8 and 2 while all wait.
TEST(Scheduler, ClassesAreServedByTheirWeights) {
  Scheduler scheduler(
      {.step_tokens_max = 64, .sequences_max = 1, .blocks = 10, .block_tokens = 32});
  for (RequestId id = 0; id < 300; ++id)
    scheduler.Submit(Ask(id, 4, 1, static_cast<Priority>(id % 3)));
  uint32_t served[3] = {};
  for (int i = 0; i < 42; ++i) {
    const std::vector<RequestId> admitted = scheduler.Admit();
    ASSERT_EQ(admitted.size(), 1u);
    ++served[admitted[0] % 3];
    scheduler.Remove(admitted[0]);
  }
  EXPECT_EQ(served[0], 32u);
  EXPECT_EQ(served[1], 8u);
  EXPECT_EQ(served[2], 2u);
}

// One client asks a hundred times at once, another now and then: they are served alike.
TEST(Scheduler, ClientsAreServedAlike) {
  Scheduler scheduler(
      {.step_tokens_max = 64, .sequences_max = 1, .blocks = 10, .block_tokens = 32});
  for (RequestId id = 1; id <= 100; ++id) scheduler.Submit(Ask(id, 10, 1, Priority::kNormal, 7));
  for (RequestId id = 101; id <= 110; ++id) scheduler.Submit(Ask(id, 10, 1, Priority::kNormal, 8));
  std::vector<RequestId> order;
  for (int i = 0; i < 20; ++i) {
    const RequestId id = AdmitAndStart(&scheduler).at(0);
    Plan(&scheduler);
    scheduler.Remove(id);
    order.push_back(id);
  }
  EXPECT_EQ(std::count_if(order.begin(), order.end(), [](RequestId id) { return id > 100; }), 10);
  EXPECT_TRUE(std::is_sorted(order.begin(), order.end(), [](RequestId a, RequestId b) {
    return (a > 100) == (b > 100) && a < b;
  }));
}

// Two that need 6 blocks each share 9: the later one gives way, waits, and replays what it had.
TEST(Scheduler, WhoCameLastGivesWayAndIsReplayed) {
  Scheduler scheduler({.step_tokens_max = 64, .sequences_max = 4, .blocks = 9, .block_tokens = 8});
  scheduler.Submit(Ask(1, 16, 33));
  scheduler.Submit(Ask(2, 16, 33));
  EXPECT_EQ(AdmitAndStart(&scheduler).size(), 2u);
  ScheduledStep step;
  uint32_t steps = 0;
  do {
    scheduler.Plan(PromptBudget({}, 64), &step);
    ASSERT_LE(scheduler.blocks_promised(), 9u);
    ASSERT_LT(++steps, 100u);
  } while (step.preempted.empty());
  EXPECT_EQ(step.preempted, std::vector<RequestId>{2});
  ASSERT_EQ(step.rows.size(), 1u);
  EXPECT_EQ(step.rows[0].id, 1u);
  EXPECT_EQ(step.rows[0].first_position, 32u);
  EXPECT_EQ(scheduler.waiting(), 1u);
  EXPECT_TRUE(scheduler.Admit().empty());
  scheduler.Remove(1);
  ASSERT_EQ(AdmitAndStart(&scheduler), std::vector<RequestId>{2});
  std::vector<ScheduledRow> rows = Plan(&scheduler);
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_TRUE(rows[0].prompt);
  EXPECT_EQ(rows[0].length, 16u);
  EXPECT_FALSE(rows[0].sampled);
  rows = Plan(&scheduler);
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_FALSE(rows[0].prompt);
  EXPECT_EQ(rows[0].first_position, 16u);
  EXPECT_EQ(rows[0].length, 17u);  // all that was sampled before
  EXPECT_TRUE(rows[0].sampled);
  rows = Plan(&scheduler);
  EXPECT_EQ(rows.at(0).length, 1u);
}

// Rows of a step whose prompts may cost so much, where chunks go through four layers by and by.
// late: the one that does comes to this sublayer only; 0: as far as planned.
std::vector<ScheduledRow> PlanByLayers(Scheduler* scheduler, double units, uint32_t late = 0) {
  ScheduledStep step;
  scheduler->Plan(PromptBudget({.slope = 0.01, .read_tokens = 10}, units, UINT32_MAX,
                               {.layers = 4, .tokens_max = 64}),
                  &step);
  const ScheduledRow& last = step.rows.back();
  if (!last.part.empty()) {
    const uint32_t sublayer = late != 0 ? late : last.part.end;
    EXPECT_EQ(scheduler->CameTo(sublayer), sublayer == 8);
  }
  return step.rows;
}

void ExpectPart(const ScheduledRow& row, RequestId id, uint32_t tokens, SublayerRange part) {
  EXPECT_EQ(row.id, id);
  EXPECT_EQ(row.length, tokens);
  EXPECT_EQ(row.part.begin, part.begin);
  EXPECT_EQ(row.part.end, part.end);
  EXPECT_EQ(row.done, part.end == 8);
}

TEST(Scheduler, AChunkGoesThroughTheLayersByAndBy) {
  Scheduler scheduler(
      {.step_tokens_max = 100, .sequences_max = 4, .blocks = 100, .block_tokens = 32});
  scheduler.Submit(Ask(1, 1, 20));
  AdmitAndStart(&scheduler);
  Plan(&scheduler);
  scheduler.Submit(Ask(2, 100, 10));
  scheduler.Submit(Ask(3, 16, 10, Priority::kHigh));
  scheduler.Admit();
  scheduler.Start(2, 50, 0, /*by_layers=*/true);
  // Of 34 tokens a layer's attention costs 9.1, what it reads of those before included, and its
  // feed-forward part 6.4.
  std::vector<ScheduledRow> rows = PlanByLayers(&scheduler, 16);
  ASSERT_EQ(rows.size(), 2u);
  ExpectPart(rows[1], 2, 34, {0, 2});
  EXPECT_EQ(rows[1].first_position, 50u);
  EXPECT_EQ(scheduler.prompt_depth(), 50u);
  // It goes on, whoever comes, and rests where the budget is empty.
  scheduler.Start(3, 0, 0, /*by_layers=*/true);
  rows = PlanByLayers(&scheduler, 16);
  ASSERT_EQ(rows.size(), 2u);
  ExpectPart(rows[1], 2, 34, {2, 4});
  EXPECT_EQ(PlanByLayers(&scheduler, 0).size(), 1u);
  // Where its time was up earlier, it begins there.
  ExpectPart(PlanByLayers(&scheduler, 25, /*late=*/5).at(1), 2, 34, {4, 6});
  ExpectPart(PlanByLayers(&scheduler, 8).at(1), 2, 34, {5, 6});
  // Others have the room that the last sublayers leave, also where those come late.
  rows = PlanByLayers(&scheduler, 1000, /*late=*/7);
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_EQ(rows[1].id, 3u);
  EXPECT_TRUE(rows[1].part.empty() && rows[1].sampled);
  ExpectPart(rows[2], 2, 34, {6, 8});
  EXPECT_EQ(scheduler.prompt_depth(), 50u);
  rows = PlanByLayers(&scheduler, 1000);
  ASSERT_EQ(rows.size(), 3u);
  ExpectPart(rows[2], 2, 34, {7, 8});
  EXPECT_FALSE(rows[2].sampled);
  // What is left of it fits as a whole.
  rows = PlanByLayers(&scheduler, 1000);
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_EQ(rows[2].first_position, 84u);
  EXPECT_TRUE(rows[2].part.empty() && rows[2].sampled);
}

TEST(Scheduler, AChunkByLayersEndsWithItsRequestAndIsNotHeldUpByNobody) {
  Scheduler scheduler(
      {.step_tokens_max = 100, .sequences_max = 4, .blocks = 100, .block_tokens = 32});
  scheduler.Submit(Ask(1, 1, 20));
  AdmitAndStart(&scheduler);
  Plan(&scheduler);
  for (const RequestId id : {2, 3}) {
    scheduler.Submit(Ask(id, 100, 10));
    scheduler.Admit();
    scheduler.Start(id, 50, 0, /*by_layers=*/true);
  }
  ExpectPart(PlanByLayers(&scheduler, 16).at(1), 2, 34, {0, 2});
  scheduler.Remove(2);
  ExpectPart(PlanByLayers(&scheduler, 16).at(1), 3, 34, {0, 2});
  scheduler.Remove(1);
  const std::vector<ScheduledRow> rows = PlanByLayers(&scheduler, 0);
  ASSERT_EQ(rows.size(), 1u);
  ExpectPart(rows[0], 3, 34, {2, 8});
}

// ---- a simulated load ---------------------------------------------------------------------------

// Random arrivals, ends and cancels in a random pool. What is checked at each step: promises and
// budgets hold, blocks really needed are promised, positions of each sequence follow each other,
// known tokens are never sampled twice; and in the end every request that was not cancelled has all
// of its tokens.
class Simulation {
 public:
  explicit Simulation(uint32_t seed)
      : random_(seed),
        limits_{.step_tokens_max = 16 + Random(100),
                .sequences_max = 1 + Random(12),
                .blocks = 12 + Random(50),
                .block_tokens = 16},
        scheduler_(limits_) {}

  void Run(int arrivals_until) {
    for (int step = 0; step < arrivals_until || !live_.empty(); ++step) {
      ASSERT_LT(step, 100000) << live_.size() << " requests starve";
      if (step < arrivals_until && Random(3) == 0) Arrive(step);
      if (!live_.empty() && Random(40) == 0) Cancel();
      for (RequestId id : scheduler_.Admit()) held_.insert(id);
      Start();
      Step(step);
      if (testing::Test::HasFatalFailure()) return;
    }
    EXPECT_EQ(finished_ + cancelled_, next_ - 1);
    EXPECT_EQ(scheduler_.blocks_promised(), 0u);
    EXPECT_EQ(scheduler_.running() + scheduler_.waiting(), 0u);
  }
  uint32_t preemptions() const { return preemptions_; }
  uint32_t parts() const { return parts_; }

 private:
  static constexpr uint32_t kLayers = 7, kAll = kSublayers * kLayers;
  struct Live {
    ScheduledRequest request;
    uint32_t done = 0, sampled = 0;
    bool started = false;
    bool prunes = false;  // drops tokens at the ends of blocks
    uint32_t dropped = 0;
    bool by_layers = false;
    uint32_t part = 0, layers = 0;  // tokens that have gone through so many layers, not all
  };

  uint32_t Random(uint32_t below) { return static_cast<uint32_t>(random_() % below); }

  void Arrive(int step) {
    const uint32_t tokens_max = limits_.blocks * limits_.block_tokens;
    // Every tenth step a burst.
    for (uint32_t i = step % 10 == 0 ? 1 + Random(6) : 1; i > 0; --i) {
      const ScheduledRequest r = Ask(next_++, 1 + Random(tokens_max / 2), Random(tokens_max / 2),
                                     static_cast<Priority>(Random(3)), Random(4));
      scheduler_.Submit(r);
      live_[r.id] = {.request = r, .prunes = Random(3) == 0};
    }
  }
  void Cancel() {
    const auto victim = std::next(live_.begin(), Random(static_cast<uint32_t>(live_.size())));
    ASSERT_TRUE(scheduler_.Remove(victim->first));
    held_.erase(victim->first);
    live_.erase(victim);
    ++cancelled_;
  }
  // Some begin later, as those that wait for a shared prompt do; some find a part in the cache.
  void Start() {
    for (auto at = held_.begin(); at != held_.end();) {
      if (held_.size() > 1 && Random(3) == 0) {
        ++at;
        continue;
      }
      Live& l = live_.at(*at);
      l.done = Random(2) == 0 ? Random(l.request.prompt_tokens) : 0;
      l.started = true;
      l.by_layers = Random(4) != 0;
      scheduler_.Start(*at, l.done, l.prunes ? limits_.block_tokens : 0, l.by_layers);
      at = held_.erase(at);
    }
  }
  void Step(int step) {
    // Every other budget is empty.
    const double units = Random(2) * Random(limits_.step_tokens_max);
    const ChunkParts parts{.layers = kLayers,
                           .tokens_max = limits_.step_tokens_max - limits_.sequences_max};
    scheduler_.Plan(PromptBudget({.slope = 0.01, .read_tokens = 10}, units, UINT32_MAX, parts),
                    &step_);
    for (RequestId id : step_.preempted) {
      Live& l = live_.at(id);
      l.done = l.dropped = l.part = l.layers = 0;
      l.started = false;
      held_.erase(id);
      ++preemptions_;
    }
    ASSERT_LE(scheduler_.blocks_promised(), limits_.blocks);
    ASSERT_LE(scheduler_.running(), limits_.sequences_max);
    ASSERT_EQ(scheduler_.running() + scheduler_.waiting(), live_.size());
    uint32_t tokens = 0;
    for (const auto& [id, l] : live_) tokens += l.part;
    std::set<RequestId> seen;
    for (const ScheduledRow& row : step_.rows) {
      ASSERT_TRUE(seen.insert(row.id).second);
      if (live_.at(row.id).part == 0) tokens += row.length;
      ASSERT_TRUE(row.part.empty() || &row == &step_.rows.back());
      TakeRow(row);
      if (testing::Test::HasFatalFailure()) return;
    }
    ASSERT_LE(tokens, limits_.step_tokens_max);
    // Something always goes on.
    const bool any =
        std::any_of(live_.begin(), live_.end(), [](const auto& l) { return l.second.started; });
    ASSERT_TRUE(!any || !step_.rows.empty()) << "step " << step;
    uint64_t blocks = 0;
    for (const auto& [id, l] : live_)
      blocks += (l.done + l.part - l.dropped + limits_.block_tokens - 1) / limits_.block_tokens;
    ASSERT_LE(
        std::count_if(live_.begin(), live_.end(), [](const auto& l) { return l.second.part > 0; }),
        1);
    ASSERT_LE(blocks, scheduler_.blocks_promised());
  }
  // Some of what is done leaves the cache once the prompt is, or where a row ends on a block.
  void Drop(Live* l) {
    const uint32_t block = limits_.block_tokens;
    if (!l->prunes || l->done < l->request.prompt_tokens) return;
    if (l->done != l->request.prompt_tokens && l->done % block != 0) return;
    const uint32_t tokens = Random((l->done - l->dropped) / block + 1) * block;
    scheduler_.Drop(l->request.id, tokens);
    l->dropped += tokens;
  }
  // Layers follow each other, of the same tokens; some come late.
  void TakePart(Live* l, ScheduledRow* row) {
    ASSERT_TRUE(l->by_layers && row->prompt);
    ASSERT_EQ(row->part.begin, l->layers);
    ASSERT_LT(row->part.begin, row->part.end);
    ASSERT_TRUE(l->part == 0 || l->part == row->length);
    ASSERT_EQ(row->done, row->part.end == kAll);
    ASSERT_TRUE(row->done || !row->sampled);
    ASSERT_LE(l->done + row->length, l->request.prompt_tokens);
    if (Random(3) == 0) row->part.end = row->part.begin + 1;
    row->done = row->part.end == kAll;
    ASSERT_EQ(scheduler_.CameTo(row->part.end), row->done);
    l->part = row->done ? 0 : row->length;
    l->layers = row->done ? 0 : row->part.end;
    ++parts_;
  }
  void TakeRow(ScheduledRow row) {
    Live& l = live_.at(row.id);
    const uint32_t known = l.request.prompt_tokens + l.sampled;
    ASSERT_TRUE(l.started);
    ASSERT_EQ(row.first_position, l.done);
    ASSERT_GE(row.length, 1u);
    if (l.part > 0 || !row.part.empty()) {
      TakePart(&l, &row);
      if (!row.done || testing::Test::HasFatalFailure()) return;
    }
    l.done += row.length;
    ASSERT_LE(l.done, known);
    ASSERT_EQ(row.prompt, row.first_position < l.request.prompt_tokens);
    ASSERT_TRUE(!row.prompt || l.done <= l.request.prompt_tokens);
    ASSERT_EQ(row.sampled, l.done == known);
    l.sampled += row.sampled;
    const uint32_t block = limits_.block_tokens;
    ASSERT_TRUE(!l.prunes || row.prompt || row.first_position / block == (l.done - 1) / block);
    Drop(&l);
    if (row.sampled && l.sampled >= std::max(1u, l.request.max_tokens)) {
      ASSERT_TRUE(scheduler_.Remove(row.id));
      live_.erase(row.id);
      ++finished_;
    }
  }

  std::mt19937 random_;
  const SchedulerLimits limits_;
  Scheduler scheduler_;
  ScheduledStep step_;
  std::map<RequestId, Live> live_;
  std::set<RequestId> held_;  // admitted and not started
  RequestId next_ = 1;
  uint32_t finished_ = 0, cancelled_ = 0, preemptions_ = 0, parts_ = 0;
};

TEST(Scheduler, SimulatedLoadKeepsItsPromises) {
  uint32_t preemptions = 0, parts = 0;
  for (uint32_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Simulation simulation(seed);
    simulation.Run(600);
    if (HasFatalFailure()) return;
    preemptions += simulation.preemptions();
    parts += simulation.parts();
  }
  EXPECT_GT(preemptions, 100u);
  EXPECT_GT(parts, 1000u);
}

}  // namespace
}  // namespace tinyserve
