// For the tests of prompt attention on an emulated device: chunks of a batch's sequences.
#ifndef TINYSERVE_TESTS_SIMT_PROMPT_TESTING_H_
#define TINYSERVE_TESTS_SIMT_PROMPT_TESTING_H_

#include <cmath>
#include <vector>

#include "kernels/cuda/attention_prompt.h"
#include "tests/simt/decode_testing.h"

namespace tinyserve::cuda {

// Run i: the tokens first[i] .. lengths[i] - 1 of a batch's row i. The rows of q and out are those
// of the runs; raw tables begin at the window of a run's first token.
struct PromptRows {
  uint64_t width;
  uint32_t table_pages, raw_pages;
  std::vector<PromptRun> runs;
  std::vector<PromptBlock> blocks;
  std::vector<uint32_t> tables, raw_tables;
  std::vector<float> q, out;

  PromptRows(const DecodeBatch& batch, const std::vector<uint32_t>& first)
      : width(batch.Width()),
        table_pages(batch.PagesOf(batch.TokensMax())),
        raw_pages(table_pages),
        raw_tables(batch.rows() * raw_pages, 0) {
    uint32_t row = 0;
    for (uint32_t i = 0; i < batch.rows(); ++i) {
      const uint32_t length = batch.lengths()[i], raw_first = first[i] / kPromptTile * kPromptTile;
      runs.push_back({row, length - first[i], first[i], raw_first});
      row += length - first[i];
      tables.insert(tables.end(), batch.table(i), batch.table(i) + table_pages);
      const uint32_t begin = raw_first / batch.shape().page_tokens;
      std::copy(batch.table(i) + begin, batch.table(i) + batch.PagesOf(length),
                raw_tables.begin() + i * raw_pages);
      // A token's queries are a function of its sequence and position alone.
      for (uint32_t position = first[i]; position < length; ++position) {
        std::vector<float> queries = testing::RandomFloats(width, 1000 * i + position, 3.0f);
        const bool bf16 = batch.shape().type == KvType::kBF16;
        for (float& x : queries) x = Stored(bf16 ? KvType::kBF16 : KvType::kF16, x);
        q.insert(q.end(), queries.begin(), queries.end());
      }
    }
    out.assign(q.size(), NAN);
    blocks = PlanPromptBlocks(runs, batch.shape().group);
    blocks.push_back({kNoRun, 0});
  }
  PromptStep Step() {
    return {.scale = DecodeBatch::kScale,
            .table_pages = table_pages,
            .runs = ConstArrayOf(runs),
            .blocks = ConstArrayOf(blocks),
            .tables = ConstArrayOf(tables),
            .q = ConstArrayOf(q),
            .out = ArrayOf(out),
            .raw_table_pages = raw_pages,
            .raw_tables = ConstArrayOf(raw_tables)};
  }
  std::vector<float> Rows(uint32_t run, uint32_t first, uint32_t rows) const {
    const auto begin = out.begin() + static_cast<ptrdiff_t>((runs[run].first_row + first) * width);
    return std::vector<float>(begin, begin + static_cast<ptrdiff_t>(rows * width));
  }
  // The largest distance of a run's rows from `want`; NaN where one is no number.
  float Farthest(uint32_t run, const std::vector<float>& want) const {
    const std::vector<float> got = Rows(run, 0, runs[run].rows);
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
inline float PromptTolerance(KvType type) { return type == KvType::kF16 ? 0x1p-11f : 0x1p-8f; }

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_TESTS_SIMT_PROMPT_TESTING_H_
