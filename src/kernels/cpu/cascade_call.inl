// A call of the cascade (CascadeArgs in kernels.h) with its scratch, and its queries.
//
// Everything that is read often is multiplied as integers. Queries are coded once in 15 bits; a
// page's largest distances are multiplied into them for its keys, to 8 bits for approximate logits
// (their rounding is far below that of the keys' upper two bits) and to 15 for exact ones.
#ifndef TINYSERVE_KERNELS_CPU_CASCADE_CALL_INL_
#define TINYSERVE_KERNELS_CPU_CASCADE_CALL_INL_

#include "kernels/cpu/attention_forms.inl"
#include "kernels/cpu/planes.inl"

namespace tinyserve {
namespace {

// Without byte dots and masks, logits and weights of candidates are 16-bit words
// (cascade_words.inl); elsewhere they are f32 (cascade_values.inl).
#if !defined(__AVX512F__) && !defined(__AVXVNNI__)
#define TS_CASCADE_WORDS 1
#else
#define TS_CASCADE_WORDS 0
#endif

// The phases of a call are functions of their own in a profile.
#define TS_PHASE __attribute__((noinline))

constexpr uint32_t kCascadeHeads = 4;  // of one pass, at most
// The largest code of a query: times a distance of 255, over 2^15, it is 127.
constexpr float kQueryTop = 16320;
// On targets without byte dots, 16-bit sums hold the products of upper codes of a lane.
static_assert(kPlanesHeadDimMax / 4 * 2 * 3 * 127 < 1 << 15);
// Records between those scored and those prefetched: what a hardware prefetcher loses at the end of
// a run of pages.
constexpr uint32_t kRecordsAhead = 32;
// Pages that are scored at once.
constexpr uint32_t kPagesScored = 4;
// Candidates between the one that is read and the one that is prefetched.
constexpr uint32_t kCandidatesAhead = 24;

// Tokens of a page that are read in full, and those whose value is read.
struct TokenMasks {
  uint16_t full, value;
};

// What is listed at the ends of the scratch's lists by whole vectors, or read by whole steps.
constexpr uint32_t kListSlack = 64;
static_assert(kCandidatesAhead <= kListSlack);

struct CascadeScratch {
  int16_t* q;              // [g][channels] codes
  float* q_scale;          // [g] base 2 logits
  float* q_far;            // [g] alpha times the query's norm, in base 2 logits
  const uint8_t** spread;  // [pages] of all pages, then the last one's again
  float* mean_scale;       // [pages] of the records
  float* radius;           // [pages]
  float* mean_dot;         // [g][pages], sums of codes before FinishScores
  float* scores;           // [g][pages]
  uint16_t* page_rank;     // [pages]
  uint32_t* candidates;    // [pages] of the call
  const uint8_t** page;    // [pages] of the candidates
#if TS_CASCADE_WORDS
  uint16_t* words;             // [g][16 * pages] logits as int16, then weights as bfloat16
  int32_t* top_word;           // [g] the largest logit
  float* exact_weights;        // [16 * pages][kCascadeHeads] times the scales of the values
  float* mean_weights;         // [pages][kCascadeHeads] of the candidates' means, likewise
  uint16_t* row_words;         // [kCascadeHeads][row_count] weights of the rows
  uint16_t* row_scales;        // [row_count] of their values
  const uint8_t** exact_rows;  // [16 * pages] values of the tokens that are read in full
#else
  float* logits;       // [g][16 * pages], then weights, base 2
  float* row_weights;  // [kCascadeHeads][row_count]
#endif
  uint8_t* rank;         // [16 * pages]
  float* m;              // [g] the best score, then what weights are relative to, base 2
  float* d;              // [g] without the open tokens
  float* share;          // [g] what makes a weight a share of the softmax
  TokenMasks* masks;     // [pages] of the candidates
  uint32_t* exact_page;  // [pages] candidates of which tokens are read in full
  uint32_t* exact;       // [16 * pages] such tokens: 16 * index in exact_page + token
  const uint8_t** rows;  // [17 * pages] of values, a page's mean behind its tokens
  float* o;              // [g][row_channels], in the order of OutputAt
  uint64_t pages;        // rounded up to 64
  uint64_t row_channels;
  uint64_t row_count;  // that rows may hold, padding included
};

TS_INLINE uint64_t LayCascadeScratch(const KvShape& shape, uint32_t group, uint32_t pages_max,
                                     void* at, CascadeScratch* out) {
  const uint64_t pages = RoundUp(pages_max, 64), channels = RoundUp(shape.head_dim, 16);
  const uint64_t heads = RoundUp(group, kLanes);
  uint64_t bytes = 0;
  const auto take = [&](auto** field, uint64_t count) {
    *field = (__decltype(*field + 0))((uintptr_t)at + bytes);
    bytes += (count * sizeof(**field) + kLineBytes - 1) / kLineBytes * kLineBytes;
  };
  out->pages = pages;
  out->row_count = pages * (kPlanesTokens + 1) + kListSlack;
  out->row_channels = RoundUp(shape.head_dim, 4 * kLanes);
  // Whole vectors are read at the end of a head's queries.
  take(&out->q, group * channels + 2 * kWordLanes);
  take(&out->q_scale, heads);
  take(&out->q_far, heads);
  take(&out->spread, pages + kRecordsAhead + kPagesScored);
  take(&out->mean_scale, pages);
  take(&out->radius, pages);
  take(&out->mean_dot, group * pages);
  take(&out->scores, group * pages);
  take(&out->page_rank, pages);
  take(&out->candidates, pages + kListSlack);
  take(&out->page, pages + kCandidatesAhead);
#if TS_CASCADE_WORDS
  take(&out->words, group * pages * kPlanesTokens);
  take(&out->top_word, heads);
  take(&out->exact_weights, (pages * kPlanesTokens + kListSlack) * kCascadeHeads);
  take(&out->mean_weights, (pages + kListSlack) * kCascadeHeads);
  take(&out->row_words, kCascadeHeads * out->row_count);
  take(&out->row_scales, out->row_count);
  take(&out->exact_rows, pages * kPlanesTokens + kListSlack);
#else
  take(&out->logits, group * pages * kPlanesTokens);
  take(&out->row_weights, kCascadeHeads * out->row_count);
#endif
  take(&out->rank, pages * kPlanesTokens);
  take(&out->m, heads);
  take(&out->d, heads);
  take(&out->share, heads);
  take(&out->masks, pages);
  take(&out->exact_page, pages);
  take(&out->exact, pages * kPlanesTokens + kListSlack);
  take(&out->rows, out->row_count);
  take(&out->o, heads * out->row_channels);
  return bytes;
}

// A call, what is derived from it, and its scratch.
struct CascadeCall {
  const CascadeArgs& args;
  const CascadeScratch& s;
  PlanesLayout at;
  uint32_t candidates;  // pages, once chosen
  // What is listed: pages with tokens that are read in full, such tokens, rows of values; and how
  // many of those have been prefetched.
  uint32_t exact_pages, exact_tokens, value_rows, rows_prefetched;

