// What a selector keeps of its own, a summary of every page and a state of every sequence, with the
// example that has both: summaries depend on the keys alone, states go with the sequence, so that
// replays, batches and copies change nothing; all of it is counted; what is not kept is refused.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/cpu_executor.h"
#include "kernels/targets.h"
#include "select/registry.h"

namespace tinyserve {
namespace {

constexpr uint32_t kTokens = 200, kParts = 4;
// Pages that were read before are read again unless others are much better.
constexpr char kSticky[] = "subpage:ratio=0.3,min_tokens=0,min_context=40,keep=0.5";

using Tokens = std::vector<int32_t>;
using Logits = std::vector<float>;

Tokens RandomTokens(uint32_t count, uint32_t vocab, uint32_t seed) {
  std::mt19937 random(seed);
  Tokens tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % vocab);
  return tokens;
}

class Rig {
 public:
  explicit Rig(const Kernels* kernels, const std::vector<std::string>& selectors = {kSticky},
               uint32_t threads = 2)
      : threads_(threads) {
    EXPECT_EQ(LoadSelectorPlugin(TS_SUBPAGE_SELECTOR).message(), "");
    auto file = GgufFile::Open(TS_SOURCE_DIR "/tests/golden/tiny/llama-q4_1.gguf");
    EXPECT_TRUE(file.ok()) << file.status().message();
    model_ = *LoadModel(
        **file,
        {.kernels = kernels, .compute = Compute::kFast, .threads = &threads_, .progress = {}});
    auto created = CpuExecutor::Create(model_.get(), kernels, Compute::kFast, &threads_,
                                       {.kv_memory_bytes = 64 << 20,
                                        .sequences_max = 4,
                                        .sequence_tokens_max = 512,
                                        .step_tokens_max = 512,
                                        .selectors = selectors,
                                        .logits_max = 512});
    EXPECT_TRUE(created.ok()) << created.status().message();
    executor_ = *std::move(created);
  }

  CpuExecutor* executor() { return executor_.get(); }
  KvCache* cache() { return executor_->cache(); }
  const ModelConfig& config() const { return model_->config(); }
  SequenceSlot Add() { return *cache()->AddSequence(); }

  // Appends tokens[first .. first + count) to sequences that have `first` tokens, in one step, and
  // gives the logits after each token of each sequence.
  std::vector<std::vector<Logits>> Run(const std::vector<SequenceSlot>& slots,
                                       const std::vector<Tokens>& tokens, uint32_t first,
                                       uint32_t count, TokenClass token_class) {
    batch_.Clear();
    for (size_t s = 0; s < slots.size(); ++s) {
      EXPECT_TRUE(cache()->Reserve(slots[s], first + count).ok());
      batch_.rows.push_back({.slot = slots[s],
                             .first_position = first,
                             .length = count,
                             .first_input = static_cast<uint32_t>(batch_.inputs.size()),
                             .token_class = token_class,
                             .want = Want::kEveryLogits,
                             .selector = 1});
      batch_.inputs.insert(batch_.inputs.end(), tokens[s].begin() + first,
                           tokens[s].begin() + first + count);
    }
    executor_->Run(batch_);
    std::vector<std::vector<Logits>> out(slots.size());
    for (size_t s = 0; s < slots.size(); ++s) {
      cache()->Commit(slots[s], first + count);
      const auto all = executor_->logits(s);
      for (uint32_t i = 0; i < count; ++i) {
        const auto row = all.subspan(uint64_t{i} * config().vocab, config().vocab);
        out[s].emplace_back(row.begin(), row.end());
      }
    }
    return out;
  }
  // One sequence: the prompt [0, prompt) in one go, the others `step` at a time.
  std::vector<Logits> RunAll(SequenceSlot slot, const Tokens& tokens, uint32_t prompt,
                             uint32_t step) {
    std::vector<Logits> all;
    Run({slot}, {tokens}, 0, prompt, TokenClass::kPrompt);
    for (uint32_t at = prompt; at < tokens.size(); at += step) {
      const uint32_t n = std::min<uint32_t>(step, static_cast<uint32_t>(tokens.size()) - at);
      const auto rows = Run({slot}, {tokens}, at, n, TokenClass::kGenerated)[0];
      all.insert(all.end(), rows.begin(), rows.end());
    }
    return all;
  }

