#include "kernels/ref/attention.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "tensor/convert.h"

namespace tinyserve::ref {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

uint32_t ElemBytes(KvType type) { return type == KvType::kF32 ? 4 : 2; }

// Bytes of one token's K or V.
uint64_t RowBytes(const KvShape& shape) { return uint64_t{shape.head_dim} * ElemBytes(shape.type); }

void StoreRow(KvType type, const float* from, uint32_t n, uint8_t* to) {
  if (type == KvType::kF32) {
    std::memcpy(to, from, n * sizeof(float));
    return;
  }
  for (uint32_t c = 0; c < n; ++c) {
    const uint16_t bits = type == KvType::kF16 ? F32ToF16(from[c]) : F32ToBF16(from[c]);
    std::memcpy(to + 2 * c, &bits, 2);
  }
}

void LoadRow(KvType type, const uint8_t* from, uint32_t n, float* to) {
  if (type == KvType::kF32) {
    std::memcpy(to, from, n * sizeof(float));
    return;
  }
  for (uint32_t c = 0; c < n; ++c) {
    uint16_t bits;
    std::memcpy(&bits, from + 2 * c, 2);
    to[c] = type == KvType::kF16 ? F16ToF32(bits) : BF16ToF32(bits);
  }
}

// One channel of a stored row, without a buffer of the row's size.
float LoadElem(KvType type, const uint8_t* row, uint32_t c) {
  float value;
  LoadRow(type, row + uint64_t{c} * ElemBytes(type), 1, &value);
  return value;
}

// Where the K and the V of a view's tokens lie.
struct Rows {
  const KvShape& shape;
  const KvSlab& slab;
  const PageView& view;

  const uint8_t* K(uint64_t token) const {
    const uint32_t page = view.pages[token / shape.page_tokens];
    return PageAt(slab, page) + token % shape.page_tokens * RowBytes(shape);
  }
  const uint8_t* V(uint64_t token) const { return K(token) + slab.v_offset; }

  float Logit(const float* q, float scale, uint64_t token) const {
    const uint8_t* k = K(token);
    float sum = 0;
    for (uint32_t c = 0; c < shape.head_dim; ++c) sum += q[c] * LoadElem(shape.type, k, c);
    return sum * scale;
  }

  // Partial result of query q over the tokens 0 .. tokens - 1 of the view.
  void Attend(const float* q, float scale, uint64_t tokens, float* m, float* d, float* o) const {
    *m = kMinusInfinity;
    *d = 0;
    for (uint32_t c = 0; c < shape.head_dim; ++c) o[c] = 0;
    for (uint64_t t = 0; t < tokens; ++t) *m = std::fmax(*m, Logit(q, scale, t));
    for (uint64_t t = 0; t < tokens; ++t) {
      const float p = std::exp(Logit(q, scale, t) - *m);
      const uint8_t* v = V(t);
      *d += p;
      for (uint32_t c = 0; c < shape.head_dim; ++c) o[c] += p * LoadElem(shape.type, v, c);
    }
  }
};

uint64_t TokensOf(const KvShape& shape, const PageView& view) {
  if (view.count == 0) return 0;
  TS_CHECK(view.last_tokens >= 1 && view.last_tokens <= shape.page_tokens);
  return uint64_t{view.count - 1} * shape.page_tokens + view.last_tokens;
}

}  // namespace

void PageBytes(const KvShape* shape, uint32_t* k_bytes, uint32_t* v_bytes) {
  const uint64_t bytes = (RowBytes(*shape) * shape->page_tokens + 63) / 64 * 64;
  TS_CHECK(bytes <= std::numeric_limits<uint32_t>::max());
  *k_bytes = *v_bytes = static_cast<uint32_t>(bytes);
}

void Append(const AppendArgs* args) {
  const KvShape& shape = args->shape;
  for (uint32_t i = 0; i < args->tokens; ++i) {
    const uint64_t slot = uint64_t{args->first_slot} + i;
    uint8_t* page = PageAt(args->slab, args->pages[slot / shape.page_tokens]);
    uint8_t* k = page + slot % shape.page_tokens * RowBytes(shape);
    StoreRow(shape.type, args->k + i * args->stride, shape.head_dim, k);
    StoreRow(shape.type, args->v + i * args->stride, shape.head_dim, k + args->slab.v_offset);
  }
}

void ReadToken(const KvShape* shape, const uint8_t* page, uint32_t v_offset, uint32_t slot,
               float* k, float* v) {
  const uint8_t* row = page + slot * RowBytes(*shape);
  LoadRow(shape->type, row, shape->head_dim, k);
  LoadRow(shape->type, row + v_offset, shape->head_dim, v);
}

uint64_t DecodeScratchBytes(const KvShape*, uint32_t, uint32_t) { return 0; }

void AttendDecode(const DecodeArgs* args) {
  const Rows rows{args->shape, args->slab, args->view};
  const uint64_t tokens = TokensOf(args->shape, args->view);
  const uint32_t dim = args->shape.head_dim;
  for (uint32_t h = 0; h < args->group; ++h) {
    rows.Attend(args->q + h * dim, args->scale, tokens, args->out.m + h, args->out.d + h,
                args->out.o + h * dim);
  }
}

void MergePartials(const Partial* partials, uint32_t n, uint32_t group, uint32_t head_dim,
                   float* out) {
  for (uint32_t h = 0; h < group; ++h) {
    float* result = out + uint64_t{h} * head_dim;
    for (uint32_t c = 0; c < head_dim; ++c) result[c] = 0;
    float m = kMinusInfinity;
    for (uint32_t i = 0; i < n; ++i) m = std::fmax(m, partials[i].m[h]);
    float d = 0;
    for (uint32_t i = 0; i < n; ++i) {
      if (partials[i].d[h] == 0) continue;  // empty; its m of -inf minus an m of -inf is no number
      const float weight = std::exp(partials[i].m[h] - m);
      const float* o = partials[i].o + uint64_t{h} * head_dim;
      d += weight * partials[i].d[h];
      for (uint32_t c = 0; c < head_dim; ++c) result[c] += weight * o[c];
    }
    if (d == 0) continue;
    for (uint32_t c = 0; c < head_dim; ++c) result[c] /= d;
  }
}

uint64_t PromptScratchBytes(const KvShape*, uint32_t, uint32_t) { return 0; }

void AttendPrompt(const PromptArgs* args) {
  const Rows rows{args->shape, args->slab, args->view};
  const uint32_t dim = args->shape.head_dim;
  TS_CHECK(TokensOf(args->shape, args->view) >= uint64_t{args->first_position} + args->rows);
  for (uint32_t i = 0; i < args->rows; ++i) {
    for (uint32_t h = 0; h < args->group; ++h) {
      const float* q = args->q + i * args->q_stride + h * dim;
      float* out = args->out + i * args->out_stride + h * dim;
      float m, d;
      rows.Attend(q, args->scale, uint64_t{args->first_position} + i + 1, &m, &d, out);
      for (uint32_t c = 0; c < dim; ++c) out[c] /= d;
    }
  }
}

}  // namespace tinyserve::ref
