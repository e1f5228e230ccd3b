// A tiny model and an executor for several of its sequences, as the oracles drive them.
#ifndef TINYSERVE_TESTS_ORACLES_EXECUTOR_RIG_H_
#define TINYSERVE_TESTS_ORACLES_EXECUTOR_RIG_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/cpu_executor.h"

namespace tinyserve {

struct Setup {
  const Kernels* kernels;
  Compute compute;
  std::string model;
  std::string selector = "";  // of generated tokens; empty: they read everything
  std::string kv = "f16";
  std::vector<std::string> steps = {};  // step plugins
  uint32_t page_tokens = 16;

  bool IsRef() const { return std::string(kernels->name) == "ref"; }
};

// One model and an executor for up to eight sequences. One thread unless threads are the point:
// a busy machine keeps the others of a region waiting.
struct Rig {
  explicit Rig(const Setup& setup, uint32_t thread_count = 1) : threads(thread_count) {
    auto file =
        GgufFile::Open(std::string(TS_SOURCE_DIR "/tests/golden/tiny/") + setup.model + ".gguf");
    EXPECT_TRUE(file.ok()) << file.status().message();
    auto loaded = LoadModel(
        **file,
        {.kernels = setup.kernels, .compute = setup.compute, .threads = &threads, .progress = {}});
    EXPECT_TRUE(loaded.ok()) << loaded.status().message();
    model = *std::move(loaded);
    auto created = CpuExecutor::Create(model.get(), setup.kernels, setup.compute, &threads,
                                       {.kv = setup.kv,
                                        .kv_memory_bytes = 64 << 20,
                                        .page_tokens = setup.page_tokens,
                                        .sequences_max = 8,
                                        .sequence_tokens_max = 512,
                                        .step_tokens_max = 512,
                                        .selectors = SelectorsOf(setup)});
    EXPECT_TRUE(created.ok()) << created.status().message();
    executor = *std::move(created);
    selector = setup.selector.empty() ? 0 : 1;
    const auto found = executor->FindSteps(setup.steps);
    EXPECT_TRUE(found.ok()) << found.status().message();
    steps = *found;
  }
  static std::vector<std::string> SelectorsOf(const Setup& setup) {
    if (setup.selector.empty()) return {};
    return {setup.selector};
  }

  ThreadPool threads;
  std::unique_ptr<Model> model;
  std::unique_ptr<CpuExecutor> executor;
  uint32_t selector, steps;  // of every row
};

inline std::vector<int32_t> RandomTokens(uint32_t count, uint32_t vocab, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % vocab);
  return tokens;
}

// A sequence in the making: what it holds, and the next piece of it as a row.
struct Sequence {
  SequenceSlot slot;
  uint32_t done = 0;

  explicit Sequence(Rig* rig) : slot(*rig->executor->cache()->AddSequence()) {}

  void AddRow(Rig* rig, StepBatch* batch, const std::vector<int32_t>& tokens,
              TokenClass token_class, Want want) {
    ASSERT_TRUE(
        rig->executor->cache()->Reserve(slot, done + static_cast<uint32_t>(tokens.size())).ok());
    batch->rows.push_back({.slot = slot,
                           .first_position = done,
                           .length = static_cast<uint32_t>(tokens.size()),
                           .first_input = static_cast<uint32_t>(batch->inputs.size()),
                           .token_class = token_class,
                           .want = want,
                           .selector = rig->selector,
                           .steps = rig->steps});
    batch->inputs.insert(batch->inputs.end(), tokens.begin(), tokens.end());
    done += static_cast<uint32_t>(tokens.size());
  }
};

}  // namespace tinyserve

#endif  // TINYSERVE_TESTS_ORACLES_EXECUTOR_RIG_H_
