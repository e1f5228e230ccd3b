#include "kernels/cuda/coded_pages.h"
#include "kernels/cuda/decode_split.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/seal.h"
#include "kernels/cuda/simt.h"

namespace tinyserve::cuda {
namespace {

constexpr float kF16Max = 65504.0f;

struct SummariseCall {
  DecodeShape shape;
  DevicePages pages;
  MetaLayout layout;
  Slabs<uint8_t> records;
  Array<const uint32_t> full;
  uint32_t key_row;     // bytes from a token's key to the next, but in planes
  PlanesLayout planes;  // of pages in planes
};

TS_DEVICE float Clamp(float x, float top) {
  const float below = x < top ? x : top;
  return below > -top ? below : -top;
}

// The f16 next to x on the side of `sign`, x itself where it is one.
TS_DEVICE F16 RoundedTowards(float x, float sign) {
  x = Clamp(x, kF16Max);
  F16 half = ToF16(x);
  if (sign * Float(half) >= sign * x) return half;
  half.bits = static_cast<uint16_t>((x < 0) == (sign < 0) ? half.bits + 1 : half.bits - 1);
  return half;
}

// The keys of one channel in a page, as attention reads them: of floats, ...
template <class T>
class FloatKeys {
 public:
  TS_DEVICE FloatKeys(const SummariseCall& call, uint32_t head, uint32_t page, uint32_t c)
      : bytes_(call.pages.slabs.bytes, "pages"),
        at_(ItemAt(call.pages.slabs, head, page) + c * sizeof(T)),
        row_(call.key_row) {}
  TS_DEVICE float Get(uint32_t t) const {
    return Float(bytes_.template Get<T>(at_ + uint64_t{t} * row_));
  }

 private:
  Global<const uint8_t> bytes_;
  uint64_t at_;  // of the first token
  uint32_t row_;
};

// ... of codes within ranges, ...
template <uint32_t kBits>
class RangedKeys {
 public:
  TS_DEVICE RangedKeys(const SummariseCall& call, uint32_t head, uint32_t page, uint32_t c)
      : bytes_(call.pages.slabs.bytes, "pages"),
        at_(ItemAt(call.pages.slabs, head, page) + c * kBits / 8),
        row_(call.key_row),
        shift_(c * kBits % 8) {
    const Global<uint8_t> records(call.records.bytes, "records");
    const uint64_t range = ItemAt(call.records, head, page) + call.layout.spread_at;
    const auto scales = records.Get<RangeScales>(range);
    const uint64_t codes = range + sizeof(RangeScales) + c;
    middle_ = static_cast<float>(static_cast<int8_t>(records.Get(codes))) * scales.key_middle;
    const float reach =
        static_cast<float>(records.Get(codes + call.layout.channels)) * scales.key_reach;
    step_ = reach * (1 / kHalf);
  }
  TS_DEVICE float Get(uint32_t t) const {
    const uint32_t code = bytes_.Get(at_ + uint64_t{t} * row_) >> shift_ & ((1u << kBits) - 1);
    return Fma(static_cast<float>(code) - kHalf, step_, middle_);
  }

 private:
  static constexpr float kHalf = HalfRange(kBits);
  Global<const uint8_t> bytes_;
  uint64_t at_;
  uint32_t row_, shift_;
  float middle_ = 0, step_ = 0;
};

// ... and in planes, in ref's arithmetic (kernels/ref/planes.h).
class PlanesKeys {
 public:
  TS_DEVICE PlanesKeys(const SummariseCall& call, uint32_t head, uint32_t page, uint32_t c)
      : bytes_(call.pages.slabs.bytes, "pages"),
        page_(ItemAt(call.pages.slabs, head, page)),
        at_(call.planes),
        c_(c) {
    const Global<uint8_t> records(call.records.bytes, "records");
    const uint64_t spread = ItemAt(call.records, head, page) + call.layout.spread_at;
    const auto code = static_cast<int8_t>(records.Get(spread + sizeof(SpreadScales) + c));
    mean_ = static_cast<float>(code) * records.Get<SpreadScales>(spread).mean;
    const float unit = bytes_.Get<float>(page_ + at_.scales_at + kDistanceAt);
    distance_ = static_cast<float>(bytes_.Get(page_ + at_.distances_at + c)) * unit;
  }
  TS_DEVICE float Get(uint32_t t) const {
    const uint32_t group = c_ / 16, byte = c_ % 4, shift = c_ % 16 / 4 * 2;
    const uint64_t row = page_ + at_.low_at + t * at_.low_bytes;
    const uint64_t upper_at = page_ + at_.upper_at + (group * kPlanesTokens + t) * 4 + byte;
    const uint32_t upper = bytes_.Get(upper_at) >> shift & 3;
    const uint32_t middle = bytes_.Get(row + at_.channels / 2 + group * 4 + byte) >> shift & 3;
    const uint32_t low = bytes_.Get(row + group * 8 + c_ % 8) >> (c_ % 16 < 8 ? 0 : 4) & 15;
    const int code = static_cast<int>(upper << 6 | middle << 4 | low) - 128;
    return mean_ + distance_ * (static_cast<float>(code) * (1.0f / kPlanesTop));
  }

