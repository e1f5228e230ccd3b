// What a codec that codes full windows promises: tokens of a query's own window are read raw,
// others decoded and near what they were, by positions alone; copies and windows written anew go on
// like the original. (That batches, chunks, threads and replays change nothing: reproducible_test.)
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/cpu_executor.h"
#include "engine/logprobs.h"
#include "tests/support/sanitized.h"

namespace tinyserve {
namespace {

constexpr uint32_t kWindow = 64, kTokens = 210;
constexpr const char* kCoded[] = {"planes", "int8", "k8v4", "int4"};

struct Setup {
  const Kernels* kernels;
  std::string model;
};

class Rig {
 public:
  Rig(const Setup& setup, const std::string& kv) : threads_(2) {
    auto file =
        GgufFile::Open(std::string(TS_SOURCE_DIR "/tests/golden/tiny/") + setup.model + ".gguf");
    EXPECT_TRUE(file.ok()) << file.status().message();
    model_ = *LoadModel(**file, {.kernels = setup.kernels,
                                 .compute = Compute::kFast,
                                 .threads = &threads_,
                                 .progress = {}});
    auto created = CpuExecutor::Create(model_.get(), setup.kernels, Compute::kFast, &threads_,
                                       {.kv = kv,
                                        .kv_memory_bytes = 64 << 20,
                                        .sequences_max = 4,
                                        .sequence_tokens_max = 512,
                                        .step_tokens_max = 256,
                                        .selectors = {},
                                        .logits_max = 256});
    EXPECT_TRUE(created.ok()) << created.status().message();
    executor_ = *std::move(created);
  }

  CpuExecutor* executor() { return executor_.get(); }
  KvCache* cache() { return executor_->cache(); }
  const ModelConfig& config() const { return model_->config(); }

  // Runs tokens [first, last) of the sequence, and gives the logits after each of them.
  std::vector<std::vector<float>> Run(SequenceSlot slot, const std::vector<int32_t>& tokens,
                                      uint32_t first, uint32_t last, TokenClass token_class,
                                      uint32_t selector = 0) {
    EXPECT_EQ(cache()->Reserve(slot, last).message(), "");
    StepBatch batch;
    batch.rows.push_back({.slot = slot,
                          .first_position = first,
                          .length = last - first,
                          .first_input = 0,
                          .token_class = token_class,
                          .want = Want::kEveryLogits,
                          .selector = selector});
    batch.inputs.assign(tokens.begin() + first, tokens.begin() + last);
    executor_->Run(batch);
    const std::span<const float> logits = executor_->logits(0);
    std::vector<std::vector<float>> rows;
    const size_t vocab = config().vocab;
    for (size_t at = 0; at < logits.size(); at += vocab)
      rows.emplace_back(logits.begin() + static_cast<long>(at),
                        logits.begin() + static_cast<long>(at + vocab));
    return rows;
  }

