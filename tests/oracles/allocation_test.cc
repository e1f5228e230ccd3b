// A step that is like ones before it allocates nothing: planning, layers, selection, logits. What
// is asked of a step beyond logits (log-probabilities of prompts) may allocate.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "tests/oracles/executor_rig.h"
#include "tests/support/sanitized.h"

namespace {
// Allocations by any thread while a step is watched.
std::atomic<bool> watched{false};
std::atomic<uint64_t> allocations{0};

void* Allocate(size_t bytes, size_t alignment) {
  if (watched) ++allocations;
  const size_t whole = (bytes + alignment - 1) / alignment * alignment;
  if (void* memory = std::aligned_alloc(alignment, whole == 0 ? alignment : whole)) return memory;
  throw std::bad_alloc();
}
}  // namespace

// The other forms call these.
void* operator new(size_t bytes) { return Allocate(bytes, __STDCPP_DEFAULT_NEW_ALIGNMENT__); }
void* operator new(size_t bytes, std::align_val_t alignment) {
  return Allocate(bytes, static_cast<size_t>(alignment));
}
// Not inlined: GCC would hold `free` against the `new` that it sees, and warn.
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, size_t, std::align_val_t) noexcept {
  std::free(memory);
}

namespace tinyserve {
namespace {

class Allocations : public testing::TestWithParam<Setup> {};

// What the step allocates.
uint64_t RunWatched(Rig* rig, const StepBatch& batch) {
  allocations = 0;
  watched = true;
  rig->executor->Run(batch);
  watched = false;
  return allocations;
}

// Three sequences generate while chunks of a fourth one's prompt come in, again and again, across
// ends of pages, blocks and coded windows. The first time everything may grow to its size.
TEST_P(Allocations, StepsLikeOthersAllocateNothing) {
  Rig rig(GetParam(), 2);
  const uint32_t vocab = rig.model->config().vocab;
  StepBatch batch;
  uint64_t first_round = 0;
  for (uint32_t round = 0; round < 2; ++round) {
    std::vector<Sequence> sequences;
    for (uint32_t s = 0; s < 4; ++s) sequences.emplace_back(&rig);
    batch.Clear();
    for (uint32_t s = 0; s < 3; ++s)
      sequences[s].AddRow(&rig, &batch, RandomTokens(100 + 50 * s, vocab, s), TokenClass::kPrompt,
                          Want::kLogits);
    uint64_t count = RunWatched(&rig, batch);
    for (uint32_t step = 0; step < 70; ++step) {
      batch.Clear();
      for (uint32_t s = 0; s < 3; ++s)
        sequences[s].AddRow(&rig, &batch, RandomTokens(1, vocab, step), TokenClass::kGenerated,
                            Want::kLogits);
      sequences[3].AddRow(&rig, &batch, RandomTokens(1 + step % 9, vocab, step),
                          TokenClass::kPrompt, Want::kNothing);
      count += RunWatched(&rig, batch);
      for (const Sequence& s : sequences) rig.executor->cache()->Commit(s.slot, s.done);
    }
    for (const Sequence& s : sequences) rig.executor->cache()->RemoveSequence(s.slot);
    if (round == 0) {
      first_round = count;
    } else {
      EXPECT_EQ(count, 0u);
    }
  }
  EXPECT_GT(first_round, 0u);  // that the counter counts
}

std::vector<Setup> Setups() {
  const Kernels* kernels = ModelTargets().front();
  const std::string cascade =
      "cascade:ratio=0.5,min_tokens=0,min_context=40,full=0.05,min_full=4,values=0.2,min_values=12";
  const std::string early = "early_exit:layer=1,entropy=4";
  return {{kernels, Compute::kFast, "llama-q4_1"},
          {kernels, Compute::kF32, "gpt2"},
          {kernels, Compute::kFast, "llama-q4_1", "moments:ratio=0.3,min_tokens=0,min_context=40"},
          {kernels, Compute::kFast, "gpt2", "box:ratio=0.4,min_tokens=0,min_context=40", "int8"},
          {kernels, Compute::kFast, "llama-q4_1", cascade, "planes"},
          {kernels,
           Compute::kFast,
           "llama-q4_1",
           "hierarchical:ratio=0.4,min_tokens=0,min_context=40,reuse=3",
           "f16",
           {early}}};
}

INSTANTIATE_TEST_SUITE_P(Setups, Allocations, testing::ValuesIn(Setups()));

}  // namespace
}  // namespace tinyserve
