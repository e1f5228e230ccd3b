// Prompt attention, emulated, against ref.
#include "kernels/cuda/attention_prompt.h"

#include <gtest/gtest.h>

#include "tests/simt/decode_testing.h"
#include "tests/simt/emulator.h"
#include "tests/simt/prompt_testing.h"

namespace tinyserve::cuda {
namespace {

struct Prompt {
  DecodeBatch batch;
  PromptRows rows;

  Prompt(const DecodeShape& shape, const std::vector<uint32_t>& lengths,
         const std::vector<uint32_t>& first, uint64_t seed)
      : batch(shape, lengths, seed), rows(batch, first) {}
  Status Attend() { return AttendPrompt(batch.shape(), batch.pages(), rows.Step(), nullptr); }
  // By ref: the run's rows at one KV head, in place.
  std::vector<float> Reference(uint32_t run) const {
    const DecodeShape& shape = batch.shape();
    const PromptRun& of = rows.runs[run];
    std::vector<float> want(of.rows * batch.Width(), NAN);
    for (uint32_t head = 0; head < shape.kv_heads; ++head) {
      const uint64_t at = uint64_t{head} * shape.group * shape.head_dim;
      const uint32_t tokens = batch.lengths()[run], pages = batch.PagesOf(tokens);
      const PromptArgs args{.sealed = {},
                            .shape = {shape.type, 1, shape.head_dim, shape.page_tokens},
                            .slab = batch.slab(head),
                            .view = {.pages = batch.table(run),
                                     .count = pages,
                                     .last_tokens = tokens - (pages - 1) * shape.page_tokens,
                                     .space = MemorySpace::kHost},
                            .group = shape.group,
                            .scale = DecodeBatch::kScale,
                            .first_position = of.first_position,
                            .rows = of.rows,
                            .q = rows.q.data() + of.first_row * batch.Width() + at,
                            .q_stride = batch.Width(),
                            .out = want.data() + at,
                            .out_stride = batch.Width(),
                            .scratch = nullptr,
                            .compute = Compute::kF32};
      RefKernels()->attend_prompt(&args);
    }
    return want;
  }
  float Farthest(uint32_t run) const { return rows.Farthest(run, Reference(run)); }
};

TEST(AttentionPrompt, MatchesRef) {
  uint32_t turn = 0;
  for (const uint32_t dim : {64u, 80u, 96u, 128u}) {
    for (const KvType type : {KvType::kF16, KvType::kBF16}) {
      for (const uint32_t group : {1 + turn % 4, 5 + turn % 4}) {
        const uint32_t page = 4u << turn % 5;
        const DecodeShape shape{type, dim, 1 + turn % 2, group, page};
        // A whole prompt, a chunk after others, one row; ends around tiles.
        const std::vector<uint32_t> lengths[] = {{33, 70}, {65, 1}, {64, 90}, {20, 129}};
        const std::vector<uint32_t> first[] = {{0, 64}, {60, 0}, {40, 89}, {0, 120}};
        SCOPED_TRACE("type " + std::to_string(static_cast<int>(type)) + " dim " +
                     std::to_string(dim) + " group " + std::to_string(group) + " page " +
                     std::to_string(page));
        simt::SetSeed(turn);
        Prompt prompt(shape, lengths[turn % 4], first[turn % 4], turn);
        const Status status = prompt.Attend();
        ASSERT_TRUE(status.ok()) << status.message();
        for (uint32_t run = 0; run < 2; ++run) {
          EXPECT_LT(prompt.Farthest(run), PromptTolerance(type)) << "run " << run;
        }
        if (HasFailure()) return;
        ++turn;
      }
    }
  }
}

TEST(AttentionPrompt, ARowDependsNeitherOnItsChunkNorOnTheBatch) {
  const DecodeShape shape{KvType::kF16, 64, 1, 3, 16};
  Prompt whole(shape, {100}, {0}, 8);
  ASSERT_TRUE(whole.Attend().ok());
  for (const uint32_t first : {1u, 37u, 64u, 99u}) {
    Prompt chunk(shape, {100, 50}, {first, 10}, 8);
    const Status status = chunk.Attend();
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(chunk.rows.Rows(0, 0, 100 - first), whole.rows.Rows(0, first, 100 - first)) << first;
  }
}

TEST(AttentionPrompt, AMisplacedChunkIsSeen) {
  const DecodeShape shape{KvType::kF16, 64, 1, 2, 16};
  Prompt prompt(shape, {60}, {20}, 8);
  prompt.rows.runs[0].first_position = 19;
  ASSERT_TRUE(prompt.Attend().ok());
  prompt.rows.runs[0].first_position = 20;
  EXPECT_GT(prompt.Farthest(0), 20 * PromptTolerance(shape.type));
}

// At multiples of 64 queries of the sequence, wherever a run begins; those that read most come
// first.
TEST(AttentionPrompt, PlansBlocksByWhatTheyRead) {
  const std::vector<PromptRun> runs = {{0, 50, 0, 0}, {50, 3, 405, 0}, {53, 0, 9, 0}};
  const std::vector<PromptBlock> blocks = PlanPromptBlocks(runs, 3);
  std::vector<uint32_t> first, of_run;
  for (const PromptBlock& block : blocks) {
    first.push_back(block.first);
    of_run.push_back(block.run);
  }
  // Queries 1215 .. 1223, and 0 .. 149.
  EXPECT_EQ(first, (std::vector<uint32_t>{1216, 1152, 128, 64, 0}));
  EXPECT_EQ(of_run, (std::vector<uint32_t>{1, 1, 0, 0, 0}));
}

TEST(AttentionPrompt, RefusesShapesWithoutAnInstance) {
  Prompt prompt({KvType::kF16, 64, 1, 1, 16}, {5}, {0}, 1);
  const PromptStep step{.blocks = ConstArrayOf(prompt.rows.blocks)};
  for (const DecodeShape& shape :
       {DecodeShape{KvType::kF32, 64, 1, 1, 16}, DecodeShape{KvType::kF16, 72, 1, 1, 16},
        DecodeShape{KvType::kF16, 64, 1, 9, 16}}) {
    EXPECT_EQ(AttendPrompt(shape, {}, step, nullptr).code(), Code::kUnsupported);
  }
}

}  // namespace
}  // namespace tinyserve::cuda