 private:
  Global<const uint8_t> bytes_;
  uint64_t page_;
  PlanesLayout at_;
  uint32_t c_;
  float mean_ = 0, distance_ = 0;
};

// In ref's order, so that the sum is the same.
template <class Term>
TS_DEVICE float SumInOrder(uint32_t tokens, const Term& term) {
  float sums[16] = {};
  for (uint32_t t = 0; t < tokens; t += 16) {
    TS_UNROLL
    for (uint32_t i = 0; i < 16; ++i) {
      if (t + i < tokens) sums[i] += term(t + i);
    }
  }
  TS_UNROLL
  for (uint32_t i = 0; i < 8; ++i) sums[i] += sums[i + 8];
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

// Of tokens first .. end - 1, rounded outward.
struct Bounds {
  F16 low, high;
};
template <class Keys>
TS_DEVICE Bounds BoundsOf(const Keys& keys, uint32_t first, uint32_t end) {
  float low = INFINITY, high = -INFINITY;
  for (uint32_t t = first; t < end; ++t) {
    const float key = keys.Get(t);
    low = key < low ? key : low;
    high = key > high ? key : high;
  }
  // Adding 0 turns a -0 into 0: which of two zeros is the least would depend on their order.
  return {RoundedTowards(low + 0.0f, -1), RoundedTowards(high + 0.0f, 1)};
}

template <class Keys>
TS_DEVICE void StoreMoments(const Keys& keys, uint32_t tokens, const Global<uint8_t>& record,
                            uint32_t at, uint32_t channels, uint32_t c) {
  const float scale = 1.0f / static_cast<float>(tokens);
  const float mean = SumInOrder(tokens, [&](uint32_t t) { return keys.Get(t); }) * scale;
  const float variance = SumInOrder(tokens,
                                    [&](uint32_t t) {
                                      const float off = keys.Get(t) - mean;
                                      return off * off;
                                    }) *
                         scale;
  record.Set<F16>(at + 2 * c, ToF16(Clamp(mean, kF16Max)));
  record.Set<F16>(at + 2 * (channels + c), ToF16(Clamp(variance, kF16Max)));
}

// Grid: full pages, KV heads. A thread has a channel.
template <class Keys>
TS_BOUNDED_KERNEL(kDecodeThreads)
SummariseKernel(SummariseCall call) {
  const uint32_t page = Global<const uint32_t>(call.full, "full pages").Get(BlockX());
  if (page == kNoPage) return;
  const MetaLayout& layout = call.layout;
  const uint32_t tokens = call.shape.page_tokens;
  const Global<uint8_t> record =
      Global<uint8_t>(call.records.bytes, "records")
          .Part(ItemAt(call.records, BlockY(), page), layout.record_bytes);
  for (uint32_t c = ThreadIndex(); c < layout.channels; c += kDecodeThreads) {
    const Keys keys(call, BlockY(), page, c);
    if ((layout.kinds & kMetaBox) != 0) {
      const Bounds bounds = BoundsOf(keys, 0, tokens);
      record.Set<F16>(layout.box_at + 2 * c, bounds.low);
      record.Set<F16>(layout.box_at + 2 * (layout.channels + c), bounds.high);
    }
    if ((layout.kinds & kMetaMoments) != 0) {
      StoreMoments(keys, tokens, record, layout.moments_at, layout.channels, c);
    }
  }
}

struct SubPagesCall {
  SummariseCall of;
  SubPageBoxes boxes;
  Slabs<uint8_t> slabs;
};

// Grid: full pages, KV heads. A thread has a channel of a sub-page.
template <class Keys>
TS_BOUNDED_KERNEL(kDecodeThreads)
SubPagesKernel(SubPagesCall call) {
  const uint32_t page = Global<const uint32_t>(call.of.full, "full pages").Get(BlockX());
  if (page == kNoPage) return;
  const uint32_t channels = call.of.layout.channels, tokens = call.boxes.tokens;
  const uint32_t count = call.of.shape.page_tokens / tokens;
  const Global<uint8_t> item(call.slabs.bytes, "summaries");
  const uint64_t first_at = ItemAt(call.slabs, BlockY(), page) + call.boxes.at;
  for (uint32_t i = ThreadIndex(); i < count * channels; i += kDecodeThreads) {
    const uint32_t sub = i / channels, c = i % channels;
    Bounds bounds = BoundsOf(Keys(call.of, BlockY(), page, c), sub * tokens, (sub + 1) * tokens);
    if (bounds.high.bits == 0x8000) bounds.high.bits = 0;  // the selector keeps no -0
    const uint64_t at = first_at + uint64_t{sub} * 4 * channels + 2 * c;
    item.Set<F16>(at, bounds.low);
    item.Set<F16>(at + 2 * channels, bounds.high);
  }
}

struct SubPagesLaunch {
  SubPagesCall call;
  Stream stream;

  template <class Keys>
  Status operator()() const {
    const LaunchConfig config{
        .kernel = "summarise_sub_pages",
        .grid = {static_cast<uint32_t>(call.of.full.count), call.of.shape.kv_heads},
        .threads = kDecodeThreads,
        .stream = stream};
    return Launch(config, SubPagesKernel<Keys>, call);
  }
};

struct SummariseLaunch {
  SummariseCall call;
  Stream stream;

  template <class Keys>
  Status operator()() const {
    const LaunchConfig config{.kernel = "summarise",
                              .grid = {static_cast<uint32_t>(call.full.count), call.shape.kv_heads},
                              .threads = kDecodeThreads,
                              .stream = stream};
    return Launch(config, SummariseKernel<Keys>, call);
  }
};

// launch.operator()<Keys>() of the pages' type.
template <class Call>
Status ForKeys(const DecodeShape& shape, const Call& launch) {
  switch (shape.type) {
    case KvType::kF32:
      return launch.template operator()<FloatKeys<float>>();
    case KvType::kF16:
      return launch.template operator()<FloatKeys<F16>>();
    case KvType::kBF16:
      return launch.template operator()<FloatKeys<BF16>>();
    case KvType::kPlanes:
      return launch.template operator()<PlanesKeys>();
    case KvType::kInt8:
    case KvType::kK8V4:
      return launch.template operator()<RangedKeys<8>>();
    case KvType::kInt4:
      return launch.template operator()<RangedKeys<4>>();
  }
  return NoInstance("summarise", shape);
}

uint32_t KeyRowOf(const DecodeShape& shape) {
  if (IsRanged(shape.type)) return CodedPageLayoutOf(shape.type, shape.head_dim).key_row;
  return shape.head_dim * (shape.type == KvType::kF32 ? 4 : 2);
}

// Every channel of a record is one of a page: no padding of either.
bool HasInstance(const DecodeShape& shape, const MetaLayout& layout) {
  const bool sized =
      IsCoded(shape.type) ? shape.page_tokens == kCodedTokens : IsPageTokens(shape.page_tokens);
  return sized && layout.channels == shape.head_dim;
}

SummariseCall CallOf(const DecodeShape& shape, const DevicePages& pages, const MetaLayout& layout,
                     const Slabs<uint8_t>& records, const FullPages& full) {
  return {
      shape, pages, layout, records, full.pages, KeyRowOf(shape), PlanesLayoutOf(shape.head_dim)};
}

}  // namespace

Status Summarise(const DecodeShape& shape, const DevicePages& pages, const MetaLayout& layout,
                 const Slabs<uint8_t>& records, const FullPages& full, Stream stream) {
  if (!HasInstance(shape, layout)) return NoInstance("summarise", shape);
  if (full.pages.count == 0) return Status();
  return ForKeys(shape, SummariseLaunch{CallOf(shape, pages, layout, records, full), stream});
}

Status SummariseSubPages(const DecodeShape& shape, const DevicePages& pages,
                         const MetaLayout& layout, const Slabs<uint8_t>& records,
                         const SubPageBoxes& boxes, const Slabs<uint8_t>& slabs,
                         const FullPages& full, Stream stream) {
  const bool divides = boxes.tokens > 0 && shape.page_tokens % boxes.tokens == 0;
  if (!HasInstance(shape, layout) || !divides) return NoInstance("summarise_sub_pages", shape);
  if (full.pages.count == 0) return Status();
  return ForKeys(
      shape, SubPagesLaunch{{CallOf(shape, pages, layout, records, full), boxes, slabs}, stream});
}

}  // namespace tinyserve::cuda
