#include "kernels/cuda/append.h"
#include "kernels/cuda/decode_split.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/simt.h"

namespace tinyserve::cuda {
namespace {

TS_DEVICE void Store(const Global<uint8_t>& bytes, uint64_t at, float x, float) {
  bytes.Set<float>(at, x);
}
TS_DEVICE void Store(const Global<uint8_t>& bytes, uint64_t at, float x, F16) {
  bytes.Set<F16>(at, ToF16(x));
}
TS_DEVICE void Store(const Global<uint8_t>& bytes, uint64_t at, float x, BF16) {
  bytes.Set<BF16>(at, ToBF16(x));
}

// A warp is one head of one row: a query, a key or a value. Grid: heads + 2 kv_heads, rows.
template <class T>
TS_KERNEL AppendKernel(RopeAppend a, uint32_t page_shift) {
  const uint32_t head = BlockX(), row = BlockY(), dim = a.head_dim;
  const uint32_t position = Global<const uint32_t>(a.positions, "positions").Get(row);
  if (position == kNoPosition) return;
  const bool is_q = head < a.heads, is_v = head >= a.heads + a.kv_heads;
  const Global<const float> in =
      Global<const float>(a.qkv, "qkv")
          .Part((uint64_t{row} * (a.heads + 2 * a.kv_heads) + head) * dim, dim);
  const Global<const float> cos_sin(a.cos_sin, "cos_sin");
  const Global<float> q(a.q, "q");
  const Global<uint8_t> bytes(a.pages.bytes, "pages");
  uint64_t at = (uint64_t{row} * a.heads + head) * dim;  // in q, or a byte of the page
  if (!is_q) {
    const uint32_t table = Global<const uint32_t>(a.table_of, "table_of").Get(row);
    const uint32_t page = Global<const uint32_t>(a.tables, "tables")
                              .Get(uint64_t{table} * a.table_pages + (position >> page_shift));
    const uint32_t slot = position & ((1u << page_shift) - 1);
    at = ItemAt(a.pages, is_v ? head - a.heads - a.kv_heads : head - a.heads, page) +
         (is_v ? a.v_offset : 0) + uint64_t{slot} * dim * sizeof(T);
  }
  const auto put = [&](uint32_t c, float x) {
    if (is_q) {
      q.Set(at + c, x);
    } else {
      Store(bytes, at + c * sizeof(T), x, T{});
    }
  };
  const uint32_t rotated = is_v ? 0 : a.rotary_dim, pairs = rotated / 2;
  for (uint32_t i = LaneIndex(); i < pairs; i += kWarpLanes) {
    const uint32_t first = a.interleaved ? 2 * i : i,
                   second = a.interleaved ? first + 1 : i + pairs;
    const uint64_t pair = (uint64_t{row} * pairs + i) * 2;
    const float cos = cos_sin.Get(pair), sin = cos_sin.Get(pair + 1);
    const float x = in.Get(first), y = in.Get(second);
    put(first, x * cos - y * sin);
    put(second, x * sin + y * cos);
  }
  for (uint32_t c = rotated + LaneIndex(); c < dim; c += kWarpLanes) put(c, in.Get(c));
}

template <class T>
Status LaunchAppend(const RopeAppend& append, Stream stream) {
  return Launch({.kernel = "AppendRotated",
                 .grid = {append.heads + 2 * append.kv_heads, append.rows},
                 .threads = kWarpLanes,
                 .stream = stream},
                AppendKernel<T>, append, Log2(append.page_tokens));
}

}  // namespace

Status AppendRotated(const RopeAppend& append, Stream stream) {
  switch (append.type) {
    case KvType::kF32:
      return LaunchAppend<float>(append, stream);
    case KvType::kF16:
      return LaunchAppend<F16>(append, stream);
    case KvType::kBF16:
      return LaunchAppend<BF16>(append, stream);
    default:
      return Status(Code::kUnsupported,
                    "AppendRotated: new tokens are written as f32, f16 or bf16; other types are "
                    "coded from those");
  }
}

}  // namespace tinyserve::cuda
