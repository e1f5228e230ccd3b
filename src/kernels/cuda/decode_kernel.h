// For kernels: the decode kernel over lists of pages, of any form.
#ifndef TINYSERVE_KERNELS_CUDA_DECODE_KERNEL_H_
#define TINYSERVE_KERNELS_CUDA_DECODE_KERNEL_H_

#include "kernels/cuda/decode_split.h"
#include "kernels/cuda/simt.h"

namespace tinyserve::cuda {

struct DecodeCall {
  DecodeStep step;
  PagesOfHead pages;  // head: set by the block
  uint32_t kv_heads, group;
  uint32_t blocks_max;  // splits that have a block
  uint32_t splits_max;  // that partial results have room for, of a (row, KV head)
  // Lists of all pages are a row's, and its tokens too; of chosen ones, a (row, KV head)'s.
  bool by_head;
  uint32_t list_pages;
  Array<const uint32_t> lists, tokens;
  Array<const uint32_t> table_of;  // [rows] a row's place in lists; count 0: as that of its tokens
  // Tokens in pages of another form, of another launch: their splits come first, or last. Empty:
  // there are none.
  bool others_first, others_by_head;
  Array<const uint32_t> others;
};

// Grid: splits, KV heads, rows. The last block of an item in all launches merges.
template <class Form, uint32_t kGroup>
TS_BOUNDED_KERNEL(kDecodeThreads)
DecodeKernel(DecodeCall call) {
  const RowOfStep at{BlockZ(), BlockY(), call.kv_heads, call.group};
  constexpr uint32_t kDim = Form::kDim;
  const auto splits_of = [](uint32_t tokens) { return (tokens + kSplitTokens - 1) / kSplitTokens; };
  const uint64_t index_of_row = call.by_head ? at.Item() : at.row;
  const uint32_t tokens = Global<const uint32_t>(call.tokens, "tokens").Get(index_of_row);
  const uint32_t split = BlockX();
  if (split >= splits_of(tokens)) return;
  const uint32_t others = call.others.count == 0
                              ? 0
                              : splits_of(Global<const uint32_t>(call.others, "other tokens")
                                              .Get(call.others_by_head ? at.Item() : at.row));
  SharedArena arena;
  const SplitMemory<Form, kGroup> memory(arena);
  LoadQuery(memory, Global<const float>(call.step.q, "q"), at, call.step.scale);
  const uint64_t list_index = PlaceOf(call.table_of, at.row, index_of_row);
  const Global<const uint32_t> pages = Global<const uint32_t>(call.lists, "lists")
                                           .Part(list_index * call.list_pages, call.list_pages);
  PagesOfHead of_head = call.pages;
  of_head.head = at.head;
  const uint32_t width = at.group * (kDim + 2), first = split * kSplitTokens;
  const uint32_t end = tokens - first < kSplitTokens ? tokens : first + kSplitTokens;
  const Global<float> partials =
      Global<float>(call.step.partials, "partials")
          .Part(at.Item() * call.splits_max * width, uint64_t{call.splits_max} * width);
  const uint32_t index = split + (call.others_first ? others : 0);
  AttendSplit(
      memory, of_head, [&](uint32_t i) { return pages.Get(i); }, first, end, at.group,
      partials.Part(uint64_t{index} * width, width));
  const uint32_t splits = splits_of(tokens) + others;
  if (!ArrivesLast(Global<uint32_t>(call.step.arrived, "arrived"), at.Item(), splits)) return;
  MergeSplits<kDim>(partials, splits, at.group,
                    Global<float>(call.step.out, "out")
                        .Part(at.Item() * at.group * kDim, uint64_t{at.group} * kDim));
}

template <class Form, uint32_t kGroup>
Status LaunchDecode(const DecodeCall& call, Stream stream) {
  const LaunchConfig config{.kernel = "attention_decode",
                            .grid = {call.blocks_max, call.kv_heads, call.step.rows},
                            .threads = kDecodeThreads,
                            .shared_bytes = TileShape<Form, kGroup>::kSharedBytes,
                            .stream = stream};
  return Launch(config, DecodeKernel<Form, kGroup>, call);
}

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_DECODE_KERNEL_H_
