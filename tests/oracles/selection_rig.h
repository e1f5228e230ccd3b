// A cache of one sequence of random keys and values, and an attention over it: what properties of
// selection are tested on.
#ifndef TINYSERVE_TESTS_ORACLES_SELECTION_RIG_H_
#define TINYSERVE_TESTS_ORACLES_SELECTION_RIG_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "attend/attention.h"
#include "kernels/targets.h"

namespace tinyserve {

inline constexpr uint32_t kLayers = 2, kHeads = 4, kKvHeads = 2, kHeadDim = 32, kTokens = 1000;
inline constexpr float kScale = 0.2f;
inline constexpr uint32_t kGroup = kHeads / kKvHeads, kPageTokens = 16;
inline constexpr uint32_t kPages = (kTokens + kPageTokens - 1) / kPageTokens;

class SelectionRig {
 public:
  SelectionRig(const Kernels* kernels, const std::vector<std::string>& specs, uint32_t chunk = 64,
               uint32_t threads = 2, const char* codec = "f16", uint32_t tokens = kTokens)
      : threads_(threads),
        kernels_(kernels),
        tokens_(tokens),
        k_(Random(1, 1, tokens)),
        v_(Random(2, 1, tokens)) {
    std::vector<SelectorSpec> parsed;
    uint32_t kinds = (*FindCodec(codec))->metadata;
    for (const std::string& spec : specs) {
      parsed.push_back(*ParseSelector(spec));
      kinds |= parsed.back().needs(kinds);
    }
    const tinyserve_shape shape{.struct_size = sizeof shape,
                                .layers = kLayers,
                                .kv_heads = kKvHeads,
                                .group = kGroup,
                                .head_dim = kHeadDim,
                                .page_tokens = kPageTokens,
                                .pages_max = tokens / kPageTokens + 1,
                                .record_kinds = kinds | (*FindCodec(codec))->metadata,
                                .record_channels = kHeadDim};
    std::vector<SummaryPlace> places;
    const SelectorNeeds kept = *NeedsOf(parsed, shape, &places);
    const std::vector<LayerGroup> groups = {
        {.layers = kLayers, .kv_heads = kKvHeads, .head_dim = kHeadDim}};
    cache_ = *KvCache::Create(groups,
                              {.codec = *FindCodec(codec),
                               .page_tokens = kPageTokens,
                               .block_tokens = 32,
                               .memory_bytes = uint64_t{tokens} << 13,
                               .sequences_max = 2,
                               .sequence_tokens_max = tokens,
                               .kept = kept,
                               .uncommitted_tokens_max = tokens},
                              kernels);
    for (const SelectorSpec& spec : parsed)
      selectors_.push_back(*Selector::Open(spec, shape, *PlaceOf(spec, shape, kept, places)));

    attention_ = *Attention::Create({.group_of_layer = {0, 0},
                                     .heads = kHeads,
                                     .scale = kScale,
                                     .compute = Compute::kFast,
                                     .rows_max = 64},
                                    cache_.get(), kernels, &threads_);
    for (const auto& selector : selectors_) attention_->AddSelector(selector.get());
    slot_ = *cache_->AddSequence();
    EXPECT_TRUE(cache_->Reserve(slot_, tokens).ok());
    Fill(chunk);
  }

  // Output of one generated token, at the last position or another.
  std::vector<float> Decode(uint32_t layer, const std::vector<float>& q, uint32_t selector,
                            uint32_t position = kTokens - 1) {
    const SequenceRun run{.slot = slot_,
                          .first_row = 0,
                          .rows = 1,
                          .first_position = position,
                          .token_class = TokenClass::kGenerated,
                          .selector = selector};
    attention_->Plan({&run, 1});
    std::vector<float> out(q.size());
    attention_->Run(layer, q.data(), q.size(), out.data(), out.size());
    return out;
  }

  // Overwrites the key of a token in every layer and head, and makes its page's records anew.
  void PlantKey(uint32_t token, const float* key) {
    std::copy(key, key + kHeadDim, &k_[uint64_t{token} * kKvHeads * kHeadDim]);
    std::copy(key, key + kHeadDim, &k_[(uint64_t{token} * kKvHeads + 1) * kHeadDim]);
    Fill(64);
  }

  // Makes the cache anew from these, [token][KV head][channel], the same in every layer.
  void SetTokens(std::vector<float> k, std::vector<float> v) {
    k_ = std::move(k);
    v_ = std::move(v);
    Fill(64);
  }

