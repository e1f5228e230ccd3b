// Sizes of a page as the kernels lay it out.
#ifndef TINYSERVE_KV_PAGE_GEOMETRY_H_
#define TINYSERVE_KV_PAGE_GEOMETRY_H_

#include <cstdint>

#include "base/check.h"
#include "kernels/kernels.h"
#include "page/page.h"

namespace tinyserve {

struct PageGeometry {
  uint32_t page_bytes, v_offset;
};

inline PageGeometry GeometryOf(const KvShape& shape, const Kernels* kernels) {
  uint32_t k = 0, v = 0;
  kernels->page_bytes(&shape, &k, &v);
  TS_CHECK(k % 64 == 0 && v % 64 == 0 && k > 0 && v > 0);
  return {k + v, k};
}

}  // namespace tinyserve

#endif  // TINYSERVE_KV_PAGE_GEOMETRY_H_
