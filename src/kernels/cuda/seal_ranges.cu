#include "kernels/cuda/coded_pages.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/seal_coding.h"

namespace tinyserve::cuda {
namespace {

template <uint32_t kBits>
constexpr float kHalf = HalfRange(kBits);

struct Range {
  float middle_code, reach_code;
  float middle_scale, reach_scale;  // the same in all threads
};

// Codes a range a thread, low .. high; those of threads that have none are 0 .. 0.
TS_DEVICE Range CodeRange(float low, float high, const Shared<float>& warps) {
  const float middle = (low + high) * 0.5f;
  const float top = BlockMax(middle < 0 ? -middle : middle, warps);
  const float to_middle = ToCodes(top, 127);
  Range range{};
  range.middle_scale = to_middle == 0 ? 0 : top * (1.0f / 127.0f);
  range.middle_code = NearestCode(middle * to_middle, -127, 127);
  // As it is decoded: the reach still holds what the range was made of.
  const float at = range.middle_code * range.middle_scale;
  const float reach = high - at > at - low ? high - at : at - low;
  const float furthest = BlockMax(reach, warps);
  const float to_reach = ToCodes(furthest, 255);
  range.reach_scale = to_reach == 0 ? 0 : furthest * (1.0f / 255.0f);
  range.reach_code = NearestCode(RoundUp(reach * to_reach), 0, 255);
  return range;
}

struct SealCall {
  SealCodedStep step;
  CodedPageLayout at;
};

// A page's numbers, and a coder for each of its ranges.
struct SealMemory {
  Shared<float> keys, values;        // [16][head_dim]
  Shared<Coder> of_keys, of_values;  // [head_dim], [groups][16]
  Shared<float> warps;