 private:
  ThreadPool threads_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<CpuExecutor> executor_;
};

std::vector<int32_t> RandomTokens(uint32_t vocab) {
  std::mt19937 random(1);
  std::vector<int32_t> tokens(2 * kTokens);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % vocab);
  return tokens;
}

double Kl(const std::vector<float>& of, const std::vector<float>& from) {
  const double a = LogSumExp(of), b = LogSumExp(from);
  double kl = 0;
  for (size_t i = 0; i < of.size(); ++i) kl += std::exp(of[i] - a) * ((of[i] - a) - (from[i] - b));
  return kl;
}

class CodedPages : public testing::TestWithParam<Setup> {};

TEST_P(CodedPages, AreReadOutsideAQuerysWindow) {
  for (TokenClass token_class : {TokenClass::kPrompt, TokenClass::kGenerated}) {
    const auto logits_over = [&](const char* kv) {
      Rig rig(GetParam(), kv);
      const auto tokens = RandomTokens(rig.config().vocab);
      return rig.Run(*rig.cache()->AddSequence(), tokens, 0, kTokens, token_class);
    };
    const auto raw = logits_over("f16");
    for (const char* kv : kCoded) {
      const auto coded = logits_over(kv);
      double kl = 0;
      for (uint32_t i = 0; i < kTokens; ++i) {
        // Nothing is decoded for the first window's rows, something for each that follows.
        ASSERT_EQ(raw[i] == coded[i], i < kWindow) << kv << i;
        kl += Kl(raw[i], coded[i]) / kTokens;
      }
      EXPECT_LT(kl, std::string(kv).find('4') == std::string::npos ? 5e-3 : 5e-2) << kv;
      EXPECT_GT(kl, 0) << kv;
    }
  }
}

TEST_P(CodedPages, ACopyGoesOnLikeTheOriginal) {
  for (const char* kv : {"f16", "planes", "k8v4"}) {
    Rig rig(GetParam(), kv);
    KvCache* cache = rig.cache();
    const auto tokens = RandomTokens(rig.config().vocab);
    const SequenceSlot whole = *cache->AddSequence(), copy = *cache->AddSequence(),
                       windows = *cache->AddSequence();
    rig.Run(whole, tokens, 0, 200, TokenClass::kPrompt);
    cache->Commit(whole, 200);
    ASSERT_TRUE(cache->Copy(whole, copy, 200).ok());
    ASSERT_TRUE(cache->Copy(whole, windows, 192).ok());
    rig.Run(windows, tokens, 192, 200, TokenClass::kPrompt);
    cache->Commit(windows, 200);
    // Beyond the end of the window, so that what was copied raw is coded.
    for (uint32_t at = 200; at < 280; at += 40) {
      const auto expected = rig.Run(whole, tokens, at, at + 40, TokenClass::kGenerated);
      EXPECT_EQ(rig.Run(copy, tokens, at, at + 40, TokenClass::kGenerated), expected) << kv;
      EXPECT_EQ(rig.Run(windows, tokens, at, at + 40, TokenClass::kGenerated), expected) << kv;
      for (SequenceSlot slot : {whole, copy, windows}) cache->Commit(slot, at + 40);
    }
    EXPECT_EQ(cache->CheckIntegrity(), "");
  }
}

TEST_P(CodedPages, RewindingLeavesNoTrace) {
  for (const char* kv : {"planes", "int4"}) {
    Rig rig(GetParam(), kv);
    KvCache* cache = rig.cache();
    const auto tokens = RandomTokens(rig.config().vocab);
    const SequenceSlot straight = *cache->AddSequence(), back = *cache->AddSequence();
    rig.Run(straight, tokens, 0, 150, TokenClass::kPrompt);
    const auto expected = rig.Run(straight, tokens, 150, 151, TokenClass::kGenerated);
    rig.Run(back, tokens, 0, kTokens, TokenClass::kPrompt);
    cache->Commit(back, kTokens);
    cache->Rewind(back, 128);
    EXPECT_EQ(cache->CheckIntegrity(), "");
    rig.Run(back, tokens, 128, 150, TokenClass::kPrompt);
    EXPECT_EQ(rig.Run(back, tokens, 150, 151, TokenClass::kGenerated), expected);
    // And on to windows that were coded before.
    cache->Commit(back, 192);
    rig.Run(back, tokens, 192, 200, TokenClass::kPrompt);
    rig.Run(straight, tokens, 150, 200, TokenClass::kPrompt);
    EXPECT_EQ(rig.Run(back, tokens, 200, 201, TokenClass::kGenerated),
              rig.Run(straight, tokens, 200, 201, TokenClass::kGenerated));
  }
}

TEST_P(CodedPages, AreCountedInTheFormInWhichTheyAreRead) {
  for (const char* kv : kCoded) {
    Rig rig(GetParam(), kv);
    KvCache* cache = rig.cache();
    const auto tokens = RandomTokens(rig.config().vocab);
    const SequenceSlot slot = *cache->AddSequence();
    const uint64_t strips = uint64_t{rig.config().layers} * rig.config().kv_heads;
    const uint64_t raw = cache->open_slab(0, 0, 0).page_bytes;
    const uint64_t coded =
        uint64_t{cache->slab(0, 0, 0).page_bytes} + cache->records(0, 0, 0).page_bytes;
    EXPECT_LT(coded, raw);
    EXPECT_EQ(cache->bytes_per_token() * 16, strips * coded);
    rig.Run(slot, tokens, 0, 150, TokenClass::kPrompt);
    EXPECT_EQ(rig.executor()->cost().kv_bytes, strips * (10 * raw + 8 * coded));
    rig.Run(slot, tokens, 150, 151, TokenClass::kGenerated);
    EXPECT_EQ(rig.executor()->cost().kv_bytes, strips * (2 * raw + 8 * coded));
    rig.Run(slot, tokens, 151, 193, TokenClass::kGenerated);
    EXPECT_EQ(rig.executor()->cost().kv_bytes, strips * (5 * raw + 12 * coded));
  }
}

// The cascade with budgets that cover everything: each key and value is read in full, by integer
// products of its own.
TEST_P(CodedPages, AreAllReadByACascadeThatMayReadAll) {
  Rig rig(GetParam(), "planes");
  KvCache* cache = rig.cache();
  const auto tokens = RandomTokens(rig.config().vocab);
  const uint32_t all =
      *rig.executor()->FindSelector("cascade:ratio=1,min_context=0,full=1,values=1,least_share=0");
  const uint32_t some = *rig.executor()->FindSelector(
      "cascade:ratio=0.3,min_tokens=0,min_context=0,full=0.05,min_full=4,values=0.1,min_values=4,"
      "wide_layers=0");
  std::vector<std::vector<float>> logits[3];
  uint64_t kv_bytes[3], queries[3];
  const uint32_t selectors[3] = {0, all, some};
  for (int i = 0; i < 3; ++i) {
    const SequenceSlot slot = *cache->AddSequence();
    rig.Run(slot, tokens, 0, 200, TokenClass::kPrompt);
    rig.executor()->ResetSelectionCounts();
    logits[i] = rig.Run(slot, tokens, 200, 280, TokenClass::kGenerated, selectors[i]);
    kv_bytes[i] = rig.executor()->cost().kv_bytes;
    queries[i] = rig.executor()->selection_counts().queries;
    cache->RemoveSequence(slot);
  }
  const uint64_t each = uint64_t{80} * rig.config().layers * rig.config().kv_heads;
  EXPECT_EQ(queries[0], 0u);
  EXPECT_EQ(queries[1], each);
  EXPECT_EQ(queries[2], each);
  double kl_all = 0, kl_some = 0;
  for (size_t i = 0; i < logits[0].size(); ++i) {
    kl_all += Kl(logits[0][i], logits[1][i]) / 80;
    kl_some += Kl(logits[0][i], logits[2][i]) / 80;
  }
  EXPECT_LT(kl_all, 2e-3);
  EXPECT_GT(kl_some, 10 * kl_all);
  EXPECT_LT(kv_bytes[2], kv_bytes[1]);
}

std::vector<Setup> Setups() {
  std::vector<Setup> setups;
  for (const Kernels* kernels : ModelTargets()) {
    for (const char* model : {"llama-q4_1", "gpt2"}) setups.push_back({kernels, model});
  }
  return setups;
}

INSTANTIATE_TEST_SUITE_P(Targets, CodedPages, testing::ValuesIn(Setups()), [](const auto& test) {
  std::string name = std::string(test.param.kernels->name) + "_" + test.param.model;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
}  // namespace tinyserve
