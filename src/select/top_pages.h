// The best of a list of scores.
#ifndef TINYSERVE_SELECT_TOP_PAGES_H_
#define TINYSERVE_SELECT_TOP_PAGES_H_

#include <cstdint>
#include <span>

namespace tinyserve {

// Writes the indices of the k largest scores, ascending, to out [k]. Equal scores: the lowest
// index first. NaN ranks below everything. REQUIRES: k <= scores.size().
void TopPages(std::span<const float> scores, uint32_t k, uint32_t* out);

}  // namespace tinyserve

#endif  // TINYSERVE_SELECT_TOP_PAGES_H_