  TS_DEVICE SealMemory(SharedArena& arena, uint32_t dim)
      : keys(arena.Take<float>(kRangesTokens * dim, "keys")),
        values(arena.Take<float>(kRangesTokens * dim, "values")),
        of_keys(arena.Take<Coder>(kSealThreads, "of_keys")),
        of_values(arena.Take<Coder>(kSealThreads, "of_values")),
        warps(arena.Take<float>(4, "warps")) {}
};
constexpr uint32_t SealSharedBytes(uint32_t dim) {
  return 2 * kRangesTokens * dim * sizeof(float) + 2 * kSealThreads * sizeof(Coder) + 16;
}

TS_DEVICE Coder CoderOf(const Range& range, float half) {
  const float reach = range.reach_code * range.reach_scale;
  return {range.middle_code * range.middle_scale, reach == 0 ? 0 : half / reach};
}

// A thread's channel of keys; writes the record's range.
TS_DEVICE void CodeKeyRanges(const SealMemory& memory, uint32_t dim, float half,
                             const Global<uint8_t>& range_out, RangeScales* scales) {
  const uint32_t c = ThreadIndex();
  float low = 0, high = 0;
  for (uint32_t t = 0; t < kRangesTokens && c < dim; ++t) {
    const float key = memory.keys.Get(t * dim + c);
    low = t == 0 || key < low ? key : low;
    high = t == 0 || key > high ? key : high;
  }
  const Range range = CodeRange(low, high, memory.warps);
  scales->key_middle = range.middle_scale;
  scales->key_reach = range.reach_scale;
  if (c >= dim) return;
  range_out.Set(sizeof(RangeScales) + c, static_cast<uint8_t>(static_cast<int>(range.middle_code)));
  range_out.Set(sizeof(RangeScales) + dim + c, static_cast<uint8_t>(range.reach_code));
  memory.of_keys.Set(c, CoderOf(range, half));
}

// A thread's token and channels of values; writes the page's ranges.
TS_DEVICE void CodeValueRanges(const SealMemory& memory, uint32_t dim, const CodedPageLayout& at,
                               float half, const Global<uint8_t>& page, RangeScales* scales) {
  const uint32_t i = ThreadIndex(), group = i / kRangesTokens, t = i % kRangesTokens;
  float low = 0, high = 0;
  for (uint32_t j = 0; j < kRangeChannels; ++j) {
    const uint32_t c = group * kRangeChannels + j;
    if (c >= dim) break;
    const float value = memory.values.Get(t * dim + c);
    low = j == 0 || value < low ? value : low;
    high = j == 0 || value > high ? value : high;
  }
  const Range range = CodeRange(low, high, memory.warps);
  scales->value_middle = range.middle_scale;
  scales->value_reach = range.reach_scale;
  if (group >= at.groups) return;
  page.Set(at.v_middle_at + i, static_cast<uint8_t>(static_cast<int>(range.middle_code)));
  page.Set(at.v_middle_at + at.groups * kRangesTokens + i, static_cast<uint8_t>(range.reach_code));
  memory.of_values.Set(i, CoderOf(range, half));
}

// One word of codes of neighbouring channels.
template <uint32_t kBits, class CoderAt>
TS_DEVICE uint32_t CodeWord(const Shared<float>& numbers, uint32_t first, float half,
                            const CoderAt& coder_at) {
  uint32_t word = 0;
  TS_UNROLL
  for (uint32_t i = 0; i < 32 / kBits; ++i) {
    const Coder coder = coder_at(i);
    const float code = NearestCode(Fma(numbers.Get(first + i) - coder.middle, coder.to_codes, half),
                                   0, static_cast<float>((1u << kBits) - 1));
    word |= static_cast<uint32_t>(code) << i * kBits;
  }
  return word;
}

template <uint32_t kBits>
TS_DEVICE void WriteKeys(const SealMemory& memory, uint32_t dim, const CodedPageLayout& at,
                         float half, const Global<uint8_t>& page) {
  constexpr uint32_t kChannels = 32 / kBits;
  for (uint32_t i = ThreadIndex(); i < kRangesTokens * dim / kChannels; i += kSealThreads) {
    const uint32_t t = i * kChannels / dim, c = i * kChannels % dim;
    page.Set<uint32_t>(t * at.key_row + c * kBits / 8,
                       CodeWord<kBits>(memory.keys, t * dim + c, half,
                                       [&](uint32_t j) { return memory.of_keys.Get(c + j); }));
  }
}

template <uint32_t kBits>
TS_DEVICE void WriteValues(const SealMemory& memory, uint32_t dim, const CodedPageLayout& at,
                           float half, const Global<uint8_t>& page) {
  constexpr uint32_t kChannels = 32 / kBits;
  for (uint32_t i = ThreadIndex(); i < kRangesTokens * dim / kChannels; i += kSealThreads) {
    const uint32_t t = i * kChannels / dim, c = i * kChannels % dim;
    const Coder coder = memory.of_values.Get(c / kRangeChannels * kRangesTokens + t);
    page.Set<uint32_t>(
        at.v_at + t * at.value_row + c * kBits / 8,
        CodeWord<kBits>(memory.values, t * dim + c, half, [&](uint32_t) { return coder; }));
  }
}

// Grid: pages, KV heads.
template <class T, uint32_t kKeyBits, uint32_t kValueBits>
TS_BOUNDED_KERNEL(kSealThreads)
SealRangesKernel(SealCall call) {
  constexpr float kKeyHalf = kHalf<kKeyBits>, kValueHalf = kHalf<kValueBits>;
  const SealCodedStep& step = call.step;
  const uint32_t from = Global<const uint32_t>(step.from.pages, "open pages").Get(BlockX());
  const uint32_t to = Global<const uint32_t>(step.to.pages, "coded pages").Get(BlockX());
  if (from == kNoPage || to == kNoPage) return;
  const uint32_t dim = step.shape.head_dim, head = BlockY();
  SharedArena arena;
  const SealMemory memory(arena, dim);
  ReadOpenPage<T>(step, head, from, memory.keys, memory.values);
  const Global<uint8_t> page = Global<uint8_t>(step.pages.bytes, "coded")
                                   .Part(ItemAt(step.pages, head, to), call.at.page_bytes);
  const Global<uint8_t> range =
      Global<uint8_t>(step.records.bytes, "records")
          .Part(ItemAt(step.records, head, to) + step.spread_at, sizeof(RangeScales) + 2 * dim);
  RangeScales scales{};
  CodeKeyRanges(memory, dim, kKeyHalf, range, &scales);
  CodeValueRanges(memory, dim, call.at, kValueHalf, page, &scales);
  if (ThreadIndex() == 0) range.Set<RangeScales>(0, scales);
  SyncBlock();
  WriteKeys<kKeyBits>(memory, dim, call.at, kKeyHalf, page);
  WriteValues<kValueBits>(memory, dim, call.at, kValueHalf, page);
}

template <uint32_t kKeyBits, uint32_t kValueBits>
Status LaunchSeal(const SealCall& call, Stream stream) {
  const SealCodedStep& step = call.step;
  const LaunchConfig config{
      .kernel = "seal_ranges",
      .grid = {static_cast<uint32_t>(step.from.pages.count), step.shape.kv_heads},
      .threads = kSealThreads,
      .shared_bytes = SealSharedBytes(step.shape.head_dim),
      .stream = stream};
  switch (step.open_type) {
    case KvType::kF32:
      return Launch(config, SealRangesKernel<float, kKeyBits, kValueBits>, call);
    case KvType::kF16:
      return Launch(config, SealRangesKernel<F16, kKeyBits, kValueBits>, call);
    case KvType::kBF16:
      return Launch(config, SealRangesKernel<BF16, kKeyBits, kValueBits>, call);
    default:
      return NoInstance("seal_ranges", step.shape);
  }
}

}  // namespace

Status SealRanges(const SealCodedStep& step, Stream stream) {
  const DecodeShape& shape = step.shape;
  if (shape.page_tokens != kRangesTokens || shape.head_dim % 16 != 0 || shape.head_dim == 0 ||
      shape.head_dim > kSealThreads || step.from.pages.count != step.to.pages.count) {
    return NoInstance("seal_ranges", shape);
  }
  if (step.from.pages.count == 0) return Status();
  const SealCall call{step, CodedPageLayoutOf(shape.type, shape.head_dim)};
  switch (shape.type) {
    case KvType::kInt8:
      return LaunchSeal<8, 8>(call, stream);
    case KvType::kK8V4:
      return LaunchSeal<8, 4>(call, stream);
    case KvType::kInt4:
      return LaunchSeal<4, 4>(call, stream);
    default:
      return NoInstance("seal_ranges", shape);
  }
}

}  // namespace tinyserve::cuda
