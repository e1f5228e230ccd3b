// Page selection by plain loops: records of pages, and their scores.
//
// A record is the same on every target, bit for bit, for the same stored keys without NaN (of coded
// pages: for keys that are decoded to the same floats). Means
// and variances are computed in f32 in this order: a channel's tokens t are added up by t % 16,
// those sixteen sums i by i % 8, and the eight as ((0+1) + (2+3)) + ((4+5) + (6+7)); then the same
// again with the squared distances from the (unrounded) mean. Scores are within rounding of one
// another.
//
// A record is finite whatever the keys: values beyond the largest f16 (which only f32 and bf16
// pages can hold) count as that, in the box too, whose bound ends there.
#ifndef TINYSERVE_KERNELS_REF_SELECTION_H_
#define TINYSERVE_KERNELS_REF_SELECTION_H_

#include "kernels/kernels.h"

namespace tinyserve::ref {

// The entries of the kernel table (kernels/kernels.h).
void SummarisePage(const SummariseArgs* args);
void ScorePages(const ScoreArgs* args);

}  // namespace tinyserve::ref

#endif  // TINYSERVE_KERNELS_REF_SELECTION_H_
