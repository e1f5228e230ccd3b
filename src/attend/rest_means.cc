#include "attend/rest_means.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "base/check.h"
#include "kv/page_space.h"
#include "tensor/convert.h"

namespace tinyserve {
namespace {

constexpr float kLargestHalf = 65504;

uint32_t Channels(uint32_t head_dim) { return (head_dim + 15) / 16 * 16; }

uint64_t RoundUp64(uint64_t bytes) { return (bytes + 63) / 64 * 64; }

// Halves that are finite; without a branch, so that the compiler makes vectors of it.
void HalvesToFloats(const uint16_t* halves, uint32_t n, float* out) {
  for (uint32_t i = 0; i < n; ++i) {
    const uint32_t magnitude = static_cast<uint32_t>(halves[i] & 0x7fff) << 13;
    const uint32_t sign = static_cast<uint32_t>(halves[i] & 0x8000) << 16;
    // The exponent is biased by 15 there and 127 here; denormals become normal numbers.
    const float value = std::bit_cast<float>(magnitude) * 0x1p112f;
    out[i] = std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
  }
}

// Pages of f16, as means are: nothing is lost.
KvShape ScratchShape(const KvShape& shape, uint32_t page_tokens) {
  return {.type = KvType::kF16,
          .kv_heads = shape.kv_heads,
          .head_dim = shape.head_dim,
          .page_tokens = page_tokens};
}

}  // namespace

void WritePageMeans(const float* k, const float* v, uint32_t tokens, uint32_t head_dim,
                    uint16_t* means) {
  const uint32_t channels = Channels(head_dim);
  std::fill(means, means + 2 * channels, 0);
  for (const float* rows : {k, v}) {
    for (uint32_t c = 0; c < head_dim; ++c) {
      float sum = 0;
      for (uint32_t t = 0; t < tokens; ++t) sum += rows[uint64_t{t} * head_dim + c];
      const float mean = sum / static_cast<float>(tokens);
      // Negated, so that NaN, which no answer survives elsewhere, is kept out of here.
      const float finite =
          !(std::fabs(mean) <= kLargestHalf) ? std::copysign(kLargestHalf, mean) : mean;
      means[c] = F32ToF16(finite);
    }
    means += channels;
  }
}

Result<std::unique_ptr<RestMeans>> RestMeans::Create(const KvCache* cache, const Kernels* kernels,
                                                     uint32_t heads, float scale,
                                                     uint32_t threads) {
  std::unique_ptr<RestMeans> r(new RestMeans);
  r->cache_ = cache;
  r->kernels_ = kernels;
  r->heads_ = heads;
  r->scale_ = scale;
  uint64_t decode_bytes = 0;
  for (uint32_t g = 0; g < cache->groups(); ++g) {
    const KvShape shape = ScratchShape(cache->shape(g), kScratchPageTokens);
    const uint32_t group = heads / shape.kv_heads;
    r->page_bytes_ =
        std::max<uint64_t>(r->page_bytes_, PageSpace(kernels).GeometryOf(shape).page_bytes);
    r->rows_bytes_ = std::max<uint64_t>(
        r->rows_bytes_,
        RoundUp64(2ull * kScratchPageTokens * Channels(shape.head_dim) * sizeof(float)));
    decode_bytes =
        std::max(decode_bytes, kernels->decode_scratch_bytes(&shape, group, kSplitPages));
  }
  // A page apart: threads do not share lines.
  r->stride_ =
      (kScratchPages * r->page_bytes_ + r->rows_bytes_ + decode_bytes + 4095) / 4096 * 4096;
  TS_ASSIGN_OR_RETURN(r->scratch_, Buffer::Allocate(r->stride_ * threads));
  r->scratch_pages_.resize(kScratchPages);
  std::iota(r->scratch_pages_.begin(), r->scratch_pages_.end(), 0u);
  return r;
}

RestMeans::Scratch RestMeans::ScratchOf(const KvShape& shape, uint32_t thread) const {
  uint8_t* base = scratch_.data() + thread * stride_;
  const PageGeometry page = PageSpace(kernels_).GeometryOf(shape);
  uint8_t* rows = base + kScratchPages * page_bytes_;
  return {.slab = {.base = base,
                   .extent_stride = 0,
                   .extent_shift = std::bit_width(kScratchPages),
                   .page_bytes = page.page_bytes,
                   .v_offset = page.v_offset},
          .rows = reinterpret_cast<float*>(rows),
          .decode = rows + rows_bytes_};
}

uint32_t RestMeans::Pages(uint32_t group, uint32_t position) const {
  const uint32_t page_tokens = cache_->page_tokens();
  if (cache_->coded(group)) return cache_->RawBegin(position) / page_tokens;
  return position / page_tokens + 1;
}

uint32_t RestMeans::Gather(const Query& query, std::span<const uint32_t> read, uint32_t split,
                           uint32_t* pages) const {
  const uint32_t held = Pages(query.group, query.position);
  const uint32_t tokens =
      cache_->coded(query.group) ? held * cache_->page_tokens() : query.position + 1;
  const uint32_t* all = cache_->View(query.slot, query.group, tokens).pages;
  uint32_t skip = split * kSplitPages, n = 0;
  size_t next_read = 0;
  for (uint32_t i = 0; i < held && n < kSplitPages; ++i) {
    if (next_read < read.size() && read[next_read] == all[i]) {
      ++next_read;
    } else if (skip > 0) {
      --skip;
    } else {
      pages[n++] = all[i];
    }
  }
  return n;
}

void RestMeans::Attend(const Query& query, std::span<const uint32_t> read, uint32_t split,
                       uint32_t thread, const Partial& out) const {
  uint32_t pages[kSplitPages];
  const uint32_t n = Gather(query, read, split, pages);
  TS_CHECK(n > 0);
  const KvShape shape = ScratchShape(cache_->shape(query.group), kScratchPageTokens);
  const Scratch scratch = ScratchOf(shape, thread);
  const KvSlab summaries = cache_->summaries(query.group, query.layer_in_group, query.kv_head);
  const uint32_t channels = Channels(shape.head_dim);
  float* k = scratch.rows;
  float* v = k + kScratchPageTokens * channels;
  for (uint32_t first = 0; first < n; first += kScratchPageTokens) {
    const uint32_t rows = std::min(kScratchPageTokens, n - first);
    for (uint32_t i = 0; i < rows; ++i) {
      const auto* means =
          reinterpret_cast<const uint16_t*>(PageAt(summaries, pages[first + i]) + query.means_at);
      HalvesToFloats(means, channels, k + i * channels);
      HalvesToFloats(means + channels, channels, v + i * channels);
    }
    const AppendArgs args{.shape = shape,
                          .slab = scratch.slab,
                          .pages = scratch_pages_.data() + first / kScratchPageTokens,
                          .first_slot = 0,
                          .tokens = rows,
                          .k = k,
                          .v = v,
                          .stride = channels};
    kernels_->append(&args);
  }
  const uint32_t group = heads_ / shape.kv_heads;
  const uint32_t count = (n + kScratchPageTokens - 1) / kScratchPageTokens;
  const DecodeArgs args{.shape = shape,
                        .slab = scratch.slab,
                        .records = {},
                        .layout = {},
                        .view = {.pages = scratch_pages_.data(),
                                 .count = count,
                                 .last_tokens = n - (count - 1) * kScratchPageTokens,
                                 .space = MemorySpace::kHost},
                        .group = group,
                        .scale = scale_,
                        .q = query.q,
                        .out = out,
                        .scratch = scratch.decode,
                        .next_slab = {},
                        .next_view = {}};
  kernels_->attend_decode(&args);
  // n equal keys: their sum of exponentials is n times the one's.
  const float tokens = std::log(static_cast<float>(cache_->page_tokens()));
  for (uint32_t h = 0; h < group; ++h) out.m[h] += tokens;
}

}  // namespace tinyserve
