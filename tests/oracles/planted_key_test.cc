// A key that stands out at any depth of 8192 tokens is read under the published settings, whatever
// a small model could make of it; `moments`, which promises nothing, finds most. Keys of a page are
// alike, as a model's are. Chance, the control, misses most.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "attend/attention.h"
#include "kernels/targets.h"

namespace tinyserve {
namespace {

constexpr uint32_t kTokens = 8192, kGroup = 3, kHeadDim = 64, kPageTokens = 16, kChunk = 256;
constexpr float kScale = 0.125f;
// Places in the first, middle and last pages, also at a page's ends.
constexpr uint32_t kDepths[] = {37, 819, 2047, 2464, 4096, 4111, 5741, 7372, 8000};

class Rig {
 public:
  Rig(const std::string& spec, const char* kv) : threads_(2), kernels_(AvailableTargets().front()) {
    const Codec* codec = *FindCodec(kv);
    SelectorSpec parsed = *ParseSelector(spec);
    const tinyserve_shape shape{.struct_size = sizeof shape,
                                .layers = 1,
                                .kv_heads = 1,
                                .group = kGroup,
                                .head_dim = kHeadDim,
                                .page_tokens = kPageTokens,
                                .pages_max = kTokens / kPageTokens + 1,
                                .record_kinds = parsed.needs(codec->metadata) | codec->metadata,
                                .record_channels = kHeadDim};
    std::vector<SummaryPlace> places;
    const SelectorNeeds kept = *NeedsOf({&parsed, 1}, shape, &places);
    cache_ = *KvCache::Create({{.layers = 1, .kv_heads = 1, .head_dim = kHeadDim}},
                              {.codec = codec,
                               .page_tokens = kPageTokens,
                               .block_tokens = 32,
                               .memory_bytes = 32 << 20,
                               .sequences_max = 1,
                               .sequence_tokens_max = kTokens,
                               .kept = kept,
                               .uncommitted_tokens_max = kTokens},
                              kernels_);
    attention_ = *Attention::Create({.group_of_layer = {0},
                                     .heads = kGroup,
                                     .scale = kScale,
                                     .compute = Compute::kFast,
                                     .rows_max = kChunk},
                                    cache_.get(), kernels_, &threads_);
    if (parsed.table != nullptr) {
      selector_ = *Selector::Open(parsed, shape, *PlaceOf(parsed, shape, kept, places));
      attention_->AddSelector(selector_.get());
    }
    slot_ = *cache_->AddSequence();
  }

  // The last token's output over these keys and values.
  std::vector<float> Attend(const std::vector<float>& k, const std::vector<float>& v,
                            const std::vector<float>& q) {
    cache_->RemoveSequence(slot_);
    slot_ = *cache_->AddSequence();
    EXPECT_TRUE(cache_->Reserve(slot_, kTokens).ok());
    std::vector<float> out(q.size());
    for (uint32_t at = 0; at < kTokens;) {
      const bool last = at == kTokens - 1;
      const uint32_t rows = last ? 1 : std::min(kChunk, kTokens - 1 - at);
      const SequenceRun run{.slot = slot_,
                            .first_row = 0,
                            .rows = rows,
                            .first_position = at,
                            .token_class = last ? TokenClass::kGenerated : TokenClass::kPrompt,
                            .selector = last && selector_ != nullptr ? 1u : 0u};
      attention_->Plan({&run, 1});
      attention_->Append(0, &k[uint64_t{at} * kHeadDim], &v[uint64_t{at} * kHeadDim], kHeadDim);
      if (last) attention_->Run(0, q.data(), q.size(), out.data(), out.size());
      at += rows;
      if (!last) cache_->Commit(slot_, at);
    }
    EXPECT_EQ(attention_->selection_counts().failures, 0u);
    return out;
  }

 private:
  ThreadPool threads_;
  const Kernels* kernels_;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<Selector> selector_;
  std::unique_ptr<Attention> attention_;
  SequenceSlot slot_ = 0;
};

struct Text {
  std::vector<float> k, v;  // [token][channel]
  std::vector<float> q;     // [head][channel], alike
};

Text RandomText() {
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  Text text{.k = std::vector<float>(kTokens * kHeadDim),
            .v = std::vector<float>(kTokens * kHeadDim),
            .q = std::vector<float>(kGroup * kHeadDim)};
  std::vector<float> middle(kHeadDim), direction(kHeadDim);
  for (uint32_t t = 0; t < kTokens; ++t) {
    for (uint32_t c = 0; c < kHeadDim; ++c) {
      if (t % kPageTokens == 0) middle[c] = normal(random);
      text.k[t * kHeadDim + c] = middle[c] + 0.3f * normal(random);
    }
  }
  for (float& x : text.v) x = normal(random);
  for (float& x : direction) x = normal(random);
  for (uint32_t i = 0; i < text.q.size(); ++i)
    text.q[i] = 1.3f * direction[i % kHeadDim] + 0.3f * normal(random);
  return text;
}

double Distance(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    size += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference / size);
}

// How many of the depths' keys a selector reads, and dense attention's output shows: its output is
// then near that one, of which the key has nearly all of the weight.
uint32_t Found(const std::string& spec, const char* kv) {
  Rig rig(spec, kv), dense("full", "f16");
  const Text plain = RandomText();
  uint32_t found = 0;
  for (const uint32_t depth : kDepths) {
    Text text = plain;
    for (uint32_t c = 0; c < kHeadDim; ++c) text.k[depth * kHeadDim + c] = 1.3f * text.q[c];
    const std::vector<float> whole = dense.Attend(text.k, text.v, text.q);
    const std::vector<float> out = rig.Attend(text.k, text.v, text.q);
    std::vector<float> value;
    for (uint32_t i = 0; i < kGroup * kHeadDim; ++i)
      value.push_back(text.v[depth * kHeadDim + i % kHeadDim]);
    EXPECT_LT(Distance(whole, value), 0.25) << "dense attention itself, at " << depth;
    if (Distance(out, whole) < 0.1) ++found;
  }
  return found;
}

TEST(PlantedKey, IsFoundAtEveryDepthUnderPublishedSettings) {
  constexpr uint32_t kAll = std::size(kDepths);
  for (const char* spec : {"box:ratio=0.3", "hierarchical:ratio=0.3", "oracle:ratio=0.1"})
    EXPECT_EQ(Found(spec, "f16"), kAll) << spec;
  for (const char* spec : {"default", "cascade:ratio=0.3,values=0.1", "box:ratio=0.3"})
    EXPECT_EQ(Found(spec, "planes"), kAll) << spec << " over planes";
  for (const char* kv : {"int8", "int4"})
    EXPECT_EQ(Found("box:ratio=0.3", kv), kAll) << "box over " << kv;
}

// One key of sixteen moves its page's mean and variance little: 8 and 7 of 9 are found.
TEST(PlantedKey, IsFoundByMomentsMostly) {
  EXPECT_GE(Found("moments:ratio=0.3", "f16"), 7u);
  EXPECT_GE(Found("moments:ratio=0.1", "f16"), 6u);
}

TEST(PlantedKey, IsMissedByChanceAndOutOfTheWindow) {
  EXPECT_LE(Found("random:ratio=0.3", "f16"), 5u);
  EXPECT_LE(Found("streaming:ratio=0.3", "f16"), 4u);
}

}  // namespace
}  // namespace tinyserve
