// Attention of prompt rows over paged keys and values, on tensor cores.
#ifndef TINYSERVE_KERNELS_CUDA_ATTENTION_PROMPT_H_
#define TINYSERVE_KERNELS_CUDA_ATTENTION_PROMPT_H_

#include <vector>

#include "kernels/cuda/attention_decode.h"
#include "kernels/cuda/paged.h"
#include "tinyserve/status.h"

namespace tinyserve::cuda {

// Tokens of a tile of keys; where pages are coded, of a window (kv/codec.h).
constexpr uint32_t kPromptTile = 64;

// Consecutive prompt tokens of one sequence in a step: a chunk. Its row i attends to the positions
// 0 .. first_position + i, whose keys and values lie in the pages already.
struct alignas(16) PromptRun {
  uint32_t first_row;  // of q and out
  uint32_t rows;
  uint32_t first_position;
  uint32_t raw_first;  // where pages are coded: the position that its raw table begins at
};

// A block's work: queries first .. first + 63 of a run's sequence, counted as position * group +
// head, of which those of the run's rows are computed. REQUIRES: `first` is a multiple of 64, so
// that a block's queries lie in one window.
struct PromptBlock {
  uint32_t run;  // kNoRun: none
  uint32_t first;
};
constexpr uint32_t kNoRun = 0xffffffffu;
constexpr uint32_t kPromptQueries = 64;  // of a block

// Arrays of the device, at addresses that stay.
struct PromptStep {
  float scale;  // logit = scale * q.k
  uint32_t table_pages;
  Array<const PromptRun> runs;
  Array<const PromptBlock> blocks;  // one for each block of a KV head
  Array<const uint32_t> tables;     // [runs][table_pages]
  Array<const float> q;             // [rows][kv_heads * group][head_dim], after RoPE
  Array<float> out;                 // the same
  // Where pages are coded: [runs][raw_table_pages] raw pages, from each run's raw_first on.
  uint32_t raw_table_pages = 0;
  Array<const uint32_t> raw_tables = {};
};

// The blocks of runs, those that read most first.
std::vector<PromptBlock> PlanPromptBlocks(const std::vector<PromptRun>& runs, uint32_t group);

// Pages of f16 and bf16; queries and weights are rounded to the same type, sums are f32. Key tiles
// lie at absolute positions, so a row's result depends neither on the chunk nor on the batch.
// Errors: kUnsupported.
Status AttendPrompt(const DecodeShape& shape, const DevicePages& pages, const PromptStep& step,
                    Stream stream);

// The same over coded pages, whose keys and values are decoded and rounded to f16. A row at
// position p reads the windows before its own coded, p's window up to p in raw pages of f16.
Status AttendPromptCoded(const DecodeShape& shape, const CodedPages& pages,
                         const DevicePages& raw_pages, const PromptStep& step, Stream stream);

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_ATTENTION_PROMPT_H_
