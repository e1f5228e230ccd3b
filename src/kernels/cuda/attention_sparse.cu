#include <string>

#include "kernels/cuda/attention_sparse.h"
#include "kernels/cuda/decode_split.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/page_select.h"
#include "kernels/cuda/simt.h"

namespace tinyserve::cuda {
namespace {

constexpr uint32_t kScoredAtOnce = 128;  // pages, by a block of the first of two launches

struct SparseCall {
  DecodeStep step;
  PagesOfHead pages;  // head: set by the block
  DeviceRecords records;
  Selection how;
  uint32_t kv_heads, group;
};

// What a block sees of its row and KV head.
struct SparseItem {
  RowOfStep at;
  uint32_t tokens;
  Budget budget;

  TS_DEVICE SparseItem(const SparseCall& call, uint32_t head, uint32_t row)
      : at{row, head, call.kv_heads, call.group},
        tokens(Global<const uint32_t>(call.step.tokens, "tokens").Get(row)),
        budget{} {
    const uint32_t shift = call.pages.page_shift;
    if (tokens != 0) budget = BudgetOf(call.how, at, (tokens + (1u << shift) - 1) >> shift);
  }
  // Tokens in the pages that are read: all that is left out are full pages.
  TS_DEVICE uint32_t Read(uint32_t page_shift) const {
    return tokens - ((budget.pages - budget.read) << page_shift);
  }
};

// Grid: KV heads, rows.
template <class Form, uint32_t kGroup>
TS_BOUNDED_KERNEL(kDecodeThreads)
FusedKernel(SparseCall call) {
  constexpr uint32_t kDim = Form::kDim;
  const SparseItem item(call, BlockX(), BlockY());
  if (item.tokens == 0) return;
  SharedArena arena;
  const SplitMemory<Form, kGroup> memory(arena);
  const Shared<uint32_t> keys = arena.Take<uint32_t>(call.how.pages_max, "keys");
  const Shared<uint32_t> list = arena.Take<uint32_t>(call.how.chosen.list_pages, "list");
  const Global<const uint32_t> table = TableOf(call.step, item.at);
  const Global<uint32_t> lists = ListOf(call.how.chosen, item.at);
  const Global<float> scores = HeadScoresOf(call.how.head_scores, item.at, call.how.pages_max);
  const uint32_t scored = item.budget.Scored();
  if (scored > 0) {
    LoadChoosingQuery<kDim, kGroup>(memory.q, call.how, call.step, item.at, item.budget.source);
    SyncBlock();
    ScorePages<kDim, kGroup>(call.how, call.records, item.at, memory.q, table, 0, scored, scores);
    SyncBlock();
  }
  if (scored == 0 || call.how.kept.rows.count != 0) {
    LoadQuery(memory, Global<const float>(call.step.q, "q"), item.at, call.step.scale);
  }
  ChoosePages<kGroup>(call.how, item.budget, item.at, scores, keys, [&](uint32_t at, uint32_t i) {
    const uint32_t page = table.Get(i);
    list.Set(at, page);
    lists.Set(at, page);
  });
  SyncBlock();
  const uint32_t tokens = item.Read(call.pages.page_shift);
  if (ThreadIndex() == 0) {
    Global<uint32_t>(call.how.chosen.tokens, "chosen tokens").Set(item.at.Item(), tokens);
  }
  PagesOfHead of_head = call.pages;
  of_head.head = item.at.head;
  const uint32_t width = item.at.group * (kDim + 2);
  const uint32_t splits = (tokens + kSplitTokens - 1) / kSplitTokens;
  const uint64_t splits_max =
      ((uint64_t{call.how.chosen.list_pages} << call.pages.page_shift) + kSplitTokens - 1) /
      kSplitTokens;
  const Global<float> partials =
      Global<float>(call.step.partials, "partials")
          .Part(item.at.Item() * splits_max * width, uint64_t{splits} * width);
  for (uint32_t first = 0, split = 0; first < tokens; first += kSplitTokens, ++split) {
    const uint32_t end = tokens - first < kSplitTokens ? tokens : first + kSplitTokens;
    AttendSplit(
        memory, of_head, [&](uint32_t i) { return list.Get(i); }, first, end, item.at.group,
        partials.Part(uint64_t{split} * width, width));
  }
  SyncBlock();
  MergeSplits<kDim>(
      partials, splits, item.at.group,
      Global<float>(call.step.out, "out")
          .Part(item.at.Item() * item.at.group * kDim, uint64_t{item.at.group} * kDim));
}

// Scores that no number is among, or else everything is to be read.
TS_DEVICE void TakeGivenScores(const SparseCall& call, SparseItem* item,
                               const Shared<uint32_t>& keys) {
  Budget& budget = item->budget;
  const bool failed =
      budget.chosen > 0 && TakeScores(call.how, item->at.Item(), budget.candidates, keys);
  if (failed) {
    budget.read = budget.pages;
    budget.candidates = budget.chosen = budget.taken = 0;
  }
  if (ThreadIndex() != 0) return;
  Global<uint32_t>(call.how.failed, "failed")
      .Set(uint64_t{item->at.row} * call.how.failed_stride + item->at.head, failed ? 1 : 0);
}

// The first of two launches. Grid: parts of kScoredAtOnce candidates, KV heads, rows.
template <uint32_t kDim, uint32_t kGroup>
TS_RESIDENT_KERNEL(kDecodeThreads, 5)
SelectKernel(SparseCall call) {
  SparseItem item(call, BlockY(), BlockZ());
  const bool given = call.how.page_scores.count != 0;
  const uint32_t scored = given ? 0 : item.budget.Scored();
  const uint32_t parts = scored == 0 ? 1 : (scored + kScoredAtOnce - 1) / kScoredAtOnce;
  const uint32_t part = BlockX(), first = part * kScoredAtOnce;
  if (part >= parts) return;
  SharedArena arena;
  const Shared<float> q = arena.Take<float>(kGroup * kDim, "q");
  const Shared<uint32_t> keys = arena.Take<uint32_t>(call.how.pages_max, "keys");
  const Global<const uint32_t> table = TableOf(call.step, item.at);
  const Global<float> scores = HeadScoresOf(call.how.head_scores, item.at, call.how.pages_max);
  if (scored > 0) {
    LoadChoosingQuery<kDim, kGroup>(q, call.how, call.step, item.at, item.budget.source);
    SyncBlock();
    ScorePages<kDim, kGroup>(call.how, call.records, item.at, q, table, first,
                             scored - first < kScoredAtOnce ? scored : first + kScoredAtOnce,
                             scores);
  }
  if (!ArrivesLast(Global<uint32_t>(call.step.arrived, "arrived"), item.at.Item(), parts)) return;
  if (given && item.tokens != 0) TakeGivenScores(call, &item, keys);
  if (ThreadIndex() == 0) {
    Global<uint32_t>(call.how.chosen.tokens, "chosen tokens")
        .Set(item.at.Item(), item.tokens == 0 ? 0 : item.Read(call.pages.page_shift));
  }
  if (item.tokens == 0) return;
  const Global<uint32_t> lists = ListOf(call.how.chosen, item.at);
  ChoosePages<kGroup>(call.how, item.budget, item.at, scores, keys,
                      [&](uint32_t at, uint32_t i) { lists.Set(at, table.Get(i)); });
}

constexpr uint32_t RoundUp16(uint64_t bytes) {
  return static_cast<uint32_t>((bytes + 15) / 16 * 16);
}

struct FusedLaunch {
  const SparseCall& call;
  Stream stream;

