#include <algorithm>

#include "kernels/cuda/attention_prompt.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/prompt_kernel.h"

namespace tinyserve::cuda {
namespace {

constexpr char kName[] = "attention_prompt";
constexpr char kTypes[] = "f16, bf16";

template <class T>
Status LaunchFloats(const DecodeShape& shape, const PromptCall& call, Stream stream) {
  switch (shape.head_dim) {
    case 64:
      return LaunchPrompt<FloatTiles<T, 64>>(call, stream);
    case 80:
      return LaunchPrompt<FloatTiles<T, 80>>(call, stream);
    case 96:
      return LaunchPrompt<FloatTiles<T, 96>>(call, stream);
    case 128:
      return LaunchPrompt<FloatTiles<T, 128>>(call, stream);
    default:
      return NoInstance(kName, shape, kTypes);
  }
}

}  // namespace

std::vector<PromptBlock> PlanPromptBlocks(const std::vector<PromptRun>& runs, uint32_t group) {
  std::vector<PromptBlock> blocks;
  for (uint32_t run = 0; run < runs.size(); ++run) {
    const uint32_t begin = runs[run].first_position * group, end = begin + runs[run].rows * group;
    for (uint32_t first = begin / kPromptQueries * kPromptQueries; begin < end && first < end;
         first += kPromptQueries) {
      blocks.push_back({run, first});
    }
  }
  std::stable_sort(blocks.begin(), blocks.end(),
                   [](const auto& a, const auto& b) { return a.first > b.first; });
  return blocks;
}

Status AttendPrompt(const DecodeShape& shape, const DevicePages& pages, const PromptStep& step,
                    Stream stream) {
  if (!IsPageTokens(shape.page_tokens) || shape.group == 0 || shape.group > 8) {
    return NoInstance(kName, shape, kTypes);
  }
  if (step.blocks.count == 0) return Status();
  const PromptCall call{.step = step,
                        .pages = FloatPages(pages, Log2(shape.page_tokens)),
                        .raw = {},
                        .kv_heads = shape.kv_heads,
                        .group = shape.group};
  switch (shape.type) {
    case KvType::kF16:
      return LaunchFloats<F16>(shape, call, stream);
    case KvType::kBF16:
      return LaunchFloats<BF16>(shape, call, stream);
    default:
      return NoInstance(kName, shape, kTypes);
  }
}

}  // namespace tinyserve::cuda
