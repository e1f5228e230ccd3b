// Decode attention that reads the pages that its query needs: scores by the pages' records, a
// radix select, attention over the chosen pages; nothing of it goes back to the host.
//
// Two forms with the same result, bit for bit: one launch, a block for each (row, KV head), where
// these fill the device; else two, of which the first scores in parts, and the second attends in
// splits.
#ifndef TINYSERVE_KERNELS_CUDA_ATTENTION_SPARSE_H_
#define TINYSERVE_KERNELS_CUDA_ATTENTION_SPARSE_H_

#include "kernels/cuda/attention_decode.h"
#include "kernels/cuda/paged.h"
#include "kernels/kernels.h"
#include "tinyserve/status.h"

namespace tinyserve::cuda {

constexpr uint32_t kNoRange = 0xffffffffu;

// Records of a layer's full pages (page/page.h, MetaLayout): box and moments; or the ranges of
// coded pages (range_at), which are boxes then.
struct DeviceRecords {
  Slabs<const uint8_t> slabs;
  uint32_t channels, box_at, moments_at;
  uint32_t range_at = kNoRange;
  // Boxes of a page, so many bytes apart: those of its sub-pages, of which the best counts.
  uint32_t boxes = 1, box_bytes = 0;
};

constexpr uint32_t kNoRow = 0xffffffffu, kNoPlace = 0xffffffffu;

// A choice that stays in force for some positions, as it counts for a row: `chosen` pages of those
// before page `end` of its table, of which it reads the first `read`, and newer candidates as far
// as its budget goes.
struct alignas(16) RowChoice {
  uint32_t source;  // row of KeptChoices::q whose query chooses; kNoRow: the choice is kept
  uint32_t end, chosen, read;
};
// Where the choice is kept, and where it is to be; kNoPlace: nowhere. What a launch reads, it does
// not write.
struct alignas(8) ChoicePlaces {
  uint32_t from, to;
};
struct KeptChoices {
  Array<const RowChoice> rows;       // [rows]; count 0: each row chooses for itself
  Array<const ChoicePlaces> places;  // [rows]
  Array<const float> q;              // of all rows of the step, as DecodeStep::q
  uint32_t list_pages;
  // [places][kv_heads][list_pages] pages as their numbers in the sequence's table, in order.
  Array<uint16_t> lists;
};

struct Selection {
  ScoreKind kind;  // kBox: of the record's box, or range
  ScorePool pool;
  float alpha;            // of kMoments
  uint32_t sink, recent;  // pages at the ends that are always read; recent is at least 1
                          // where the last page may not be full: of floats
  uint32_t pages_max;     // of a row, less than 65536
  // [rows] pages that a row reads, the forced ones too; if it has no more, all of them.
  Array<const uint32_t> budgets;
  // [rows] newer pages that are read beside these: they count as newest ones, so that `recent` is
  // less by so many; count 0: none.
  Array<const uint32_t> newer;
  Array<float> head_scores;  // [rows][kv_heads][group][pages_max]: scratch
  ChosenPages chosen;        // written; list_pages: the largest budget, or more
  KeptChoices kept = {};
  // [rows][kv_heads][pages_max] scores that others have made; count 0: records are scored as above.
  // Two launches alone. Where one of a row's is no number it reads all pages at that KV head, so
  // that list_pages must be no less than pages_max.
  Array<const float> page_scores = {};
  // Written with page_scores: 1 where that was so, at row * failed_stride + head; else 0.
  Array<uint32_t> failed = {};
  uint32_t failed_stride = 0;
};

// Errors: kUnsupported, also where the lists do not fit in shared memory (the one launch alone).
Status AttendFused(const DecodeShape& shape, const DevicePages& pages, const DeviceRecords& records,
                   const DecodeStep& step, const Selection& selection, Stream stream);
Status AttendInTwo(const DecodeShape& shape, const DevicePages& pages, const DeviceRecords& records,
                   const DecodeStep& step, const Selection& selection, Stream stream);
// Over coded pages, of which pages are chosen, and the open ones after them, which are all read
// (AttendCoded). Budgets count coded pages. Three launches.
Status AttendCodedSparse(const DecodeShape& shape, const CodedPages& pages,
                         const DeviceRecords& records, const DecodeStep& step,
                         const OpenTokens& open, const Selection& selection, Stream stream);

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_ATTENTION_SPARSE_H_
