// A sequence's logits are the same, bit for bit, however its prompt is chunked, whatever else is in
// the batch, at any number of threads, and when its generated tokens are replayed
// (docs/ARCHITECTURE.md, "Two classes of token"). Held on every SIMD target of this machine for
// every architecture, on the fast path and in f32; on `ref` for a llama and a gpt2. Sanitizers see
// one run of each kind (tests/support/sanitized.h).
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "engine/logprobs.h"
#include "engine/sampler.h"
#include "tests/oracles/executor_rig.h"
#include "tests/support/sanitized.h"

namespace tinyserve {
namespace {

using Logits = std::vector<float>;

bool SameBits(const Logits& a, const Logits& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

Logits Copy(std::span<const float> logits) { return {logits.begin(), logits.end()}; }

// Prompt in chunks of the given sizes (repeated), then `steps` greedy tokens. Returns the logits
// before each.
std::vector<Logits> Generate(Rig* rig, const std::vector<int32_t>& prompt,
                             const std::vector<uint32_t>& chunks, uint32_t steps) {
  Sequence sequence(rig);
  StepBatch batch;
  for (uint32_t i = 0; sequence.done < prompt.size(); ++i) {
    batch.Clear();
    const uint32_t n = std::min<uint32_t>(chunks[i % chunks.size()],
                                          static_cast<uint32_t>(prompt.size()) - sequence.done);
    const auto first = prompt.begin() + sequence.done;
    sequence.AddRow(rig, &batch, {first, first + n}, TokenClass::kPrompt, Want::kLogits);
    rig->executor->Run(batch);
    rig->executor->cache()->Commit(sequence.slot, sequence.done);
  }
  std::vector<Logits> all = {Copy(rig->executor->logits(0))};
  for (uint32_t s = 0; s < steps; ++s) {
    batch.Clear();
    sequence.AddRow(rig, &batch, {Argmax(all.back())}, TokenClass::kGenerated, Want::kLogits);
    rig->executor->Run(batch);
    rig->executor->cache()->Commit(sequence.slot, sequence.done);
    all.push_back(Copy(rig->executor->logits(0)));
  }
  EXPECT_EQ(rig->executor->cache()->CheckIntegrity(), "");
  rig->executor->cache()->RemoveSequence(sequence.slot);
  return all;
}

class Reproducible : public testing::TestWithParam<Setup> {};

TEST_P(Reproducible, ChunkedPromptEqualsWhole) {
  Rig rig(GetParam());
  const auto prompt = RandomTokens(300, rig.model->config().vocab, 1);
  const auto whole = Generate(&rig, prompt, {300}, 8);
  std::vector<std::vector<uint32_t>> chunkings = {{1}, {7, 64, 3}};
  // `ref` has no tiles that a chunk could end on or within.
  if (!GetParam().IsRef()) chunkings.insert(chunkings.end(), {{16}, {64}, {299, 1}, {129}});
  if (kSanitized) chunkings = {{7, 64, 3}};
  for (const std::vector<uint32_t>& chunks : chunkings) {
    const auto chunked = Generate(&rig, prompt, chunks, 8);
    for (size_t i = 0; i < whole.size(); ++i) {
      ASSERT_TRUE(SameBits(whole[i], chunked[i])) << "first chunk " << chunks[0] << ", token " << i;
    }
  }
}

// Logits after each chunk's last token of a prompt whose chunks go through the layers by and by,
// while another sequence generates: a sublayer or a few in each step, sometimes none. Now and then
// a chunk is given up half way and begun anew.
std::vector<Logits> GoByLayers(Rig* rig, const std::vector<int32_t>& prompt,
                               const std::vector<uint32_t>& chunks, uint32_t seed) {
  std::mt19937 random(seed);
  const uint32_t sublayers = kSublayers * rig->model->config().layers;
  Sequence other(rig), sequence(rig);
  KvCache* cache = rig->executor->cache();
  StepBatch batch;
  other.AddRow(rig, &batch, RandomTokens(70, rig->model->config().vocab, seed), TokenClass::kPrompt,
               Want::kLogits);
  rig->executor->Run(batch);
  cache->Commit(other.slot, other.done);
  std::vector<Logits> all;
  SublayerRange part;
  bool left_out = false;
  for (uint32_t i = 0; sequence.done < prompt.size();) {
    batch.Clear();
    const bool beside = random() % 4 != 0;
    if (beside)
      other.AddRow(rig, &batch, {static_cast<int32_t>(i)}, TokenClass::kGenerated, Want::kLogits);
    const uint32_t begun = sequence.done;
    const uint32_t n =
        std::min<uint32_t>(chunks[i % chunks.size()], static_cast<uint32_t>(prompt.size()) - begun);
    const bool rests = beside && random() % 4 == 0;
    if (!rests) {
      sequence.AddRow(rig, &batch, {prompt.begin() + begun, prompt.begin() + begun + n},
                      TokenClass::kPrompt, Want::kLogits);
      if (part.begin > 0 && random() % 8 == 0) part = {};
      part.end = part.begin + 1 + static_cast<uint32_t>(random() % (sublayers - part.begin));
      batch.rows.back().part = part;
      if (part.end < sublayers) batch.rows.back().want = Want::kNothing;
      // As early as can be: before the first, or after it where the step before had none.
      batch.part_until_ns = random() % 2;
    }
    rig->executor->Run(batch);
    cache->Commit(other.slot, other.done);
    if (rests) continue;
    left_out = batch.part_until_ns != 0 && !left_out;
    EXPECT_EQ(rig->executor->part_sublayer(), left_out                   ? part.begin
                                              : batch.part_until_ns != 0 ? part.begin + 1
                                                                         : part.end);
    part.begin = rig->executor->part_sublayer();
    if (part.begin < sublayers) {
      sequence.done = begun;
      continue;
    }
    cache->Commit(sequence.slot, sequence.done);
    all.push_back(Copy(rig->executor->logits(batch.rows.size() - 1)));
    part = {};
    ++i;
  }
  EXPECT_EQ(cache->CheckIntegrity(), "");
  cache->RemoveSequence(sequence.slot);
  cache->RemoveSequence(other.slot);
  return all;
}

TEST_P(Reproducible, ChunkByLayersEqualsWhole) {
  Rig rig(GetParam(), 2);
  rig.steps = 0;  // of prompts they learn once for each token
  const auto prompt = RandomTokens(200, rig.model->config().vocab, 8);
  std::vector<std::vector<uint32_t>> chunkings = {{64}, {7, 64, 3}};
  if (kSanitized) chunkings = {{7, 64, 3}};
  for (const std::vector<uint32_t>& chunks : chunkings) {
    const auto found = GoByLayers(&rig, prompt, chunks, chunks[0]);
    std::vector<int32_t> begin;
    for (uint32_t i = 0; begin.size() < prompt.size(); ++i) {
      const size_t n = std::min<size_t>(chunks[i % chunks.size()], prompt.size() - begin.size());
      begin.insert(begin.end(), prompt.begin() + static_cast<long>(begin.size()),
                   prompt.begin() + static_cast<long>(begin.size() + n));
      ASSERT_LT(i, found.size());
      ASSERT_TRUE(SameBits(found[i], Generate(&rig, begin, {300}, 0)[0])) << "chunk " << i;
    }
  }
}

TEST_P(Reproducible, ThreadCountChangesNothing) {
  std::vector<Logits> reference;
  std::vector<uint32_t> counts = {1, 2, 3, 5};
  if (kSanitized) counts = {1, 3};
  for (uint32_t threads : counts) {
    Rig rig(GetParam(), threads);
    const auto all = Generate(&rig, RandomTokens(280, rig.model->config().vocab, 2), {100}, 6);
    if (reference.empty()) reference = all;
    for (size_t i = 0; i < all.size(); ++i)
      ASSERT_TRUE(SameBits(reference[i], all[i])) << threads << " threads, token " << i;
  }
}

// Several sequences of different lengths, started at different steps, prefill and decode mixed in
// one batch.
TEST_P(Reproducible, BatchedEqualsAlone) {
  Rig rig(GetParam(), 2);
  constexpr uint32_t kSequences = kSanitized ? 4 : 6, kSteps = 5;
  std::vector<std::vector<int32_t>> prompts;
  std::vector<std::vector<Logits>> alone;
  for (uint32_t s = 0; s < kSequences; ++s) {
    prompts.push_back(RandomTokens(3 + 57 * s, rig.model->config().vocab, 10 + s));
    alone.push_back(Generate(&rig, prompts[s], {64}, kSteps));
  }
  std::vector<Sequence> sequences;
  for (uint32_t s = 0; s < kSequences; ++s) sequences.emplace_back(&rig);
  std::vector<std::vector<Logits>> batched(kSequences);
  std::mt19937 random(3);
  StepBatch batch;
  for (int step = 0; step < 200; ++step) {
    batch.Clear();
    std::vector<uint32_t> who;
    for (uint32_t s = 0; s < kSequences; ++s) {
      Sequence& q = sequences[s];
      if (batched[s].size() > kSteps || random() % 4 == 0)
        continue;  // finished, or sits this step out
      if (q.done < prompts[s].size()) {
        const uint32_t n = std::min<uint32_t>(1 + random() % 70,
                                              static_cast<uint32_t>(prompts[s].size()) - q.done);
        const auto first = prompts[s].begin() + q.done;
        q.AddRow(&rig, &batch, {first, first + n}, TokenClass::kPrompt, Want::kLogits);
      } else {
        q.AddRow(&rig, &batch, {Argmax(batched[s].back())}, TokenClass::kGenerated, Want::kLogits);
      }
      who.push_back(s);
    }
    if (who.empty()) continue;
    rig.executor->Run(batch);
    for (size_t i = 0; i < who.size(); ++i) {
      // Whether what is done is committed at once or later changes nothing.
      const Sequence& q = sequences[who[i]];
      if (random() % 3 != 0) rig.executor->cache()->Commit(q.slot, q.done);
      if (sequences[who[i]].done >= prompts[who[i]].size())
        batched[who[i]].push_back(Copy(rig.executor->logits(i)));
    }
  }
  for (uint32_t s = 0; s < kSequences; ++s) {
    ASSERT_EQ(batched[s].size(), alone[s].size());
    for (size_t i = 0; i < alone[s].size(); ++i)
      ASSERT_TRUE(SameBits(alone[s][i], batched[s][i])) << "sequence " << s << ", token " << i;
  }
}

// Preemption forgets a sequence and replays it: prompt as prompt, generated tokens as generated,
// several in one step, with the end of a coded window (256) among them.
TEST_P(Reproducible, ReplayEqualsNeverPreempted) {
  Rig rig(GetParam());
  const auto prompt = RandomTokens(250, rig.model->config().vocab, 4);
  constexpr uint32_t kSteps = 12;
  const auto through = Generate(&rig, prompt, {250}, kSteps);
  Sequence again(&rig);
  StepBatch batch;
  again.AddRow(&rig, &batch, prompt, TokenClass::kPrompt, Want::kNothing);
  rig.executor->Run(batch);
  std::vector<int32_t> generated;
  for (uint32_t i = 0; i < kSteps; ++i) generated.push_back(Argmax(through[i]));
  batch.Clear();
  again.AddRow(&rig, &batch, {generated.begin(), generated.begin() + 5}, TokenClass::kGenerated,
               Want::kLogits);
  rig.executor->Run(batch);
  EXPECT_TRUE(SameBits(through[5], Copy(rig.executor->logits(0))));
  batch.Clear();
  again.AddRow(&rig, &batch, {generated.begin() + 5, generated.end()}, TokenClass::kGenerated,
               Want::kLogits);
  rig.executor->Run(batch);
  EXPECT_TRUE(SameBits(through[kSteps], Copy(rig.executor->logits(0))));
}

// Where the tokens of a batch are of two minds, those that leave early change nothing of the
// others, and fewer layers are run for them.
TEST_P(Reproducible, SomeTokensLeaveEarly) {
  if (GetParam().steps.empty()) return;
  Rig rig(GetParam());
  Generate(&rig, RandomTokens(200, rig.model->config().vocab, 9), {200}, 40);
  const std::vector<StepPluginStats> stats = rig.executor->step_stats();
  ASSERT_EQ(stats.size(), 1u);
  EXPECT_GE(stats[0].calls, 40u);
  EXPECT_GT(stats[0].effects, 0u);
  EXPECT_LT(stats[0].effects, stats[0].calls);
  EXPECT_EQ(stats[0].errors, 0u);
}

// A row may name what the previous step sampled instead of a literal id.
TEST_P(Reproducible, SampledInputEqualsLiteral) {
  Rig rig(GetParam());
  const auto prompt = RandomTokens(40, rig.model->config().vocab, 5);
  const auto literal = Generate(&rig, prompt, {40}, 2);
  Sequence sequence(&rig);
  StepBatch batch;
  sequence.AddRow(&rig, &batch, prompt, TokenClass::kPrompt, Want::kLogits);
  rig.executor->Run(batch);
  for (uint32_t i = 1; i <= 2; ++i) {
    rig.executor->SetSampled(0, Argmax(rig.executor->logits(0)));
    batch.Clear();
    sequence.AddRow(&rig, &batch, {~0}, TokenClass::kGenerated, Want::kLogits);
    rig.executor->Run(batch);
    EXPECT_TRUE(SameBits(literal[i], Copy(rig.executor->logits(0)))) << i;
  }
}

// Rolling back rejected tokens and going another way leaves no trace.
TEST_P(Reproducible, TruncatedTokensLeaveNoTrace) {
  Rig rig(GetParam());
  const auto prompt = RandomTokens(90, rig.model->config().vocab, 6);
  // Where pages are coded: beyond the end of the window that the forgotten tokens filled.
  const uint32_t steps = rig.executor->cache()->coded(0) ? 42 : 1;
  const auto straight = Generate(&rig, prompt, {90}, steps);
  Sequence sequence(&rig);
  StepBatch batch;
  sequence.AddRow(&rig, &batch, prompt, TokenClass::kPrompt, Want::kLogits);
  rig.executor->Run(batch);
  int32_t next = Argmax(rig.executor->logits(0));
  rig.executor->cache()->Commit(sequence.slot, 90);
  batch.Clear();
  sequence.AddRow(&rig, &batch, RandomTokens(50, rig.model->config().vocab, 7),
                  TokenClass::kGenerated, Want::kNothing);
  rig.executor->Run(batch);
  rig.executor->cache()->Truncate(sequence.slot, 90);
  sequence.done = 90;
  for (uint32_t step = 1; step <= steps; ++step) {
    batch.Clear();
    sequence.AddRow(&rig, &batch, {next}, TokenClass::kGenerated, Want::kLogits);
    rig.executor->Run(batch);
    ASSERT_TRUE(SameBits(straight[step], Copy(rig.executor->logits(0)))) << step;
    next = Argmax(rig.executor->logits(0));
  }
  EXPECT_EQ(rig.executor->cache()->CheckIntegrity(), "");
}

// Teacher-forced log-probabilities equal those of the logits at each position.
TEST_P(Reproducible, LogProbsEqualLogits) {
  Rig rig(GetParam());
  const auto prompt = RandomTokens(80, rig.model->config().vocab, 8);
  Sequence scored(&rig);
  StepBatch batch;
  scored.AddRow(&rig, &batch, prompt, TokenClass::kPrompt, Want::kLogProbs);
  rig.executor->Run(batch);
  const Logits logprobs = Copy(rig.executor->logprobs(0));
  ASSERT_EQ(logprobs.size(), 79u);
  Sequence stepped(&rig);
  for (uint32_t i = 0; i + 1 < prompt.size(); ++i) {
    batch.Clear();
    stepped.AddRow(&rig, &batch, {prompt[i]}, TokenClass::kPrompt, Want::kLogits);
    rig.executor->Run(batch);
    const auto logits = rig.executor->logits(0);
    ASSERT_EQ(logprobs[i], logits[static_cast<size_t>(prompt[i + 1])] - LogSumExp(logits)) << i;
  }
}

std::vector<Setup> Setups() {
  std::vector<Setup> setups;
  for (const Kernels* kernels : ModelTargets()) {
    setups.push_back({kernels, Compute::kFast, "llama-q4_1"});
    setups.push_back({kernels, Compute::kF32, "llama-q4_1"});
    setups.push_back({kernels, Compute::kFast, "gpt2"});
    // What follows has sanitized tests of its own on `ref`, and takes long there.
    if (kSanitized && setups.back().IsRef()) continue;
    setups.push_back({kernels, Compute::kFast, "llama-q4_1",
                      "moments:ratio=0.3,min_tokens=0,min_context=40,dense_layers=1"});
    setups.push_back({kernels, Compute::kFast, "gpt2",
                      "box:ratio=0.4,min_tokens=0,min_context=40,dense_layers=0,recent=1"});
    setups.push_back({kernels, Compute::kFast, "llama-q4_1", "", "planes"});
    setups.push_back({kernels, Compute::kFast, "llama-q4_1", "", "int4"});
    setups.push_back({kernels, Compute::kFast, "gpt2",
                      "box:ratio=0.4,min_tokens=0,min_context=40,dense_layers=1", "k8v4"});
    setups.push_back({kernels, Compute::kFast, "llama-q4_1",
                      "box:ratio=0.4,min_tokens=0,min_context=40,dense_layers=1", "planes"});
    setups.push_back({kernels, Compute::kFast, "llama-q4_1",
                      "cascade:ratio=0.5,min_tokens=0,min_context=40,dense_layers=1,full=0.05,"
                      "min_full=4,values=0.2,min_values=12,wide_layers=1",
                      "planes"});
    setups.push_back({kernels, Compute::kFast, "llama-q4_1",
                      "hierarchical:ratio=0.4,min_tokens=0,min_context=40,dense_layers=1,reuse=3"});
    setups.push_back({kernels,
                      Compute::kFast,
                      "llama-q4_1",
                      "moments:ratio=0.3,min_tokens=0,min_context=40,rest=mean",
                      "f16",
                      {},
                      4});
    // At which about half of these random models' tokens leave.
    const std::vector<std::string> exits = {"early_exit:layer=1,entropy=4"};
    const std::vector<std::string> yarn_exits = {"early_exit:layer=1,entropy=2.5"};
    setups.push_back({kernels, Compute::kFast, "llama-q4_1", "", "f16", exits});
    setups.push_back({kernels, Compute::kF32, "llama-yarn",
                      "cascade:ratio=0.5,min_tokens=0,min_context=40,full=0.05,min_full=4,"
                      "values=0.2,min_values=12,wide_layers=1",
                      "planes", yarn_exits});
    setups.push_back({kernels, Compute::kFast, "gpt2",
                      "hierarchical:ratio=0.4,min_tokens=0,min_context=40,reuse=3", "f16", exits});
    // `ref` is slow, and has one loop for every type of weight.
    if (setups.back().IsRef()) continue;
    setups.push_back({kernels, Compute::kF32, "gpt2", "", "planes"});
    setups.push_back({kernels, Compute::kF32, "llama-q4_1", "", "int8"});
    setups.push_back({kernels, Compute::kFast, "gpt2",
                      "hierarchical:ratio=0.4,min_tokens=0,min_context=0,sub=8,reuse=5", "planes"});
    setups.push_back({kernels, Compute::kFast, "gpt2",
                      "cascade:ratio=0.4,min_tokens=0,min_context=0,sink=2,recent=1,full=0.1,"
                      "min_full=8,values=0.1,min_values=8,wide_layers=0",
                      "planes"});
    for (const char* model : {"llama", "llama-q6_k", "qwen2"}) {
      setups.push_back({kernels, Compute::kFast, model});
    }
  }
  return setups;
}

std::string NameOf(const testing::TestParamInfo<Setup>& test) {
  std::string name = std::string(test.param.kernels->name) + "_" + test.param.model +
                     (test.param.compute == Compute::kFast ? "_fast" : "_f32");
  if (!test.param.selector.empty())
    name += "_" + test.param.selector.substr(0, test.param.selector.find(':'));
  if (!test.param.steps.empty()) name += "_early_exit";
  if (test.param.page_tokens != 16) name += "_pages_of_" + std::to_string(test.param.page_tokens);
  if (test.param.kv != "f16") name += "_" + test.param.kv;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Targets, Reproducible, testing::ValuesIn(Setups()), NameOf);

}  // namespace
}  // namespace tinyserve
