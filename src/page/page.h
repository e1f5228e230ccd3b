// Plain-data contracts of the paged KV cache, shared by kernels, cache and selectors.
//
// Everything here is POD and has internal linkage: these headers are also included by units
// compiled with a SIMD target's flags, which must not share inline code with the rest of the
// program.
#ifndef TINYSERVE_PAGE_PAGE_H_
#define TINYSERVE_PAGE_PAGE_H_

#include <stdint.h>

namespace tinyserve {

// How keys and values are stored: open (hot) storage takes the floats; a sealed page may be coded.
enum class KvType : uint8_t {
  kF32,
  kF16,
  kBF16,
  // Sealed pages of 16 tokens only:
  kPlanes,  // 8-bit codes, those of keys in two planes (page/planes.h)
  kInt8,    // codes within the range of their page and channel, or token (page/ranges.h), of 8 bits
  kK8V4,    // the same, keys in 8 bits and values in 4
  kInt4,    // the same, both in 4 bits
};

constexpr bool IsCoded(KvType type) { return type >= KvType::kPlanes; }
// Coded within ranges.
static constexpr bool IsRanged(KvType type) { return type >= KvType::kInt8; }

enum class MemorySpace : uint8_t { kHost, kDevice };

// Shape of one layer group's cache.
struct KvShape {
  KvType type;
  uint32_t kv_heads;
  uint32_t head_dim;     // channels of one head
  uint32_t page_tokens;  // tokens of a page: 4, 8, 16, 32 or 64
};

// Where the pages of one (layer, KV head) lie. Pages are grouped in extents so that pages of a
// sequence that were allocated together stream, while memory is still touched a few hundred tokens
// at a time:
//
//   extent 0                                   extent 1
//   | ... this slab's 2^extent_shift pages ... | ... |
//         ^ base                                     ^ base + extent_stride
//
// A page holds its K part, then (at v_offset) its V part; their inner layout is private to the
// kernel table that writes and reads them. Page indices are the same for every slab of a layer
// group.
struct KvSlab {
  uint8_t* base;
  uint64_t extent_stride;  // bytes
  uint32_t extent_shift;   // log2(pages of an extent)
  uint32_t page_bytes;     // K and V together, a multiple of 64
  uint32_t v_offset;       // bytes from the page's start to its V part
};

static inline uint8_t* PageAt(const KvSlab& slab, uint32_t page) {
  return slab.base + (uint64_t)(page >> slab.extent_shift) * slab.extent_stride +
         (uint64_t)(page & ((1u << slab.extent_shift) - 1)) * slab.page_bytes;
}

// What is kept of a full page beside its data, to choose pages by: a set of kinds, fixed at start.
enum MetaKind : uint32_t {
  kMetaBox = 1,      // the least and the largest value of each key channel (TinyServe, Quest)
  kMetaMoments = 2,  // mean and variance of each key channel
  kMetaSpread = 4,   // mean of each key channel in 8 bits, which the codes of kPlanes pages are
                     // relative to, and a radius for all channels (page/planes.h)
  kMetaRange = 8,    // middle and reach of each key channel in 8 bits: what the codes of pages
                     // within ranges are relative to (page/ranges.h)
};

// Layout of a page's record. Kinds follow in the order of their bits. Box and moments are two rows
// of `channels` f16: least and largest value (rounded outward, so that they bound the stored keys),
// or mean and variance (nearest). All are finite: what lies beyond the largest f16 counts as that.
// Spread and range, of which there is one at most: SpreadScales, then `channels` signed bytes; or
// RangeScales, then `channels` signed bytes and `channels` unsigned ones. Records of a slab lie
// like its pages do, with record_bytes in place of page_bytes. Padding holds zeros.
struct MetaLayout {
  uint32_t kinds;
  uint32_t channels;      // head_dim rounded up to 16
  uint32_t box_at;        // bytes from the record's start
  uint32_t moments_at;    // bytes from the record's start
  uint32_t spread_at;     // bytes from the record's start, of the spread or the range
  uint32_t record_bytes;  // a multiple of 8, of 64 without spread and range; 0 without kinds
};

// mean = mean * code; radius: the root of the mean square of the channels' largest distances from
// their means, as they are decoded.
struct SpreadScales {
  float mean;
  float radius;
};

// Of a channel's keys: middle = key_middle * code, reach = key_reach * code. The others are those
// of the ranges of values, whose codes are in the page.
struct RangeScales {
  float key_middle, key_reach;
  float value_middle, value_reach;
};

static inline MetaLayout MetaLayoutOf(uint32_t kinds, uint32_t head_dim) {
  const uint32_t channels = (head_dim + 15) / 16 * 16, kind_bytes = 2 * channels * 2;
  const uint32_t box = (kinds & kMetaBox) != 0 ? kind_bytes : 0;
  const uint32_t moments = (kinds & kMetaMoments) != 0 ? kind_bytes : 0;
  const uint32_t halves = (box + moments + 63) / 64 * 64;
  const uint32_t spread = (kinds & kMetaSpread) != 0  ? sizeof(SpreadScales) + channels
                          : (kinds & kMetaRange) != 0 ? sizeof(RangeScales) + 2 * channels
                                                      : 0;
  return {kinds, channels, 0, box, halves, halves + spread};
}

// The means of a full page: of its keys, then of its values, [channels] f16 each, nearest, channels
// as in a record. What lies beyond the largest f16 counts as that; padding holds zeros.
static inline uint32_t PageMeansBytes(uint32_t head_dim) {
  return 2 * ((head_dim + 15) / 16 * 16) * 2;
}

// What a cache keeps for selectors, beside what its codec needs.
struct SelectorNeeds {
  uint32_t metadata;       // MetaKinds of every full page
  uint32_t summary_bytes;  // of every full page, their own summaries, its means; a multiple of 64
  uint32_t state_bytes;    // of every (sequence, layer, KV head), their own; a multiple of 64
};

// The pages that one query may read, in order of position. Valid until the step ends.
struct PageView {
  const uint32_t* pages;  // [count] page indices
  uint32_t count;         // pages; 0 is an empty view
  uint32_t last_tokens;   // tokens in the last page, 1..page_tokens
  MemorySpace space;
};

// A partial attention result over some of the keys, for the g query heads of a KV head. Partials
// over disjoint keys merge to the result over their union, in any order up to rounding; ours always
// merge in index order. The empty partial has m = -inf, d = 0, o = 0.
struct Partial {
  float* m;  // [g] largest logit
  float* d;  // [g] sum of exp(logit - m)
  float* o;  // [g][head_dim] sum of exp(logit - m) * v
};

}  // namespace tinyserve

#endif  // TINYSERVE_PAGE_PAGE_H_
