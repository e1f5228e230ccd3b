#include "attend/unit_mass.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"

namespace tinyserve {
namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();

uint64_t RoundUp64(uint64_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

Result<std::unique_ptr<UnitMass>> UnitMass::Create(const KvCache* cache, const Kernels* kernels,
                                                   uint32_t heads, float scale, uint32_t threads) {
  std::unique_ptr<UnitMass> u(new UnitMass);
  u->cache_ = cache;
  u->kernels_ = kernels;
  u->heads_ = heads;
  u->scale_ = scale;
  u->units_max_ = cache->sequence_tokens_max() / cache->share_tokens() + 1;
  u->sums_.resize(cache->sequences_max());
  uint64_t group_max = 0;
  for (uint32_t g = 0; g < cache->groups(); ++g) {
    const uint32_t group = heads / cache->shape(g).kv_heads;
    group_max = std::max<uint64_t>(group_max, group);
    u->kv_heads_max_ = std::max(u->kv_heads_max_, cache->shape(g).kv_heads);
    for (const KvShape& shape : {cache->shape(g), cache->open_shape(g)}) {
      const uint64_t bytes = kernels->decode_scratch_bytes(&shape, group, cache->share_tokens());
      u->decode_bytes_ = std::max(u->decode_bytes_, RoundUp64(bytes));
      u->partial_floats_ = std::max<uint64_t>(u->partial_floats_, group * (shape.head_dim + 2ull));
    }
  }
  u->stride_ = u->decode_bytes_ + RoundUp64(u->partial_floats_ * sizeof(float)) +
               RoundUp64(group_max * u->units_max_ * sizeof(float));
  TS_ASSIGN_OR_RETURN(u->scratch_, Buffer::Allocate(u->stride_ * threads));
  return u;
}

void UnitMass::Settle() {
  for (size_t i = 0; i < queries_.size(); ++i) {
    if (layers_[i] == 0) continue;
    const uint32_t full = (queries_[i].position + 1) / cache_->share_tokens();
    std::vector<Sum>& sums = sums_[queries_[i].slot];
    if (sums.size() < full) sums.resize(full);
    for (uint32_t unit = 0; unit < full; ++unit) {
      sums[unit].mass += layers_mass_[i * units_max_ + unit] / layers_[i];
      ++sums[unit].queries;
    }
  }
  queries_.clear();
}

void UnitMass::Pick(const Query& query) {
  queries_.push_back(query);
  const size_t n = queries_.size();
  items_.resize(uint64_t{kTogether} * kv_heads_max_ * units_max_);
  layers_mass_.resize(std::max(layers_mass_.size(), n * units_max_));
  layers_.resize(std::max(layers_.size(), n));
  std::fill_n(layers_mass_.begin() + static_cast<long>((n - 1) * units_max_), units_max_, 0.0);
  layers_[n - 1] = 0;
}

void UnitMass::Attend(const DecodeArgs& args, uint32_t unit, float* logs) const {
  kernels_->attend_decode(&args);
  for (uint32_t h = 0; h < args.group; ++h) {
    float& log = logs[uint64_t{h} * units_max_ + unit];
    const float more = args.out.m[h] + std::log(args.out.d[h]), most = std::max(log, more);
    // A unit that is partly raw has two pieces.
    log = log == kNothing ? more : most + std::log1p(std::exp(std::min(log, more) - most));
  }
}

void UnitMass::Measure(uint32_t query, uint32_t group, uint32_t layer_in_group, uint32_t kv_head,
                       const float* q, uint32_t thread) {
  const auto [row, slot, position] = queries_[query];
  const KvShape shape = cache_->shape(group);
  const uint32_t g = heads_ / shape.kv_heads, unit_tokens = cache_->share_tokens();
  const uint32_t units = position / unit_tokens + 1;
  const bool coded = cache_->coded(group);
  const uint32_t raw = cache_->RawBegin(position), end = coded ? raw : position + 1;
  uint8_t* scratch = scratch_.data() + thread * stride_;
  float* partial = reinterpret_cast<float*>(scratch + decode_bytes_);
  float* logs = reinterpret_cast<float*>(scratch + decode_bytes_ +
                                         RoundUp64(partial_floats_ * sizeof(float)));
  for (uint32_t h = 0; h < g; ++h) std::fill_n(logs + uint64_t{h} * units_max_, units, kNothing);
  DecodeArgs args{.shape = shape,
                  .slab = cache_->slab(group, layer_in_group, kv_head),
                  .records = cache_->records(group, layer_in_group, kv_head),
                  .layout = cache_->meta_layout(group),
                  .view = {},
                  .group = g,
                  .scale = scale_,
                  .q = q,
                  .out = {.m = partial, .d = partial + g, .o = partial + 2 * g},
                  .scratch = scratch,
                  .next_slab = {},
                  .next_view = {}};
  for (uint32_t first = 0; first < end; first += unit_tokens) {
    args.view = cache_->View(slot, group, std::min(first + unit_tokens, end));
    args.view.pages += first / shape.page_tokens;
    args.view.count -= first / shape.page_tokens;
    Attend(args, first / unit_tokens, logs);
  }
  if (coded) {
    args.shape = cache_->open_shape(group);
    args.slab = cache_->open_slab(group, layer_in_group, kv_head);
    args.records = {};
    args.layout = {};
    args.view = cache_->OpenView(slot, group, raw, position + 1);
    Attend(args, raw / unit_tokens, logs);
  }
  float* item = ItemAt(query, kv_head);
  std::fill_n(item, units, 0.0f);
  for (uint32_t h = 0; h < g; ++h) {
    const float* log = logs + uint64_t{h} * units_max_;
    const float most = *std::max_element(log, log + units);
    float sum = 0;
    for (uint32_t unit = 0; unit < units; ++unit) sum += std::exp(log[unit] - most);
    for (uint32_t unit = 0; unit < units; ++unit)
      item[unit] += std::exp(log[unit] - most) / (sum * static_cast<float>(g));
  }
}

void UnitMass::AddLayer(uint32_t query, uint32_t kv_heads) {
  const uint32_t units = queries_[query].position / cache_->share_tokens() + 1;
  double* sum = layers_mass_.data() + uint64_t{query} * units_max_;
  for (uint32_t head = 0; head < kv_heads; ++head) {
    const float* item = ItemAt(query, head);
    for (uint32_t unit = 0; unit < units; ++unit) sum[unit] += double{item[unit]} / kv_heads;
  }
  ++layers_[query];
}

std::span<const float> UnitMass::Masses(SequenceSlot slot) {
  Settle();
  masses_.clear();
  for (const Sum& sum : sums_[slot]) {
    masses_.push_back(sum.queries == 0 ? std::numeric_limits<float>::infinity()
                                       : static_cast<float>(sum.mass / sum.queries));
  }
  return masses_;
}

void UnitMass::Drop(SequenceSlot slot, std::span<const uint32_t> units) {
  Settle();
  std::vector<Sum>& sums = sums_[slot];
  for (auto unit = units.rbegin(); unit != units.rend(); ++unit) {
    if (*unit < sums.size()) sums.erase(sums.begin() + *unit);
  }
}

}  // namespace tinyserve
