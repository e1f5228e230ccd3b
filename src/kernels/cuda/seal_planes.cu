#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/seal_coding.h"
#include "page/planes.h"

namespace tinyserve::cuda {
namespace {

struct SealPlanesCall {
  SealCodedStep step;
  PlanesLayout at;
};

// A page's numbers, and what codes them.
struct PlanesMemory {
  Shared<float> keys, values;  // [16][head_dim]
  Shared<Coder> of_keys;       // [head_dim]
  Shared<float> scales;        // [16] of the tokens' values
  Shared<float> warps;

  TS_DEVICE PlanesMemory(SharedArena& arena, uint32_t dim)
      : keys(arena.Take<float>(kPlanesTokens * dim, "keys")),
        values(arena.Take<float>(kPlanesTokens * dim, "values")),
        of_keys(arena.Take<Coder>(dim, "of_keys")),
        scales(arena.Take<float>(kPlanesTokens, "scales")),
        warps(arena.Take<float>(4, "warps")) {}
};
constexpr uint32_t PlanesSharedBytes(uint32_t dim) {
  return 2 * kPlanesTokens * dim * sizeof(float) + dim * sizeof(Coder) + 16 * sizeof(float) + 16;
}

// A thread's channel: its mean, to the record, and its largest distance, to the page.
TS_DEVICE void CodeSpread(const PlanesMemory& memory, uint32_t dim, const PlanesLayout& at,
                          const Global<uint8_t>& page, const Global<uint8_t>& spread) {
  TS_SHARED(uint32_t, squares, 1);  // of the codes of distances
  const uint32_t c = ThreadIndex();
  const bool has = c < dim;
  if (c == 0) squares.Set(0, 0);
  const auto key = [&](uint32_t t) { return memory.keys.Get(t * dim + c); };
  float half[8] = {};
  for (uint32_t i = 0; i < 8 && has; ++i) half[i] = key(i) + key(i + 8);
  const float mean =
      (((half[0] + half[1]) + (half[2] + half[3])) + ((half[4] + half[5]) + (half[6] + half[7]))) *
      (1.0f / kPlanesTokens);
  const float top = BlockMax(mean < 0 ? -mean : mean, memory.warps);
  const float to_mean = ToCodes(top, 127);
  const float mean_scale = to_mean == 0 ? 0 : top * (1.0f / 127.0f);
  const float mean_code = NearestCode(mean * to_mean, -127, 127), middle = mean_code * mean_scale;
  float distance = 0;
  for (uint32_t t = 0; t < kPlanesTokens && has; ++t) {
    const float off = key(t) - middle, far = off < 0 ? -off : off;
    distance = far > distance ? far : distance;
  }
  const float farthest = BlockMax(distance, memory.warps);
  const float to_distance = ToCodes(farthest, 255);
  const float unit = to_distance == 0 ? 0 : farthest * (1.0f / 255.0f);
  const float code = NearestCode(RoundUp(distance * to_distance), 0, 255);
  if (has) {
    const auto byte = static_cast<uint32_t>(code);
    AtomicAdd(squares, 0, byte * byte);
    spread.Set(sizeof(SpreadScales) + c, static_cast<uint8_t>(static_cast<int>(mean_code)));
    page.Set(at.distances_at + c, static_cast<uint8_t>(byte));
    const float decoded = code * unit;
    memory.of_keys.Set(c, {middle, decoded == 0 ? 0 : kPlanesTop / decoded});
  }
  SyncBlock();
  if (c != 0) return;
  const float mean_square = static_cast<float>(squares.Get(0)) / static_cast<float>(dim);
  spread.Set<SpreadScales>(0, {mean_scale, unit * SquareRoot(mean_square)});
  page.Set<float>(at.scales_at + kDistanceAt, unit);
}

// A thread has sixteen channels of a token: a word of either plane's pairs of bits, and two words
// of the lower plane's halves of bytes.
TS_DEVICE void WriteKeys(const PlanesMemory& memory, uint32_t dim, const PlanesLayout& at,
                         const Global<uint8_t>& page) {
  for (uint32_t i = ThreadIndex(); i < dim; i += kSealThreads) {
    const uint32_t t = i % kPlanesTokens, group = i / kPlanesTokens;
    uint32_t upper = 0, middle = 0, low[2] = {};
    TS_UNROLL
    for (uint32_t c = 0; c < 16; ++c) {
      const Coder coder = memory.of_keys.Get(group * 16 + c);
      const float offset = memory.keys.Get(t * dim + group * 16 + c) - coder.middle;
      const float centred = NearestCode(offset * coder.to_codes, -128, 127);
      const auto code = static_cast<uint32_t>(static_cast<int>(centred) + 128);
      const uint32_t shift = c % 4 * 8 + c / 4 * 2;
      upper |= code >> 6 << shift;
      middle |= (code >> 4 & 3) << shift;
      low[c % 8 / 4] |= (code & 15) << (c % 4 * 8 + c / 8 * 4);
    }
    const uint32_t row = at.low_at + t * at.low_bytes;
    page.Set<uint32_t>(at.upper_at + (group * kPlanesTokens + t) * 4, upper);
    page.Set<uint32_t>(row + group * 8, low[0]);
    page.Set<uint32_t>(row + group * 8 + 4, low[1]);
    page.Set<uint32_t>(row + dim / 2 + group * 4, middle);
  }
}

// Eight threads find a token's scale: up to a bfloat16, whose bits are written.
TS_DEVICE void ScaleValues(const PlanesMemory& memory, uint32_t dim, const PlanesLayout& at,
                           const Global<uint8_t>& page) {
  constexpr uint32_t kLanes = kSealThreads / kPlanesTokens;
  const uint32_t t = ThreadIndex() / kLanes, lane = ThreadIndex() % kLanes;
  float top = 0;
  for (uint32_t c = lane; c < dim; c += kLanes) {
    const float v = memory.values.Get(t * dim + c), size = v < 0 ? -v : v;
    top = size > top ? size : top;
  }
  TS_UNROLL
  for (uint32_t lanes = kLanes / 2; lanes > 0; lanes /= 2) {
    const float other = ShuffleXor(top, lanes, kAllLanes);
    top = other > top ? other : top;
  }
  if (lane != 0) return;
  const uint32_t bits = top < kTiny ? 0 : (Bits(top * (1.0f / 127.0f)) + 0xffffu) >> 16;
  page.Set<uint16_t>(at.scales_at + 2 * t, static_cast<uint16_t>(bits));
  memory.scales.Set(t, FromBits(bits << 16));
}

// A thread's channel of values, and of their mean.
TS_DEVICE void WriteValues(const PlanesMemory& memory, uint32_t dim, const PlanesLayout& at,
                           const Global<uint8_t>& page) {
  const uint32_t c = ThreadIndex();
  float mean = 0;
  for (uint32_t t = 0; t < kPlanesTokens && c < dim; ++t) {
    const float scale = memory.scales.Get(t), to_codes = scale == 0 ? 0 : 1.0f / scale;
    const float code = NearestCode(memory.values.Get(t * dim + c) * to_codes, -127, 127);
    page.Set(at.v_at + t * dim + c, static_cast<uint8_t>(static_cast<int>(code)));
    mean = Fma(code, scale, mean);
  }
  mean *= 1.0f / kPlanesTokens;
  const float top = BlockMax(mean < 0 ? -mean : mean, memory.warps);
  const float to_codes = ToCodes(top, 127);
  if (c == 0) {
    page.Set<float>(at.scales_at + kMeanValueAt, to_codes == 0 ? 0 : top * (1.0f / 127.0f));
  }
  if (c >= dim) return;
  const float code = NearestCode(mean * to_codes, -127, 127);
  page.Set(at.mean_v_at + c, static_cast<uint8_t>(static_cast<int>(code)));
}

// Grid: pages, KV heads.
template <class T>
TS_BOUNDED_KERNEL(kSealThreads)
SealPlanesKernel(SealPlanesCall call) {
  const SealCodedStep& step = call.step;
  const PlanesLayout& at = call.at;
  const uint32_t from = Global<const uint32_t>(step.from.pages, "open pages").Get(BlockX());
  const uint32_t to = Global<const uint32_t>(step.to.pages, "coded pages").Get(BlockX());
  if (from == kNoPage || to == kNoPage) return;
  const uint32_t dim = step.shape.head_dim, head = BlockY();
  SharedArena arena;
  const PlanesMemory memory(arena, dim);
  const Global<uint8_t> page =
      Global<uint8_t>(step.pages.bytes, "coded").Part(ItemAt(step.pages, head, to), at.page_bytes);
  const Global<uint8_t> spread =
      Global<uint8_t>(step.records.bytes, "records")
          .Part(ItemAt(step.records, head, to) + step.spread_at, sizeof(SpreadScales) + dim);
  // Padding holds zeros.
  for (uint32_t i = at.distances_at + 16 * ThreadIndex(); i < at.low_at; i += 16 * kSealThreads) {
    page.Set<Line<uint32_t>>(i, {});
  }
  ReadOpenPage<T>(step, head, from, memory.keys, memory.values);
  ScaleValues(memory, dim, at, page);
  CodeSpread(memory, dim, at, page, spread);
  WriteKeys(memory, dim, at, page);
  WriteValues(memory, dim, at, page);
}

template <class T>
Status LaunchSeal(const SealPlanesCall& call, Stream stream) {
  const SealCodedStep& step = call.step;
  const LaunchConfig config{
      .kernel = "seal_planes",
      .grid = {static_cast<uint32_t>(step.from.pages.count), step.shape.kv_heads},
      .threads = kSealThreads,
      .shared_bytes = PlanesSharedBytes(step.shape.head_dim),
      .stream = stream};
  return Launch(config, SealPlanesKernel<T>, call);
}

}  // namespace

Status SealPlanes(const SealCodedStep& step, Stream stream) {
  const DecodeShape& shape = step.shape;
  if (shape.type != KvType::kPlanes || shape.page_tokens != kPlanesTokens ||
      shape.head_dim % 16 != 0 || shape.head_dim == 0 || shape.head_dim > kSealThreads ||
      step.from.pages.count != step.to.pages.count) {
    return NoInstance("seal_planes", shape, "planes");
  }
  if (step.from.pages.count == 0) return Status();
  const SealPlanesCall call{step, PlanesLayoutOf(shape.head_dim)};
  switch (step.open_type) {
    case KvType::kF32:
      return LaunchSeal<float>(call, stream);
    case KvType::kF16:
      return LaunchSeal<F16>(call, stream);
    case KvType::kBF16:
      return LaunchSeal<BF16>(call, stream);
    default:
      return NoInstance("seal_planes", shape);
  }
}

}  // namespace tinyserve::cuda