  const float* Summary(SequenceSlot slot, uint32_t page, uint32_t layer, uint32_t head) {
    const uint32_t index = cache()->View(slot, 0, (page + 1) * 16).pages[page];
    return reinterpret_cast<const float*>(PageAt(cache()->summaries(0, layer, head), index));
  }

 private:
  ThreadPool threads_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<CpuExecutor> executor_;
  StepBatch batch_;
};

class SelectorState : public testing::TestWithParam<const Kernels*> {};

TEST_P(SelectorState, SummariesDependOnTheKeysAlone) {
  Rig rig(GetParam());
  const Tokens tokens = RandomTokens(kTokens, rig.config().vocab, 1);
  const SequenceSlot a = rig.Add(), b = rig.Add(), c = rig.Add();
  rig.Run({a}, {tokens}, 0, kTokens, TokenClass::kPrompt);
  for (uint32_t at = 0; at < kTokens; at += 7)
    rig.Run({b}, {tokens}, at, std::min(7u, kTokens - at), TokenClass::kPrompt);
  ASSERT_TRUE(rig.cache()->Copy(a, c, kTokens).ok());
  const KvShape shape = rig.cache()->shape(0);
  const uint32_t dim = shape.head_dim, floats = kParts * 2 * dim;
  std::vector<float> k(dim), v(dim);
  for (uint32_t layer = 0; layer < rig.config().layers; ++layer) {
    for (uint32_t head = 0; head < shape.kv_heads; ++head) {
      for (uint32_t page = 0; page < kTokens / 16; ++page) {
        const float* summary = rig.Summary(a, page, layer, head);
        for (const SequenceSlot other : {b, c}) {
          ASSERT_EQ(std::memcmp(summary, rig.Summary(other, page, layer, head), floats * 4), 0);
        }
        // Bounds of the stored keys, and no wider.
        const KvSlab slab = rig.cache()->slab(0, layer, head);
        const uint32_t index = rig.cache()->View(a, 0, kTokens).pages[page];
        std::vector<float> least(dim, INFINITY), greatest(dim, -INFINITY);
        for (uint32_t t = 8; t < 12; ++t) {
          GetParam()->read_token(&shape, PageAt(slab, index), slab.v_offset, nullptr, t, k.data(),
                                 v.data());
          for (uint32_t i = 0; i < dim; ++i) {
            least[i] = std::min(least[i], k[i]);
            greatest[i] = std::max(greatest[i], k[i]);
          }
        }
        for (uint32_t i = 0; i < dim; ++i) {
          ASSERT_EQ(summary[2 * 2 * dim + i], least[i]);
          ASSERT_EQ(summary[2 * 2 * dim + dim + i], greatest[i]);
        }
      }
    }
  }
}

TEST_P(SelectorState, ReplaysBatchesAndThreadsChangeNothing) {
  Rig rig(GetParam());
  const Tokens tokens = RandomTokens(kTokens, rig.config().vocab, 2);
  const std::vector<Logits> alone = rig.RunAll(rig.Add(), tokens, 150, 1);
  Rig single(GetParam(), {kSticky}, 1);
  EXPECT_EQ(single.RunAll(single.Add(), tokens, 150, 1), alone);
  const SequenceSlot again = rig.Add();
  EXPECT_EQ(rig.RunAll(again, tokens, 150, 17), alone);
  // A second time in the same slot: nothing is left of the first.
  rig.cache()->RemoveSequence(again);
  EXPECT_EQ(rig.RunAll(rig.Add(), tokens, 150, 50), alone);
  // With another sequence in every step.
  Rig pair(GetParam());
  const std::vector<SequenceSlot> slots = {pair.Add(), pair.Add()};
  const std::vector<Tokens> two = {RandomTokens(kTokens, rig.config().vocab, 3), tokens};
  pair.Run(slots, two, 0, 150, TokenClass::kPrompt);
  for (uint32_t at = 150; at < kTokens; at += 10) {
    const auto rows = pair.Run(slots, two, at, 10, TokenClass::kGenerated)[1];
    for (uint32_t i = 0; i < 10; ++i) ASSERT_EQ(rows[i], alone[at - 150 + i]) << at + i;
  }
}

// The state matters: otherwise the tests above would prove nothing.
TEST_P(SelectorState, IsUsed) {
  Rig rig(GetParam()), without(GetParam(), {"subpage:ratio=0.3,min_tokens=0,min_context=40"});
  const Tokens tokens = RandomTokens(kTokens, rig.config().vocab, 2);
  EXPECT_NE(rig.RunAll(rig.Add(), tokens, 150, 1), without.RunAll(without.Add(), tokens, 150, 1));
}

TEST_P(SelectorState, CopiesGoOnLikeTheOriginal) {
  Rig rig(GetParam());
  const Tokens tokens = RandomTokens(kTokens, rig.config().vocab, 4);
  const SequenceSlot a = rig.Add(), b = rig.Add();
  rig.Run({a}, {tokens}, 0, 150, TokenClass::kPrompt);
  for (uint32_t at = 150; at < 170; ++at) rig.Run({a}, {tokens}, at, 1, TokenClass::kGenerated);
  ASSERT_TRUE(rig.cache()->Copy(a, b, 170).ok());
  for (uint32_t at = 170; at < kTokens; ++at) {
    ASSERT_EQ(rig.Run({a}, {tokens}, at, 1, TokenClass::kGenerated),
              rig.Run({b}, {tokens}, at, 1, TokenClass::kGenerated))
        << at;
  }
}

// A prompt between generated tokens begins anew, as it does in a sequence that has it all as one.
TEST_P(SelectorState, APromptBeginsAnew) {
  Rig rig(GetParam());
  const Tokens tokens = RandomTokens(kTokens, rig.config().vocab, 5);
  const auto turns = [&](uint32_t step) {
    const SequenceSlot slot = rig.Add();
    const uint32_t layers = rig.config().layers, heads = rig.cache()->shape(0).kv_heads;
    rig.RunAll(slot, {tokens.begin(), tokens.begin() + 160}, 150, step);
    rig.Run({slot}, {tokens}, 160, 10, TokenClass::kPrompt);
    for (uint32_t layer = 0; layer < layers; ++layer) {
      for (uint32_t head = 0; head < heads; ++head)
        EXPECT_EQ(rig.cache()->state(slot, 0, layer, head)->next_position, 0u);
    }
    return rig.Run({slot}, {tokens}, 170, 20, TokenClass::kGenerated);
  };
  EXPECT_EQ(turns(1), turns(10));
}

TEST_P(SelectorState, IsCounted) {
  Rig rig(GetParam());
  const KvShape shape = rig.cache()->shape(0);
  const uint32_t summary_bytes = kParts * 2 * shape.head_dim * 4;
  const uint64_t pages = uint64_t{rig.config().layers} * shape.kv_heads;
  Rig plain(GetParam(), {"streaming"});
  EXPECT_EQ(rig.cache()->bytes_per_token() - plain.cache()->bytes_per_token(),
            pages * summary_bytes / 16);
  EXPECT_EQ(plain.cache()->fixed_bytes(), 0u);
  EXPECT_EQ(rig.cache()->fixed_bytes(), 4 * pages * (64 + 64));  // a bit for each of 33 pages
  // A page more that is scored reads its summary.
  const Tokens tokens = RandomTokens(kTokens, rig.config().vocab, 6);
  const SequenceSlot slot = rig.Add();
  rig.Run({slot}, {tokens}, 0, 199, TokenClass::kPrompt);
  rig.Run({slot}, {tokens}, 199, 1, TokenClass::kGenerated);
  const SelectionCounts counts = rig.executor()->selection_counts();
  const uint64_t held = 13, scored = held - 3, read = 4;
  EXPECT_EQ(counts.failures, 0u);
  EXPECT_EQ(counts.pages_scored, pages * scored);
  EXPECT_EQ(counts.bytes_read,
            pages * (read * rig.cache()->slab(0, 0, 0).page_bytes + scored * summary_bytes));
}

TEST_P(SelectorState, WhatIsNotKeptIsRefused) {
  Rig rig(GetParam());
  EXPECT_EQ(rig.executor()->FindSelector(kSticky).status().message(), "");
  // Another budget over the same summaries.
  EXPECT_EQ(rig.executor()->FindSelector("subpage:ratio=0.1,keep=0.5").status().message(), "");
  EXPECT_EQ(rig.executor()->FindSelector("subpage:keep=3").status().message(),
            "selector 'subpage:keep=3': the summary of pages that subpage makes with these options "
            "is not kept: choose it when the engine starts, as its selector or its metadata");
  Rig plain(GetParam(), {"streaming"});
  EXPECT_FALSE(plain.executor()->FindSelector(kSticky).ok());
}

INSTANTIATE_TEST_SUITE_P(Targets, SelectorState, testing::ValuesIn(AvailableTargets()),
                         [](const auto& test) {
                           std::string name = test.param->name;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace tinyserve
