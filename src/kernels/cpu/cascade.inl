// The cascade over coded pages: pages, then tokens, then the rest by its mean.
// docs/kernels/cascade.md has the limits, the figures and what was tried.
#include "kernels/cpu/cascade_pages.inl"
#if TS_CASCADE_WORDS
#include "kernels/cpu/cascade_word_rows.inl"
#include "kernels/cpu/cascade_words.inl"
#else
#include "kernels/cpu/cascade_logits.inl"
#include "kernels/cpu/cascade_values.inl"
#endif

namespace tinyserve {
namespace {

uint64_t CascadeScratchBytes(const KvShape* shape, uint32_t group, uint32_t pages_max) {
  CascadeScratch unused;
  return LayCascadeScratch(*shape, group, pages_max, nullptr, &unused);
}

CascadeCounts AttendCascade(const CascadeArgs* args) {
  CascadeScratch s;
  LayCascadeScratch(args->shape, args->group, args->count, args->scratch, &s);
  CascadeCall call = {.args = *args, .s = s, .at = PlanesLayoutOf(args->shape.head_dim)};
  if (call.at.channels > kPlanesHeadDimMax) __builtin_trap();
  const uint32_t group = args->group;
  FindSpreads(call);
  CodeQueries(call);
  ForHeadPasses(call, [&]<uint32_t kHeads, uint32_t kChannels>(uint32_t head) {
    ScoreSpreads<kHeads, kChannels>(call, head);
  });
  call.candidates = ChooseCandidates(call);
  FindCandidates(call);
#if TS_CASCADE_WORDS
  const float radius = LargestRadius(call);
  ForHeadPasses(call, [&]<uint32_t kHeads, uint32_t kChannels>(uint32_t head) {
    ApproximateWords<kHeads, kChannels>(call, head, radius);
  });
#else
  ForHeadPasses(call, [&]<uint32_t kHeads, uint32_t kChannels>(uint32_t head) {
    ApproximateLogits<kHeads, kChannels>(call, head);
  });
#endif
  RankTokens(call);
  const uint32_t tokens = call.candidates * kPlanesTokens;
  const uint32_t least = RankOf(args->least_share * (float)group);
  const RankChoice<uint8_t> full(s.rank, tokens, args->full_tokens, least);
  const RankChoice<uint8_t> value(s.rank, tokens, args->value_tokens, least);
  for (uint32_t t = 0; t < tokens; t += kPlanesTokens) {
    const TokenMasks of_page = {(uint16_t)full.Mask(s.rank + t, t),
                                (uint16_t)value.Mask(s.rank + t, t)};
    s.masks[t / kPlanesTokens] = of_page;
  }
  for (uint64_t i = 0; i < group * s.row_channels; i += kLanes) Store(s.o + i, Zero());
#if TS_CASCADE_WORDS
  ForHeadPasses(call, [&]<uint32_t kHeads, uint32_t kChannels>(uint32_t head) {
    ListTokens<kHeads, kChannels>(call, head);
    WeighExactly<kHeads, kChannels>(call, head);
    AddExactRows<kHeads, kChannels>(call, head);
    AddRows<kHeads, kChannels>(call, head);
  });
  const uint32_t values = call.exact_tokens + call.value_rows;
#else
  ListTokens(call);
  ForHeadPasses(call, [&]<uint32_t kHeads, uint32_t kChannels>(uint32_t head) {
    WeighExactly<kHeads, kChannels>(call, head);
    ScaleWeights<kHeads, kChannels>(call, head);
    AddRows<kHeads, kChannels>(call, head);
  });
  const uint32_t values = call.value_rows - call.candidates;
#endif
  for (uint32_t h = 0; h < group; ++h) {
    args->out.m[h] = s.m[h] * kLn2;
    args->out.d[h] = s.d[h];
    StoreOutput(s.o + h * s.row_channels, args->shape.head_dim,
                args->out.o + (uint64_t)h * args->shape.head_dim);
  }
  if (args->chosen != nullptr) {
    __builtin_memcpy(args->chosen, s.candidates, call.candidates * sizeof(uint32_t));
  }
  return {args->count, call.candidates, call.exact_tokens, values};
}

}  // namespace
}  // namespace tinyserve
