// Prompt attention over coded pages, emulated, against what ref decodes of them.
#include <gtest/gtest.h>

#include <string>

#include "tests/simt/coded_batch.h"
#include "tests/simt/emulator.h"
#include "tests/simt/prompt_testing.h"

namespace tinyserve::cuda {
namespace {

uint32_t WindowBegin(uint32_t tokens) { return tokens / kPromptTile * kPromptTile; }

// Sequences whose full windows are coded, raw pages as well, and chunks of them.
struct CodedPrompt {
  CodedBatch batch;
  PromptRows rows;

  CodedPrompt(const DecodeShape& shape, KvType type, const std::vector<uint32_t>& lengths,
              const std::vector<uint32_t>& first, uint64_t seed)
      : batch(shape, type, lengths, CodedOf(lengths), seed), rows(batch, first) {}
  static std::vector<uint32_t> CodedOf(const std::vector<uint32_t>& lengths) {
    std::vector<uint32_t> coded;
    for (const uint32_t length : lengths) coded.push_back(WindowBegin(length));
    return coded;
  }
  Status Attend() {
    TS_RETURN_IF_ERROR(batch.Seal());
    return AttendPromptCoded(batch.coded_shape(), batch.coded_pages(), batch.pages(), rows.Step(),
                             nullptr);
  }
  // In double: the windows before a row's own as ref decodes them, rounded to f16, its own raw.
  // Else of wrong rows, whose tokens are raw from `raw_from` windows after their own on.
  std::vector<float> Reference(uint32_t run, int raw_from = 0) const {
    const DecodeShape& shape = batch.shape();
    const PromptRun& of = rows.runs[run];
    std::vector<float> want(of.rows * rows.width);
    for (uint32_t head = 0; head < shape.kv_heads; ++head) {
      const std::vector<KeyValue> decoded = Decoded(run, head), raw = Raw(run, head);
      for (uint32_t row = 0; row < of.rows; ++row) {
        const uint32_t position = of.first_position + row;
        const int64_t window = WindowBegin(position) + raw_from * int64_t{kPromptTile};
        testing::Tokens t{position + 1, shape.head_dim, shape.group, {}, {}, {}};
        for (uint32_t token = 0; token <= position; ++token) {
          const bool coded = token < window && token < decoded.size();
          const KeyValue& one = coded ? decoded[token] : raw[token];
          t.k.insert(t.k.end(), one.k.begin(), one.k.end());
          t.v.insert(t.v.end(), one.v.begin(), one.v.end());
        }
        const uint64_t at = row * rows.width + uint64_t{head} * shape.group * shape.head_dim;
        const float* q = rows.q.data() + of.first_row * rows.width + at;
        t.q.assign(q, q + shape.group * shape.head_dim);
        const std::vector<float> exact = testing::Exact(t, DecodeBatch::kScale, 0, t.tokens);
        std::copy(exact.begin(), exact.end(), want.begin() + static_cast<ptrdiff_t>(at));
      }
    }
    return want;
  }
  float Farthest(uint32_t run) const { return rows.Farthest(run, Reference(run)); }

