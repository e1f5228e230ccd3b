// Attention of prompt rows over paged keys and values, on tensor cores.
#ifndef TINYSERVE_KERNELS_CUDA_ATTENTION_PROMPT_H_
#define TINYSERVE_KERNELS_CUDA_ATTENTION_PROMPT_H_

#include <vector>

#include "kernels/cuda/attention_decode.h"
#include "kernels/cuda/paged.h"
#include "tinyserve/status.h"

namespace tinyserve::cuda {

// Consecutive prompt tokens of one sequence in a step: a chunk. Its row i attends to the positions
// 0 .. first_position + i, whose keys and values lie in the pages already.
struct PromptRun {
  uint32_t first_row;  // of q and out
  uint32_t rows;
  uint32_t first_position;
};

// A block's work: queries first .. first + 63 of a run, counted as token * group + head.
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
};

// The blocks of runs, those that read most first.
std::vector<PromptBlock> PlanPromptBlocks(const std::vector<PromptRun>& runs, uint32_t group);

// Pages of f16 and bf16; queries and weights are rounded to the same type, sums are f32. Key tiles
// lie at absolute positions, so a row's result depends neither on the chunk nor on the batch.
// Errors: kUnsupported.
Status AttendPrompt(const DecodeShape& shape, const DevicePages& pages, const PromptStep& step,
                    Stream stream);

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_ATTENTION_PROMPT_H_
