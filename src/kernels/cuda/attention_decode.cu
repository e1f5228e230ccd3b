#include "kernels/cuda/attention_decode.h"
#include "kernels/cuda/decode_split.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/simt.h"

namespace tinyserve::cuda {
namespace {

struct DecodeCall {
  DecodeStep step;
  PagesOfHead pages;  // head: set by the block
  uint32_t kv_heads, group, splits_max;
  // Lists of all pages are a row's, and its tokens too; of chosen ones, a (row, KV head)'s.
  bool by_head;
  uint32_t list_pages;
  Array<const uint32_t> lists, tokens;
};

// Grid: splits, KV heads, rows.
template <class T, uint32_t kDim, uint32_t kGroup>
TS_BOUNDED_KERNEL(kDecodeThreads)
DecodeKernel(DecodeCall call) {
  const RowOfStep at{BlockZ(), BlockY(), call.kv_heads, call.group};
  const Global<const uint32_t> all_tokens(call.tokens, "tokens");
  const uint64_t list_index = call.by_head ? at.Item() : at.row;
  const uint32_t tokens = all_tokens.Get(list_index);
  const uint32_t splits = (tokens + kSplitTokens - 1) / kSplitTokens, split = BlockX();
  if (split >= splits) return;
  SharedArena arena;
  const SplitMemory<T, kDim, kGroup> memory(arena);
  LoadQuery(memory, Global<const float>(call.step.q, "q"), at, call.step.scale);
  const Global<const uint32_t> pages = Global<const uint32_t>(call.lists, "lists")
                                           .Part(list_index * call.list_pages, call.list_pages);
  PagesOfHead of_head = call.pages;
  of_head.head = at.head;
  const uint32_t width = at.group * (kDim + 2), first = split * kSplitTokens;
  const uint32_t end = tokens - first < kSplitTokens ? tokens : first + kSplitTokens;
  const Global<float> partials =
      Global<float>(call.step.partials, "partials")
          .Part(at.Item() * call.splits_max * width, uint64_t{call.splits_max} * width);
  AttendSplit(
      memory, of_head, [&](uint32_t i) { return pages.Get(i); }, first, end, at.group,
      partials.Part(uint64_t{split} * width, width));
  if (!ArrivesLast(Global<uint32_t>(call.step.arrived, "arrived"), at.Item(), splits)) return;
  MergeSplits<kDim>(partials, splits, at.group,
                    Global<float>(call.step.out, "out")
                        .Part(at.Item() * at.group * kDim, uint64_t{at.group} * kDim));
}

struct DecodeLaunch {
  const DecodeCall& call;
  Stream stream;

  template <class T, uint32_t kDim, uint32_t kGroup>
  Status operator()() const {
    const LaunchConfig config{.kernel = "attention_decode",
                              .grid = {call.splits_max, call.kv_heads, call.step.rows},
                              .threads = kDecodeThreads,
                              .shared_bytes = TileShape<T, kDim, kGroup>::kSharedBytes,
                              .stream = stream};
    return Launch(config, DecodeKernel<T, kDim, kGroup>, call);
  }
};

DecodeCall CallOf(const DecodeShape& shape, const DevicePages& pages, const DecodeStep& step,
                  uint32_t tokens_max) {
  DecodeCall call{};
  call.step = step;
  call.pages = {pages.slabs, pages.v_offset, Log2(shape.page_tokens), 0};
  call.kv_heads = shape.kv_heads;
  call.group = shape.group;
  call.splits_max = (tokens_max + kSplitTokens - 1) / kSplitTokens;
  return call;
}

}  // namespace

Status AttendDense(const DecodeShape& shape, const DevicePages& pages, const DecodeStep& step,
                   uint32_t tokens_max, Stream stream) {
  DecodeCall call = CallOf(shape, pages, step, tokens_max);
  call.by_head = false;
  call.list_pages = step.table_pages;
  call.lists = step.tables;
  call.tokens = step.tokens;
  return ForShape("attention_decode", shape, DecodeLaunch{call, stream});
}

Status AttendChosen(const DecodeShape& shape, const DevicePages& pages, const DecodeStep& step,
                    const ChosenPages& chosen, uint32_t tokens_max, Stream stream) {
  DecodeCall call = CallOf(shape, pages, step, tokens_max);
  call.by_head = true;
  call.list_pages = chosen.list_pages;
  call.lists = {chosen.lists.data, chosen.lists.count};
  call.tokens = {chosen.tokens.data, chosen.tokens.count};
  return ForShape("attention_decode", shape, DecodeLaunch{call, stream});
}

}  // namespace tinyserve::cuda
