// Decode attention that reads less and less of what matters less, over pages in planes: what
// CascadeArgs of kernels/kernels.h says, for the rows of a step.
#ifndef TINYSERVE_KERNELS_CUDA_ATTENTION_CASCADE_H_
#define TINYSERVE_KERNELS_CUDA_ATTENTION_CASCADE_H_

#include "kernels/cuda/attention_decode.h"
#include "kernels/cuda/paged.h"
#include "tinyserve/status.h"

namespace tinyserve::cuda {

// How a token of a candidate page is read.
enum class TokenRead : uint8_t {
  kMean,   // an approximate logit, and the mean value of its page
  kValue,  // its value too
  kFull,   // an exact logit and its value
};

struct Cascade {
  uint32_t sink, recent;     // pages at the ends that are read in full
  uint32_t widen;            // all three budgets count so many times
  float alpha, least_share;  // CascadeArgs
  uint32_t pages_max;        // in planes, of a row, less than 65536
  // [rows] budgets: pages, then tokens; the forced ones count. What a row does not have, it does
  // not read.
  Array<const uint32_t> candidates, full_tokens, value_tokens;
  // [rows] raw pages: they count as newest ones, so that `recent` is less by so many.
  Array<const uint32_t> newer;
  Array<float> head_scores;  // [rows][kv_heads][group][pages_max]: scratch
  ChosenPages chosen;        // written: the candidates; list_pages: the largest budget, or more
  // [rows][kv_heads] of CascadeFloats() and of list_pages * 16. Written: reads of the candidates'
  // tokens, in the order of the lists, as TokenRead.
  Array<float> logits;
  Array<uint8_t> reads;
};

// Logits [group][list_pages * 16], then what pairs of pages have of the softmax.
constexpr uint64_t CascadeFloats(uint32_t group, uint32_t list_pages) {
  return group * (uint64_t{list_pages} * 16 + (uint64_t{list_pages} + 1) / 2 * 2);
}

// Whether rows may have so many pages in planes. Errors: kUnsupported: other shapes; keys that do
// not fit in shared memory, 4 bytes a page beside the queries: from some 24,000 pages on.
Status CheckCascade(const DecodeShape& shape, uint32_t pages_max);
// Four launches; tables, step.tokens, step.partials and open as of AttendCoded. A result depends
// neither on the batch nor on the order of blocks. Errors: those of CheckCascade.
Status AttendCascade(const DecodeShape& shape, const CodedPages& pages, const DecodeStep& step,
                     const OpenTokens& open, const Cascade& cascade, Stream stream);

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_ATTENTION_CASCADE_H_
