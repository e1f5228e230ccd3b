#include "kernels/cuda/attention_prompt.h"
#include "kernels/cuda/coded_pages.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/planes_form.h"
#include "kernels/cuda/prompt_kernel.h"

namespace tinyserve::cuda {
namespace {

constexpr char kName[] = "attention_prompt of coded pages";
constexpr char kTypes[] = "planes, int8, k8v4, int4";

template <uint32_t kDim>
Status LaunchOf(const DecodeShape& shape, const PromptCall& call, Stream stream) {
  switch (shape.type) {
    case KvType::kPlanes:
      return LaunchPrompt<CodedTiles<PlanesForm<kDim>>>(call, stream);
    case KvType::kInt8:
      return LaunchPrompt<CodedTiles<RangesForm<8, 8, kDim>>>(call, stream);
    case KvType::kK8V4:
      return LaunchPrompt<CodedTiles<RangesForm<8, 4, kDim>>>(call, stream);
    case KvType::kInt4:
      return LaunchPrompt<CodedTiles<RangesForm<4, 4, kDim>>>(call, stream);
    default:
      return NoInstance(kName, shape, kTypes);
  }
}

}  // namespace

Status AttendPromptCoded(const DecodeShape& shape, const CodedPages& pages,
                         const DevicePages& raw_pages, const PromptStep& step, Stream stream) {
  if (shape.page_tokens != kCodedTokens || shape.group == 0 || shape.group > 8) {
    return NoInstance(kName, shape, kTypes);
  }
  if (step.blocks.count == 0) return Status();
  const PagesOfHead coded{.slabs = pages.slabs,
                          .v_offset = CodedPageSizeOf(shape.type, shape.head_dim).v_at,
                          .page_shift = Log2(kCodedTokens),
                          .head = 0,
                          .records = pages.records,
                          .spread_at = pages.spread_at};
  const PromptCall call{.step = step,
                        .pages = coded,
                        .raw = FloatPages(raw_pages, Log2(kCodedTokens)),
                        .kv_heads = shape.kv_heads,
                        .group = shape.group};
  switch (shape.head_dim) {
    case 64:
      return LaunchOf<64>(shape, call, stream);
    case 80:
      return LaunchOf<80>(shape, call, stream);
    case 96:
      return LaunchOf<96>(shape, call, stream);
    case 128:
      return LaunchOf<128>(shape, call, stream);
    default:
      return NoInstance(kName, shape, kTypes);
  }
}

}  // namespace tinyserve::cuda
