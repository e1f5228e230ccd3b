// Prompt attention, emulated, against ref.
#include "kernels/cuda/attention_prompt.h"

#include <gtest/gtest.h>

#include "tests/simt/decode_testing.h"
#include "tests/simt/emulator.h"

namespace tinyserve::cuda {
namespace {

// Chunks of sequences that a batch has in full: the rows of q and out are those of the chunks.
struct Prompt {
  DecodeBatch batch;
  std::vector<PromptRun> runs;
  std::vector<PromptBlock> blocks;
  std::vector<uint32_t> tables;
  std::vector<float> q, out;

  // Run i: tokens first[i] .. lengths[i] - 1 of the batch's row i.
  Prompt(const DecodeShape& shape, const std::vector<uint32_t>& lengths,
         const std::vector<uint32_t>& first, uint64_t seed)
      : batch(shape, lengths, seed) {
    const uint32_t table_pages = TablePages();
    uint32_t row = 0;
    for (uint32_t i = 0; i < lengths.size(); ++i) {
      runs.push_back({row, lengths[i] - first[i], first[i]});
      row += lengths[i] - first[i];
      tables.insert(tables.end(), batch.table(i), batch.table(i) + table_pages);
      // A token's queries are a function of its sequence and position alone.
      for (uint32_t position = first[i]; position < lengths[i]; ++position) {
        std::vector<float> queries =
            testing::RandomFloats(batch.Width(), 1000 * i + position, 3.0f);
        for (float& x : queries) x = Stored(shape.type, x);
        q.insert(q.end(), queries.begin(), queries.end());
      }
    }
    out.assign(q.size(), NAN);
    blocks = PlanPromptBlocks(runs, shape.group);
    blocks.push_back({kNoRun, 0});
  }
  uint32_t TablePages() const { return batch.PagesOf(batch.TokensMax()); }
  Status Attend() {
    return AttendPrompt(batch.shape(), batch.pages(),
                        {.scale = DecodeBatch::kScale,
                         .table_pages = TablePages(),
                         .runs = ConstArrayOf(runs),
                         .blocks = ConstArrayOf(blocks),
                         .tables = ConstArrayOf(tables),
                         .q = ConstArrayOf(q),
                         .out = ArrayOf(out)},
                        nullptr);
  }
  // By ref: the run's rows at one KV head, in place.
  std::vector<float> Reference(uint32_t run) const {
    const DecodeShape& shape = batch.shape();
    std::vector<float> want(runs[run].rows * batch.Width(), NAN);
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
                            .first_position = runs[run].first_position,
                            .rows = runs[run].rows,
                            .q = q.data() + runs[run].first_row * batch.Width() + at,
                            .q_stride = batch.Width(),
                            .out = want.data() + at,
                            .out_stride = batch.Width(),
                            .scratch = nullptr,
                            .compute = Compute::kF32};
      RefKernels()->attend_prompt(&args);
    }
    return want;
  }
  std::vector<float> Rows(uint32_t run, uint32_t first, uint32_t rows) const {
    const auto begin = out.begin() + (runs[run].first_row + first) * batch.Width();
    return std::vector<float>(begin, begin + rows * batch.Width());
  }
  float Farthest(uint32_t run) const {
    const std::vector<float> want = Reference(run), got = Rows(run, 0, runs[run].rows);
    float far = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      const float distance = std::fabs(got[i] - want[i]);
      if (!(distance <= far)) far = distance;
    }
    return far;
  }
};

// Queries and keys are exact in the type; weights are rounded to it, by half of the last of its 11
// or 8 bits of 1 each, and so is what they weigh, in the mean: values are at most 1.
float ToleranceOf(KvType type) { return type == KvType::kF16 ? 0x1p-11f : 0x1p-8f; }

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
          EXPECT_LT(prompt.Farthest(run), ToleranceOf(type)) << "run " << run;
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
    EXPECT_EQ(chunk.Rows(0, 0, 100 - first), whole.Rows(0, first, 100 - first)) << first;
  }
}

TEST(AttentionPrompt, AMisplacedChunkIsSeen) {
  const DecodeShape shape{KvType::kF16, 64, 1, 2, 16};
  Prompt prompt(shape, {60}, {20}, 8);
  prompt.runs[0].first_position = 19;
  ASSERT_TRUE(prompt.Attend().ok());
  prompt.runs[0].first_position = 20;
  EXPECT_GT(prompt.Farthest(0), 20 * ToleranceOf(shape.type));
}

TEST(AttentionPrompt, PlansBlocksByWhatTheyRead) {
  const std::vector<PromptRun> runs = {{0, 50, 0}, {50, 3, 400}, {53, 0, 9}};
  std::vector<PromptBlock> blocks = PlanPromptBlocks(runs, 3);
  ASSERT_EQ(blocks.size(), 4u);  // 150 and 9 queries
  EXPECT_EQ(blocks[0].run, 1u);
  EXPECT_EQ(blocks[1].first, 128u);
  EXPECT_EQ(blocks[3].first, 0u);
}

TEST(AttentionPrompt, RefusesShapesWithoutAnInstance) {
  Prompt prompt({KvType::kF16, 64, 1, 1, 16}, {5}, {0}, 1);
  const PromptStep step{.blocks = ConstArrayOf(prompt.blocks)};
  for (const DecodeShape& shape :
       {DecodeShape{KvType::kF32, 64, 1, 1, 16}, DecodeShape{KvType::kF16, 72, 1, 1, 16},
        DecodeShape{KvType::kF16, 64, 1, 9, 16}}) {
    EXPECT_EQ(AttendPrompt(shape, {}, step, nullptr).code(), Code::kUnsupported);
  }
}

}  // namespace
}  // namespace tinyserve::cuda