  template <class T, uint32_t kDim, uint32_t kGroup>
  Status operator()() const {
    const uint64_t shared = TileShape<FloatForm<T, kDim>, kGroup>::kSharedBytes +
                            uint64_t{RoundUp16(4ull * call.how.pages_max)} +
                            RoundUp16(4ull * call.how.chosen.list_pages);
    if (shared > kSharedBytesMax) {
      return Status(Code::kUnsupported, "attention_sparse: " + std::to_string(call.how.pages_max) +
                                            " pages of a row need " + std::to_string(shared) +
                                            " bytes of shared memory, at most " +
                                            std::to_string(kSharedBytesMax) +
                                            ": in two launches it can be done");
    }
    const LaunchConfig config{.kernel = "attention_sparse",
                              .grid = {call.kv_heads, call.step.rows},
                              .threads = kDecodeThreads,
                              .shared_bytes = static_cast<uint32_t>(shared),
                              .stream = stream};
    return Launch(config, FusedKernel<FloatForm<T, kDim>, kGroup>, call);
  }
};

struct SelectLaunch {
  const SparseCall& call;
  Stream stream;

  template <class T, uint32_t kDim, uint32_t kGroup>
  Status operator()() const {
    const uint32_t parts = (call.how.pages_max + kScoredAtOnce - 1) / kScoredAtOnce;
    const LaunchConfig config{
        .kernel = "page_select",
        .grid = {parts == 0 ? 1 : parts, call.kv_heads, call.step.rows},
        .threads = kDecodeThreads,
        .shared_bytes = kGroup * kDim * 4 + RoundUp16(4ull * call.how.pages_max),
        .stream = stream};
    return Launch(config, SelectKernel<kDim, kGroup>, call);
  }
};

SparseCall CallOf(const DecodeShape& shape, const DevicePages& pages, const DeviceRecords& records,
                  const DecodeStep& step, const Selection& selection) {
  return {.step = step,
          .pages = FloatPages(pages, Log2(shape.page_tokens)),
          .records = records,
          .how = selection,
          .kv_heads = shape.kv_heads,
          .group = shape.group};
}

Status CheckSelection(const DecodeShape& shape, const DeviceRecords& records, const Selection& s) {
  // Ranges of keys are boxes, and nothing else.
  const bool known =
      records.range_at == kNoRange || (IsRanged(shape.type) && s.kind == ScoreKind::kBox);
  if (known && (IsCoded(shape.type) || s.recent >= 1) && s.pages_max < 65536) return Status();
  return Status(Code::kUnsupported,
                "attention_sparse: " + std::to_string(s.recent) + " newest pages and " +
                    std::to_string(s.pages_max) +
                    " pages of a row: at least 1 of floats, and fewer than 65536; ranges of coded "
                    "pages are boxes");
}

Status LaunchSelect(const DecodeShape& shape, const SparseCall& call, Stream stream) {
  // Scores know nothing of what pages hold: one type stands for all.
  DecodeShape any = shape;
  any.type = KvType::kF16;
  return ForShape("page_select", any, SelectLaunch{call, stream});
}

}  // namespace

Status AttendFused(const DecodeShape& shape, const DevicePages& pages, const DeviceRecords& records,
                   const DecodeStep& step, const Selection& selection, Stream stream) {
  TS_RETURN_IF_ERROR(CheckSelection(shape, records, selection));
  if (selection.page_scores.count != 0)
    return Status(Code::kUnsupported, "attention_sparse: scores that are given take two launches");
  const SparseCall call = CallOf(shape, pages, records, step, selection);
  return ForShape("attention_sparse", shape, FusedLaunch{call, stream});
}

Status AttendInTwo(const DecodeShape& shape, const DevicePages& pages, const DeviceRecords& records,
                   const DecodeStep& step, const Selection& selection, Stream stream) {
  TS_RETURN_IF_ERROR(CheckSelection(shape, records, selection));
  TS_RETURN_IF_ERROR(LaunchSelect(shape, CallOf(shape, pages, records, step, selection), stream));
  const uint64_t list_tokens = uint64_t{selection.chosen.list_pages} * shape.page_tokens;
  return AttendChosen(shape, pages, step, selection.chosen, static_cast<uint32_t>(list_tokens),
                      stream);
}

Status AttendCodedSparse(const DecodeShape& shape, const CodedPages& pages,
                         const DeviceRecords& records, const DecodeStep& step,
                         const OpenTokens& open, const Selection& selection, Stream stream) {
  TS_RETURN_IF_ERROR(CheckSelection(shape, records, selection));
  const SparseCall call = CallOf(shape, {pages.slabs, 0}, records, step, selection);
  TS_RETURN_IF_ERROR(LaunchSelect(shape, call, stream));
  const uint64_t list_tokens = uint64_t{selection.chosen.list_pages} * shape.page_tokens;
  return AttendCoded(shape, pages, step, open, &selection.chosen,
                     static_cast<uint32_t>(list_tokens), stream);
}

}  // namespace tinyserve::cuda