  TS_INLINE const uint8_t* Page(uint32_t p) const { return PageAt(args.slab, args.pages[p]); }
};

// What a page's distances are multiplied by.
TS_INLINE float DistanceScale(const uint8_t* page, const PlanesLayout& at) {
  float scale;
  __builtin_memcpy(&scale, page + at.scales_at + offsetof(PlanesScales, distance), sizeof scale);
  return scale;
}

// first, first + 1 .. first + 15 by lane.
TS_INLINE void CountFrom(uint32_t first, VI (&lanes)[kTokenVectors]) {
  static constexpr int32_t kCount[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  TS_UNROLL for (uint32_t v = 0; v < kTokenVectors; ++v) {
    lanes[v] = AddInt(LoadInt(kCount + v * kLanes), SetInt((int32_t)first));
  }
}

// Calls f with the number of heads of each pass and that of channels as constants, and the pass's
// first head. 0 channels: not a constant.
template <uint32_t kChannels, class F>
TS_INLINE void ForPasses(uint32_t group, F f) {
  for (uint32_t head = 0; head < group;) {
    const uint32_t left = group - head;
    // 5 heads are taken as 3 + 2: one alone would cost nearly what four do.
    const uint32_t heads = left <= kCascadeHeads ? left : left == 5 ? 3 : kCascadeHeads;
    switch (heads) {
      case 1:
        f.template operator()<1, kChannels>(head);
        break;
      case 2:
        f.template operator()<2, kChannels>(head);
        break;
      case 3:
        f.template operator()<3, kChannels>(head);
        break;
      default:
        f.template operator()<4, kChannels>(head);
        break;
    }
    head += heads;
  }
}
template <class F>
TS_INLINE void ForHeadPasses(const CascadeCall& call, F f) {
  if (call.at.channels == 64) return ForPasses<64>(call.args.group, f);
  ForPasses<0>(call.args.group, f);
}

TS_PHASE void CodeQueries(const CascadeCall& call) {
  const uint32_t dim = call.args.shape.head_dim, channels = call.at.channels;
  for (uint32_t h = 0; h < call.args.group; ++h) {
    const float* q = call.args.q + (uint64_t)h * dim;
    const float unit = CodeQuery(q, dim, channels, kQueryTop, call.s.q + (uint64_t)h * channels);
    const VF to_codes = Set(unit == 0 ? 0.0f : 1.0f / unit);
    VF squares = Zero();
    for (uint32_t c = 0; c < dim; c += kLanes) {
      const VF x = Mul(LoadFirst(q + c, Smaller(kLanes, dim - c)), to_codes);
      squares = Fma(x, x, squares);
    }
    call.s.q_scale[h] = call.args.scale * kLog2E * unit;
    call.s.q_far[h] = call.args.alpha * call.s.q_scale[h] * Sqrt(SumLanes(squares));
  }
}

}  // namespace
}  // namespace tinyserve

#endif  // TINYSERVE_KERNELS_CPU_CASCADE_CALL_INL_
