// The best of a list of scores.
#ifndef TINYSERVE_SELECT_TOP_PAGES_H_
#define TINYSERVE_SELECT_TOP_PAGES_H_

#include <cstdint>
#include <span>

namespace tinyserve {

// Writes the indices of the k largest scores, ascending, to out [k]. Equal scores: the lowest
// index first. NaN ranks below everything. REQUIRES: k <= scores.size().
void TopPages(std::span<const float> scores, uint32_t k, uint32_t* out);

// How many of the largest shares have at least the share `mass` of the sum of all: the fewest that
// do. Shares are rounded to multiples of 2^-32, so that their sums are exact in any order; NaN and
// what is below that count as 0, more than 2^20 as that.
uint32_t PagesOfMass(std::span<const float> shares, double mass);

}  // namespace tinyserve

#endif  // TINYSERVE_SELECT_TOP_PAGES_H_
