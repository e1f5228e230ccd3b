// A run of a model's layers.
#ifndef TINYSERVE_MODEL_LAYER_RANGE_H_
#define TINYSERVE_MODEL_LAYER_RANGE_H_

#include <cstdint>

namespace tinyserve {

// Layers [begin, end).
struct LayerRange {
  uint32_t begin = 0, end = 0;

  uint32_t count() const { return end - begin; }
  bool empty() const { return begin == end; }
};

}  // namespace tinyserve

#endif  // TINYSERVE_MODEL_LAYER_RANGE_H_