  static std::vector<float> Random(uint32_t seed, float scale, uint32_t tokens = kTokens) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0, scale);
    std::vector<float> x(uint64_t{tokens} * kKvHeads * kHeadDim);
    for (float& f : x) f = normal(random);
    return x;
  }

  // Keys, or values, as the last position reads them, [token][channel]; the first ones are in coded
  // pages where there are any.
  std::vector<float> Keys(uint32_t layer, uint32_t kv_head) const {
    return Stored(layer, kv_head).first;
  }
  std::vector<float> Values(uint32_t layer, uint32_t kv_head) const {
    return Stored(layer, kv_head).second;
  }

  // Each page's share of the attention of the last position, summed over the query heads of a KV
  // head, from the keys as they are read.
  std::vector<double> PageShares(uint32_t layer, uint32_t kv_head, const std::vector<float>& q) {
    const std::vector<float> keys = Keys(layer, kv_head);
    std::vector<double> shares(kPages);
    for (uint32_t h = kv_head * kGroup; h < (kv_head + 1) * kGroup; ++h) {
      std::vector<double> of_head(kPages);
      for (uint32_t t = 0; t < kTokens; ++t)
        of_head[t / kPageTokens] += std::exp(kScale * Dot(&q[h * kHeadDim], &keys[t * kHeadDim]));
      const double sum = std::accumulate(of_head.begin(), of_head.end(), 0.0);
      for (uint32_t p = 0; p < kPages; ++p) shares[p] += of_head[p] / sum;
    }
    return shares;
  }

  static double Dot(const float* a, const float* b) {
    return std::inner_product(a, a + kHeadDim, b, 0.0);
  }

  // Pages that the last position reads of those in the blocks, counted from the first one.
  std::vector<uint32_t> Chosen(uint32_t layer, uint32_t kv_head, const std::vector<float>& q,
                               uint32_t selector) {
    auto chooser = *PageChooser::Create(cache_.get(), kernels_, kLayers, kHeads, kScale, 1);
    chooser->BeginStep(1);
    const uint32_t held = cache_->coded(0) ? cache_->RawBegin(tokens_ - 1) : tokens_;
    const PageView view = cache_->View(slot_, 0, held);
    std::vector<uint32_t> pages((tokens_ + kPageTokens - 1) / kPageTokens);
    pages.resize(chooser->Choose({.selector = selectors_[selector - 1].get(),
                                  .group = 0,
                                  .layer = layer,
                                  .layer_in_group = layer,
                                  .kv_head = kv_head,
                                  .run = 0,
                                  .slot = slot_,
                                  .position = tokens_ - 1,
                                  .alone = true,
                                  .q = &q[uint64_t{kv_head} * kGroup * kHeadDim]},
                                 0, pages.data()));
    for (uint32_t& page : pages)
      page =
          static_cast<uint32_t>(std::find(view.pages, view.pages + view.count, page) - view.pages);
    return pages;
  }

  KvCache* cache() { return cache_.get(); }
  Attention* attention() { return attention_.get(); }
  SequenceSlot slot() const { return slot_; }

 private:
  std::pair<std::vector<float>, std::vector<float>> Stored(uint32_t layer, uint32_t kv_head) const {
    const uint32_t coded = cache_->coded(0) ? cache_->RawBegin(tokens_ - 1) : 0;
    std::vector<float> keys(uint64_t{tokens_} * kHeadDim), values(keys.size());
    for (uint32_t t = 0; t < tokens_; ++t) {
      const bool is_coded = t < coded;
      const uint32_t first = is_coded ? 0 : coded;
      const KvShape shape = is_coded ? cache_->shape(0) : cache_->open_shape(0);
      const KvSlab slab =
          is_coded ? cache_->slab(0, layer, kv_head) : cache_->open_slab(0, layer, kv_head);
      const PageView view =
          is_coded ? cache_->View(slot_, 0, coded) : cache_->OpenView(slot_, 0, first, tokens_);
      const uint32_t page = view.pages[(t - first) / kPageTokens];
      const uint8_t* spread = nullptr;
      if (is_coded) {
        spread =
            PageAt(cache_->records(0, layer, kv_head), page) + cache_->meta_layout(0).spread_at;
      }
      kernels_->read_token(&shape, PageAt(slab, page), slab.v_offset, spread, t % kPageTokens,
                           &keys[uint64_t{t} * kHeadDim], &values[uint64_t{t} * kHeadDim]);
    }
    return {keys, values};
  }

  void Fill(uint32_t chunk) {
    for (uint32_t at = 0; at < tokens_; at += chunk) {
      const SequenceRun run{.slot = slot_,
                            .first_row = 0,
                            .rows = std::min(chunk, tokens_ - at),
                            .first_position = at,
                            .token_class = TokenClass::kPrompt};
      attention_->Plan({&run, 1});
      const uint64_t stride = uint64_t{kKvHeads} * kHeadDim;
      for (uint32_t layer = 0; layer < kLayers; ++layer)
        attention_->Append(layer, &k_[at * stride], &v_[at * stride], stride);
    }
  }

  ThreadPool threads_;
  const Kernels* kernels_;
  uint32_t tokens_;
  std::vector<float> k_, v_;  // [token][kv head][channel], the same in every layer
  std::unique_ptr<KvCache> cache_;
  std::vector<std::unique_ptr<Selector>> selectors_;
  std::unique_ptr<Attention> attention_;
  SequenceSlot slot_ = 0;
};

inline std::vector<float> Query(uint32_t seed) {
  std::vector<float> q = SelectionRig::Random(seed, 1);
  q.resize(kHeads * kHeadDim);
  return q;
}

}  // namespace tinyserve

#endif  // TINYSERVE_TESTS_ORACLES_SELECTION_RIG_H_