 private:
  std::vector<KeyValue> Decoded(uint32_t run, uint32_t head) const {
    std::vector<KeyValue> tokens;
    for (const uint32_t i : batch.CodedPagesOf(run)) {
      const CodedBatch::RefPage page = batch.RefSeal(head, batch.table(run)[i]);
      for (uint32_t slot = 0; slot < kCodedTokens; ++slot) {
        tokens.push_back(batch.RefRead(page, slot));
        for (float& x : tokens.back().k) x = Stored(KvType::kF16, x);
        for (float& x : tokens.back().v) x = Stored(KvType::kF16, x);
      }
    }
    return tokens;
  }
  std::vector<KeyValue> Raw(uint32_t run, uint32_t head) const {
    const uint32_t dim = batch.shape().head_dim;
    const KvShape open{KvType::kF16, 1, dim, kCodedTokens};
    const KvSlab slab = batch.slab(head);
    std::vector<KeyValue> tokens;
    for (uint32_t i = 0; i < batch.lengths()[run]; ++i) {
      tokens.push_back({std::vector<float>(dim), std::vector<float>(dim)});
      RefKernels()->read_token(&open, PageAt(slab, batch.table(run)[i / kCodedTokens]),
                               slab.v_offset, nullptr, i % kCodedTokens, tokens.back().k.data(),
                               tokens.back().v.data());
    }
    return tokens;
  }
};

constexpr KvType kCodedTypes[] = {KvType::kPlanes, KvType::kInt8, KvType::kK8V4, KvType::kInt4};
const float kTolerance = PromptTolerance(KvType::kF16);

TEST(AttentionPromptCoded, MatchesWhatRefDecodes) {
  uint32_t turn = 0;
  for (const KvType type : kCodedTypes) {
    for (const uint32_t dim : {64u, 80u, 96u, 128u}) {
      const uint32_t group = 1 + turn * 3 % 8;
      const DecodeShape shape{KvType::kF16, dim, 1 + turn % 2, group, kCodedTokens};
      // Windows of their own and others' codes: a chunk that begins within a window and ends in
      // the next, one that fills its window, one that opens one, one row, a short prompt.
      const std::vector<uint32_t> lengths[] = {{75, 20}, {128, 66}, {130, 64}, {140, 1}};
      const std::vector<uint32_t> first[] = {{40, 0}, {100, 63}, {128, 60}, {90, 0}};
      SCOPED_TRACE("type " + std::to_string(static_cast<int>(type)) + " dim " +
                   std::to_string(dim) + " group " + std::to_string(group));
      simt::SetSeed(turn);
      CodedPrompt prompt(shape, type, lengths[turn % 4], first[turn % 4], turn);
      const Status status = prompt.Attend();
      ASSERT_TRUE(status.ok()) << status.message();
      for (uint32_t run = 0; run < 2; ++run) EXPECT_LT(prompt.Farthest(run), kTolerance) << run;
      if (HasFailure()) return;
      ++turn;
    }
  }
}

TEST(AttentionPromptCoded, ARowDependsNeitherOnItsChunkNorOnTheBatch) {
  for (const KvType type : kCodedTypes) {
    const DecodeShape shape{KvType::kF16, 64, 1, 3, kCodedTokens};
    CodedPrompt whole(shape, type, {150}, {0}, 8);
    ASSERT_TRUE(whole.Attend().ok());
    for (const uint32_t first : {1u, 64u, 100u}) {
      simt::SetSeed(first);
      CodedPrompt chunk(shape, type, {150, 70}, {first, 10}, 8);
      const Status status = chunk.Attend();
      ASSERT_TRUE(status.ok()) << status.message();
      EXPECT_EQ(chunk.rows.Rows(0, 0, 150 - first), whole.rows.Rows(0, first, 150 - first))
          << first;
    }
  }
}

// The references that differ in this are far enough apart to tell.
TEST(AttentionPromptCoded, ReadsItsOwnWindowRawAndThoseBeforeItCoded) {
  const DecodeShape shape{KvType::kF16, 64, 1, 2, kCodedTokens};
  CodedPrompt prompt(shape, KvType::kInt4, {128}, {0}, 3);
  ASSERT_TRUE(prompt.Attend().ok());
  EXPECT_LT(prompt.Farthest(0), kTolerance);
  EXPECT_GT(prompt.rows.Farthest(0, prompt.Reference(0, 1)), 20 * kTolerance);
  EXPECT_GT(prompt.rows.Farthest(0, prompt.Reference(0, -1)), 20 * kTolerance);
}

// The raw pages that it would take for those of the chunk's first window are of another.
TEST(AttentionPromptCoded, AMisplacedRawTableIsSeen) {
  const DecodeShape shape{KvType::kF16, 64, 1, 2, kCodedTokens};
  CodedPrompt prompt(shape, KvType::kPlanes, {100}, {70}, 8);
  std::vector<uint32_t>& raw = prompt.rows.raw_tables;
  std::copy_n(prompt.batch.table(0), raw.size(), raw.begin());
  ASSERT_TRUE(prompt.Attend().ok());
  EXPECT_GT(prompt.Farthest(0), 20 * kTolerance);
}

TEST(AttentionPromptCoded, RefusesShapesWithoutAnInstance) {
  CodedPrompt prompt({KvType::kF16, 64, 1, 1, kCodedTokens}, KvType::kPlanes, {5}, {0}, 1);
  const PromptStep step = prompt.rows.Step();
  for (const DecodeShape& shape :
       {DecodeShape{KvType::kF16, 64, 1, 1, 16}, DecodeShape{KvType::kPlanes, 72, 1, 1, 16},
        DecodeShape{KvType::kPlanes, 64, 1, 9, 16}, DecodeShape{KvType::kInt8, 64, 1, 1, 32}}) {
    EXPECT_EQ(AttendPromptCoded(shape, {}, {}, step, nullptr).code(), Code::kUnsupported);
  }
}

}  // namespace
}  // namespace tinyserve::cuda
