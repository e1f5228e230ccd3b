#include "kernels/ref/attention.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/check.h"
#include "kernels/ref/coded.h"
#include "page/coded.h"
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

uint64_t TokensOf(const KvShape& shape, const PageView& view) {
  if (view.count == 0) return 0;
  TS_CHECK(view.last_tokens >= 1 && view.last_tokens <= shape.page_tokens);
  return uint64_t{view.count - 1} * shape.page_tokens + view.last_tokens;
}

// The tokens of a view, and before them those of coded pages. Row buffers are a query's.
class Rows {
 public:
  Rows(const SealedKeys& sealed, const KvShape& shape, const KvSlab& slab, const PageView& view)
      : sealed_(sealed),
        shape_(shape),
        slab_(slab),
        view_(view),
        sealed_tokens_(TokensOf(sealed.shape, sealed.view)),
        k_(shape.head_dim),
        v_(shape.head_dim) {}

  uint64_t tokens() const { return sealed_tokens_ + TokensOf(shape_, view_); }

  // Partial result of query q over the tokens 0 .. tokens - 1.
  void Attend(const float* q, float scale, uint64_t tokens, float* m, float* d, float* o) {
    *m = kMinusInfinity;
    *d = 0;
    for (uint32_t c = 0; c < shape_.head_dim; ++c) o[c] = 0;
    for (uint64_t t = 0; t < tokens; ++t) *m = std::fmax(*m, Logit(q, scale, t));
    for (uint64_t t = 0; t < tokens; ++t) {
      const float p = std::exp(Logit(q, scale, t) - *m);
      *d += p;
      for (uint32_t c = 0; c < shape_.head_dim; ++c) o[c] += p * v_[c];
    }
  }

 private:
  // Reads a token, too.
  float Logit(const float* q, float scale, uint64_t token) {
    if (token < sealed_tokens_) {
      Read(sealed_.shape, sealed_.slab, sealed_.view, token);
    } else {
      Read(shape_, slab_, view_, token - sealed_tokens_);
    }
    float sum = 0;
    for (uint32_t c = 0; c < shape_.head_dim; ++c) sum += q[c] * k_[c];
    return sum * scale;
  }

  void Read(const KvShape& shape, const KvSlab& slab, const PageView& view, uint64_t token) {
    const uint32_t page = view.pages[token / shape.page_tokens];
    const uint8_t* spread =
        IsCoded(shape.type) ? PageAt(sealed_.records, page) + sealed_.layout.spread_at : nullptr;
    ReadToken(&shape, PageAt(slab, page), slab.v_offset, spread,
              static_cast<uint32_t>(token % shape.page_tokens), k_.data(), v_.data());
  }

  const SealedKeys sealed_;
  const KvShape& shape_;
  const KvSlab& slab_;
  const PageView& view_;
  const uint64_t sealed_tokens_;
  std::vector<float> k_, v_;
};

}  // namespace

void PageBytes(const KvShape* shape, uint32_t* k_bytes, uint32_t* v_bytes) {
  if (IsCoded(shape->type)) return CodedPageBytes(*shape, k_bytes, v_bytes);
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

void ReadToken(const KvShape* shape, const uint8_t* page, uint32_t v_offset, const uint8_t* spread,
               uint32_t slot, float* k, float* v) {
  if (IsCoded(shape->type)) return ReadCoded(*shape, page, spread, slot, k, v);
  const uint8_t* row = page + slot * RowBytes(*shape);
  LoadRow(shape->type, row, shape->head_dim, k);
  LoadRow(shape->type, row + v_offset, shape->head_dim, v);
}

uint64_t DecodeScratchBytes(const KvShape*, uint32_t, uint32_t) { return 0; }

void AttendDecode(const DecodeArgs* args) {
  SealedKeys records = {};
  records.records = args->records;
  records.layout = args->layout;
  Rows rows(records, args->shape, args->slab, args->view);
  const uint32_t dim = args->shape.head_dim;
  for (uint32_t h = 0; h < args->group; ++h) {
    rows.Attend(args->q + h * dim, args->scale, rows.tokens(), args->out.m + h, args->out.d + h,
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
  Rows rows(args->sealed, args->shape, args->slab, args->view);
  const uint32_t dim = args->shape.head_dim;
  TS_CHECK(rows.tokens() >= uint64_t{args->first_position} + args->rows);
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
