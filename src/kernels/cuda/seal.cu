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

// The keys of one channel in a page.
template <class T>
struct Channel {
  Global<const uint8_t> bytes;
  uint64_t at;         // of the first token
  uint32_t row_bytes;  // from token to token
  uint32_t tokens;

  TS_DEVICE float Get(uint32_t t) const {
    return Float(bytes.template Get<T>(at + uint64_t{t} * row_bytes));
  }
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

template <class T>
TS_DEVICE void StoreBox(const Channel<T>& keys, const Global<uint8_t>& record, uint32_t at,
                        uint32_t channels, uint32_t c) {
  float low = INFINITY, high = -INFINITY;
  for (uint32_t t = 0; t < keys.tokens; ++t) {
    const float key = keys.Get(t);
    low = key < low ? key : low;
    high = key > high ? key : high;
  }
  // Adding 0 turns a -0 into 0: which of two zeros is the least would depend on their order.
  record.Set<F16>(at + 2 * c, RoundedTowards(low + 0.0f, -1));
  record.Set<F16>(at + 2 * (channels + c), RoundedTowards(high + 0.0f, 1));
}

template <class T>
TS_DEVICE void StoreMoments(const Channel<T>& keys, const Global<uint8_t>& record, uint32_t at,
                            uint32_t channels, uint32_t c) {
  const float scale = 1.0f / static_cast<float>(keys.tokens);
  const float mean = SumInOrder(keys.tokens, [&](uint32_t t) { return keys.Get(t); }) * scale;
  const float variance = SumInOrder(keys.tokens,
                                    [&](uint32_t t) {
                                      const float off = keys.Get(t) - mean;
                                      return off * off;
                                    }) *
                         scale;
  record.Set<F16>(at + 2 * c, ToF16(Clamp(mean, kF16Max)));
  record.Set<F16>(at + 2 * (channels + c), ToF16(Clamp(variance, kF16Max)));
}

// Grid: full pages, KV heads. A thread has a channel.
template <class T>
TS_BOUNDED_KERNEL(kDecodeThreads)
SummariseKernel(SummariseCall call) {
  const uint32_t page = Global<const uint32_t>(call.full, "full pages").Get(BlockX());
  if (page == kNoPage) return;
  const MetaLayout& layout = call.layout;
  const Global<const uint8_t> bytes(call.pages.slabs.bytes, "pages");
  const uint64_t page_at = ItemAt(call.pages.slabs, BlockY(), page);
  const Global<uint8_t> record =
      Global<uint8_t>(call.records.bytes, "records")
          .Part(ItemAt(call.records, BlockY(), page), layout.record_bytes);
  for (uint32_t c = ThreadIndex(); c < layout.channels; c += kDecodeThreads) {
    const Channel<T> keys{bytes, page_at + c * sizeof(T),
                          call.shape.head_dim * static_cast<uint32_t>(sizeof(T)),
                          call.shape.page_tokens};
    if ((layout.kinds & kMetaBox) != 0) {
      StoreBox(keys, record, layout.box_at, layout.channels, c);
    }
    if ((layout.kinds & kMetaMoments) != 0) {
      StoreMoments(keys, record, layout.moments_at, layout.channels, c);
    }
  }
}

template <class T>
Status LaunchSummarise(const SummariseCall& call, Stream stream) {
  const LaunchConfig config{.kernel = "summarise",
                            .grid = {static_cast<uint32_t>(call.full.count), call.shape.kv_heads},
                            .threads = kDecodeThreads,
                            .stream = stream};
  return Launch(config, SummariseKernel<T>, call);
}

}  // namespace

Status Summarise(const DecodeShape& shape, const DevicePages& pages, const MetaLayout& layout,
                 const Slabs<uint8_t>& records, const FullPages& full, Stream stream) {
  // Every channel of a record is one of a page: no padding of either.
  if (!IsPageTokens(shape.page_tokens) || layout.channels != shape.head_dim) {
    return NoInstance("summarise", shape);
  }
  if (full.pages.count == 0) return Status();
  const SummariseCall call{shape, pages, layout, records, full.pages};
  switch (shape.type) {
    case KvType::kF32:
      return LaunchSummarise<float>(call, stream);
    case KvType::kF16:
      return LaunchSummarise<F16>(call, stream);
    case KvType::kBF16:
      return LaunchSummarise<BF16>(call, stream);
    default:
      return NoInstance("summarise", shape);
  }
}

}  // namespace tinyserve::cuda
