// A run of a model's sublayers: attention, with its norm and products, and the feed-forward part
// of each layer in turn.
#ifndef TINYSERVE_MODEL_SUBLAYER_RANGE_H_
#define TINYSERVE_MODEL_SUBLAYER_RANGE_H_

#include <cstdint>

namespace tinyserve {

constexpr uint32_t kSublayers = 2;  // of a layer

// Sublayers [begin, end): 2 l is the attention of layer l, 2 l + 1 its feed-forward part.
struct SublayerRange {
  uint32_t begin = 0, end = 0;

  uint32_t count() const { return end - begin; }
  bool empty() const { return begin == end; }
  uint32_t attentions() const { return (end + 1) / kSublayers - (begin + 1) / kSublayers; }
  uint32_t feed_forwards() const { return end / kSublayers - begin / kSublayers; }
};

}  // namespace tinyserve

#endif  // TINYSERVE_MODEL_SUBLAYER_RANGE_H_
