#include "kernels/cuda/attention_coded.h"
#include "kernels/cuda/attention_decode.h"
#include "kernels/cuda/coded_pages.h"
#include "kernels/cuda/decode_kernel.h"
#include "kernels/cuda/dispatch.h"

namespace tinyserve::cuda {
namespace {

struct FloatLaunch {
  const DecodeCall& call;
  Stream stream;

  template <class T, uint32_t kDim, uint32_t kGroup>
  Status operator()() const {
    return LaunchDecode<FloatForm<T, kDim>, kGroup>(call, stream);
  }
};

uint32_t SplitsOf(uint64_t tokens) {
  return static_cast<uint32_t>((tokens + kSplitTokens - 1) / kSplitTokens);
}

DecodeCall CallOf(const DecodeShape& shape, const DevicePages& pages, const DecodeStep& step,
                  uint32_t tokens_max) {
  DecodeCall call{};
  call.step = step;
  call.pages = FloatPages(pages, Log2(shape.page_tokens));
  call.kv_heads = shape.kv_heads;
  call.group = shape.group;
  call.blocks_max = call.splits_max = SplitsOf(tokens_max);
  call.list_pages = step.table_pages;
  call.lists = step.tables;
  call.tokens = step.tokens;
  call.table_of = step.table_of;
  return call;
}

void ReadChosen(const ChosenPages& chosen, DecodeCall* call) {
  call->by_head = true;
  call->table_of = {};
  call->list_pages = chosen.list_pages;
  call->lists = {chosen.lists.data, chosen.lists.count};
  call->tokens = {chosen.tokens.data, chosen.tokens.count};
}

}  // namespace

Status AttendDense(const DecodeShape& shape, const DevicePages& pages, const DecodeStep& step,
                   uint32_t tokens_max, Stream stream) {
  const DecodeCall call = CallOf(shape, pages, step, tokens_max);
  return ForShape("attention_decode", shape, FloatLaunch{call, stream});
}

Status AttendChosen(const DecodeShape& shape, const DevicePages& pages, const DecodeStep& step,
                    const ChosenPages& chosen, uint32_t tokens_max, Stream stream) {
  DecodeCall call = CallOf(shape, pages, step, tokens_max);
  ReadChosen(chosen, &call);
  return ForShape("attention_decode", shape, FloatLaunch{call, stream});
}

Status AttendCoded(const DecodeShape& shape, const CodedPages& pages, const DecodeStep& step,
                   const OpenTokens& open, const ChosenPages* chosen, uint32_t tokens_max,
                   Stream stream) {
  const uint32_t v_at = CodedPageSizeOf(shape.type, shape.head_dim).v_at;
  DecodeCall coded = CallOf(shape, {pages.slabs, v_at}, step, tokens_max);
  coded.pages.records = pages.records;
  coded.pages.spread_at = pages.spread_at;
  if (chosen != nullptr) ReadChosen(*chosen, &coded);
  const uint32_t open_splits = SplitsOf(open.tokens_max);
  coded.splits_max = coded.blocks_max + open_splits;
  coded.others = open.tokens;

  TS_RETURN_IF_ERROR(LaunchCoded(shape, coded, stream));
  return AttendOpen(shape, step, open, {coded.by_head, coded.tokens, coded.splits_max}, stream);
}

Status AttendOpen(const DecodeShape& shape, const DecodeStep& step, const OpenTokens& open,
                  const OtherTokens& others, Stream stream) {
  DecodeShape open_shape = shape;
  open_shape.type = open.type;
  DecodeCall raw = CallOf(open_shape, open.pages, step, open.tokens_max);
  raw.splits_max = others.splits_max;
  raw.list_pages = open.table_pages;
  raw.lists = open.tables;
  raw.table_of = {};
  raw.tokens = open.tokens;
  raw.others_first = true;
  raw.others_by_head = others.by_head;
  raw.others = others.tokens;
  return ForShape("attention_decode", open_shape, FloatLaunch{raw, stream});
}

}  // namespace tinyserve::cuda
