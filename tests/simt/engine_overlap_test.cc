// The engine that begins a step before the one before it has ended, against the one that does not:
// texts, counts and pages are the same, whatever ends answers and whenever.
#include <gtest/gtest.h>

#include <functional>
#include <latch>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "engine/engine_impl.h"
#include "tests/simt/emulated_runtime.h"
#include "tests/simt/engine_testing.h"

namespace tinyserve {
namespace {

std::unique_ptr<Engine> Open(bool overlaps, const Change& change = {}) {
  auto engine = EngineImpl::Open(TinyOptions(change), overlaps);
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return *std::move(engine);
}

// A request, and when it is cancelled: after so many tokens; 0: it is not.
struct Asked {
  Request request;
  uint32_t cancel_after = 0;
};

// What came of requests that were all there before the first of them went on.
struct Outcome {
  std::vector<Answer> answers;
  EngineStats stats;
  uint64_t waits_ahead = 0, allocations = 0;
};

Outcome RunAll(Engine* engine, const std::vector<Asked>& asked) {
  Outcome run;
  run.answers.resize(asked.size());
  std::vector<RequestId> ids(asked.size());
  // One more holds the engine up in its own first step until all are there.
  std::latch all(1);
  Answer first;
  const simt::DeviceCounts before = simt::Counts();
  const auto gate = engine->Submit(Prompt(3, 98, 1), HoldUntil(&all, CollectInto(&first)));
  EXPECT_TRUE(gate.ok()) << gate.status().message();
  for (size_t i = 0; i < asked.size(); ++i) {
    const EventSink collect = CollectInto(&run.answers[i]);
    const auto id = engine->Submit(asked[i].request, [&, i, collect](const TokenEvent& event) {
      collect(event);
      const bool token = event.kind == TokenEvent::Kind::kToken;
      if (token && run.answers[i].tokens.size() == asked[i].cancel_after) engine->Cancel(ids[i]);
    });
    EXPECT_TRUE(id.ok()) << id.status().message();
    ids[i] = *id;
  }
  all.count_down();
  engine->Wait(*gate);
  for (const RequestId id : ids) engine->Wait(id);
  // One more, so that whatever was begun for them is over.
  EXPECT_TRUE(Ask(engine, Prompt(3, 99, 1)).status.ok());
  run.stats = engine->stats();
  run.waits_ahead = simt::Counts().waits_ahead - before.waits_ahead;
  run.allocations = simt::Counts().allocations - before.allocations;
  return run;
}

void ExpectSameOutcome(const Outcome& after, const Outcome& ahead) {
  for (size_t i = 0; i < after.answers.size(); ++i) {
    const Answer &a = after.answers[i], &b = ahead.answers[i];
    EXPECT_EQ(a.tokens, b.tokens) << i;
    EXPECT_EQ(a.text, b.text) << i;
    EXPECT_EQ(a.finish, b.finish) << i;
    EXPECT_EQ(a.logprobs, b.logprobs) << i;
    EXPECT_EQ(a.usage.completion_tokens, b.usage.completion_tokens) << i;
    EXPECT_EQ(a.usage.reads.bytes_read, b.usage.reads.bytes_read) << i;
    EXPECT_TRUE(b.status.ok()) << b.status.message();
  }
  EXPECT_EQ(after.stats.generated_tokens, ahead.stats.generated_tokens);
  EXPECT_EQ(after.stats.selection.queries, ahead.stats.selection.queries);
  EXPECT_EQ(after.stats.selection.pages_read, ahead.stats.selection.pages_read);
  EXPECT_EQ(ahead.stats.blocks_used, 0u);
  EXPECT_EQ(after.waits_ahead, 0u);
  EXPECT_EQ(ahead.allocations, 0u);
}

Request Drawn(uint32_t prompt, uint32_t seed, uint32_t max_tokens) {
  Request request = Prompt(prompt, seed, max_tokens);
  request.top_logprobs = -1;
  request.sampling.temperature = seed % 3 == 0 ? 0.0f : 1.2f;
  request.sampling.seed = seed;
  if (seed % 2 == 1) {  // the newest token counts before the host knows it
    request.sampling.repetition_penalty = 1.4f;
    request.sampling.frequency_penalty = 0.9f;
    request.sampling.top_p = 0.97f;
    request.top_logprobs = 1;
  }
  return request;
}

// Of `answers`, which nothing has ended but their length: the same requests with something that
// ends some of them at a random place.
std::vector<Asked> WithEnds(std::vector<Asked> asked, const std::vector<Answer>& answers,
                            SplitMix64* random) {
  for (size_t i = 0; i < asked.size(); ++i) {
    const std::vector<int32_t>& tokens = answers[i].tokens;
    const auto at = static_cast<size_t>(random->Next() % tokens.size());
    const std::string& text = answers[i].text;
    switch (random->Next() % 5) {
      case 0:
        asked[i].request.stop_tokens = {tokens[at]};
        break;
      case 1:
        if (!text.empty()) asked[i].request.stop = {text.substr(random->Next() % text.size(), 2)};
        break;
      case 2:
        asked[i].cancel_after = static_cast<uint32_t>(at + 1);
        break;
      case 3:
        asked[i].request.prompt_logprobs = true;  // the host draws the first token
        break;
      default:
        break;
    }
  }
  return asked;
}

struct Load {
  const char *name, *kv, *selector;
  uint32_t requests, prompt_least;
  uint32_t kv_tokens;  // of a pool so small that requests push each other out; 0: there is room
};
class Overlap : public testing::TestWithParam<Load> {
 protected:
  static std::unique_ptr<Engine> OpenFor(bool overlaps, uint64_t kv_bytes = 0) {
    return Open(overlaps, [kv_bytes](EngineOptions* o) {
      const Load& load = GetParam();
      o->kv = load.kv;
      o->selector = load.selector;
      o->exact_reuse = true;
      if (load.kv_tokens != 0) o->context_tokens = load.kv_tokens;
      if (kv_bytes != 0) o->kv_memory_bytes = kv_bytes;
    });
  }
  static uint64_t KvBytes() {
    if (GetParam().kv_tokens == 0) return 0;
    return OpenFor(false)->info().kv_bytes_per_token * uint64_t{GetParam().kv_tokens};
  }
};
INSTANTIATE_TEST_SUITE_P(All, Overlap,
                         testing::Values(Load{"Hierarchical", "f16", kTinyHierarchical, 6, 10, 0},
                                         Load{"Crowded", "f16", "full", 4, 26, 96},
                                         Load{"Planes", "planes", kSmallCascade, 3, 56, 0}),
                         [](const auto& test) { return std::string(test.param.name); });

TEST_P(Overlap, ChangesNothingThatAnybodySees) {
  const uint64_t kv_bytes = KvBytes();
  SplitMix64 random(7);
  std::vector<Asked> asked(GetParam().requests);
  for (size_t i = 0; i < asked.size(); ++i) {
    const auto prompt = static_cast<uint32_t>(GetParam().prompt_least + random.Next() % 8);
    const auto max_tokens = static_cast<uint32_t>(4 + random.Next() % 12);
    asked[i].request = Drawn(prompt, static_cast<uint32_t>(i), max_tokens);
  }
  const Outcome unstopped = RunAll(OpenFor(true, kv_bytes).get(), asked);
  asked = WithEnds(asked, unstopped.answers, &random);
  const Outcome after = RunAll(OpenFor(false, kv_bytes).get(), asked);
  const Outcome ahead = RunAll(OpenFor(true, kv_bytes).get(), asked);
  ExpectSameOutcome(after, ahead);
  EXPECT_GT(unstopped.waits_ahead, 0u);
  EXPECT_EQ(unstopped.stats.preemptions > 0, GetParam().kv_tokens != 0);
}

// Each step but the last is waited for when the next one has been begun; those that replay a graph
// are as many as without.
TEST(StepsAhead, AreBegunBeforeTheOneBeforeIsRead) {
  for (const bool overlaps : {false, true}) {
    auto engine = Open(overlaps);
    ASSERT_TRUE(Ask(engine.get(), Drawn(20, 3, 4)).status.ok());
    const simt::DeviceCounts before = simt::Counts();
    const uint64_t steps = engine->stats().steps;
    ASSERT_EQ(Ask(engine.get(), Drawn(20, 4, 9)).tokens.size(), 9u);
    const simt::DeviceCounts counts = simt::Counts();
    EXPECT_EQ(counts.allocations, before.allocations);
    EXPECT_EQ(counts.graph_launches - before.graph_launches, 8u);
    EXPECT_EQ(counts.waits - before.waits, 9u);
    EXPECT_EQ(counts.waits_ahead - before.waits_ahead, overlaps ? 8u : 0u);
    EXPECT_EQ(counts.copies_in - before.copies_in, 9u);  // all that a step reads, at once
    // Ids and whether states were numbers come back; not a vocabulary of logits.
    EXPECT_LT(counts.bytes_out - before.bytes_out, 9u * 64);
    EXPECT_EQ(engine->stats().steps - steps, 9u);
  }
}

// What is asked for while others run is taken in, and nobody's text knows of it.
TEST(StepsAhead, LetArrivalsIn) {
  std::vector<int32_t> tokens[2], later_tokens[2];
  for (const bool overlaps : {false, true}) {
    auto engine = Open(overlaps);
    Answer first, later;
    RequestId later_id = 0;
    const EventSink collect = CollectInto(&first);
    const auto id = engine->Submit(Drawn(20, 1, 12), [&](const TokenEvent& event) {
      collect(event);
      if (event.kind != TokenEvent::Kind::kToken || first.tokens.size() != 5) return;
      later_id = *engine->Submit(Drawn(30, 2, 6), CollectInto(&later));
    });
    ASSERT_TRUE(id.ok());
    engine->Wait(*id);
    engine->Wait(later_id);
    tokens[overlaps] = first.tokens;
    later_tokens[overlaps] = later.tokens;
    EXPECT_EQ(engine->stats().blocks_used, 0u);
  }
  EXPECT_EQ(tokens[0], tokens[1]);
  EXPECT_EQ(later_tokens[0], later_tokens[1]);
  EXPECT_EQ(later_tokens[1].size(), 6u);
}

// A device that is lost in a step that was begun ahead: the step before it is still answered.
TEST(StepsAhead, LoseTheirRequestsWithTheDevice) {
  std::vector<int32_t> whole;
  uint64_t launches = 0;
  {
    auto engine = Open(true);
    (void)Ask(engine.get(), Drawn(20, 4, 4));
    const uint64_t before = simt::Counts().launches;
    whole = Ask(engine.get(), Drawn(20, 4, 12)).tokens;
    launches = simt::Counts().launches - before;
  }
  for (const uint64_t at : {launches / 3, launches / 2, launches - 5}) {
    auto engine = Open(true);
    (void)Ask(engine.get(), Drawn(20, 4, 4));
    simt::LoseDeviceAt(at);
    const Answer lost = Ask(engine.get(), Drawn(20, 4, 12));
    EXPECT_EQ(lost.finish, FinishReason::kError);
    EXPECT_NE(lost.status.message().find("lost"), std::string::npos) << lost.status.message();
    EXPECT_FALSE(lost.tokens.empty());
    EXPECT_LT(lost.tokens.size(), whole.size());
    EXPECT_TRUE(std::equal(lost.tokens.begin(), lost.tokens.end(), whole.begin()));
    EXPECT_EQ(engine->stats().blocks_used, 0u);
    EXPECT_EQ(Ask(engine.get(), Drawn(5, 1, 1)).finish, FinishReason::kError);
    EXPECT_NE(engine->stats().device_error, "");
    simt::ReplaceDevice();
    EXPECT_EQ(Ask(engine.get(), Drawn(20, 4, 12)).tokens, whole);
    EXPECT_EQ(engine->stats().device_error, "");
  }
}

}  // namespace
}  // namespace tinyserve
