// The cascade (CascadeArgs in kernels.h) over coded pages: pages, then tokens, then the rest by its
// mean. docs/kernels/cascade.md has the limits, the figures and what was tried.
//
// Everything that is read often is multiplied as integers. Queries are coded once in 15 bits; a
// page's largest distances are multiplied into them for its keys, to 8 bits for approximate logits
// (their rounding is far below that of the keys' upper two bits) and to 15 for exact ones.
#include "kernels/cpu/attention_forms.inl"
#include "kernels/cpu/planes.inl"

namespace tinyserve {
namespace {

// The phases of a call are functions of their own in a profile.
#define TS_PHASE __attribute__((noinline))

constexpr uint32_t kCascadeHeads = 4;  // of one pass, at most
// The largest code of a query: times a distance of 255, over 2^15, it is 127.
constexpr float kQueryTop = 16320;
// Rows of values that are summed as integers before they are scaled: 64 * 2^15 * 2^7 < 2^31.
constexpr uint32_t kValueRows = 64;
// On targets without byte dots, 16-bit sums hold the products of upper codes of a lane.
static_assert(kPlanesHeadDimMax / 4 * 2 * 3 * 127 < 1 << 15);
// Candidates between the one that is read and the one that is prefetched.
constexpr uint32_t kCandidatesAhead = 3;

struct CascadeScratch {
  int16_t* q;            // [g][channels] codes
  float* q_scale;        // [g] base 2 logits
  float* mean_dot;       // [g][pages]
  float* scores;         // [g][pages]
  uint16_t* page_rank;   // [pages]
  uint32_t* candidates;  // [pages] of the call
  const uint8_t** page;  // [pages] of the candidates
  float* logits;         // [g][16 * pages], then weights, base 2
  uint8_t* rank;         // [16 * pages]
  float* m;              // [g]
  float* d;              // [g] without the open tokens
  float* o;              // [g][channels]
  uint64_t pages;        // rounded up to 32
};

TS_INLINE uint64_t LayCascadeScratch(const KvShape& shape, uint32_t group, uint32_t pages_max,
                                     void* at, CascadeScratch* out) {
  const uint64_t pages = RoundUp(pages_max, 32), channels = RoundUp(shape.head_dim, 16);
  const uint64_t heads = RoundUp(group, kLanes);
  uint64_t bytes = 0;
  const auto take = [&](auto** field, uint64_t count) {
    *field = (__decltype(*field + 0))((uintptr_t)at + bytes);
    bytes += (count * sizeof(**field) + kLineBytes - 1) / kLineBytes * kLineBytes;
  };
  out->pages = pages;
  take(&out->q, group * channels);
  take(&out->q_scale, heads);
  take(&out->mean_dot, group * pages);
  take(&out->scores, group * pages);
  take(&out->page_rank, pages);
  take(&out->candidates, pages);
  take(&out->page, pages + kCandidatesAhead);
  take(&out->logits, group * pages * kPlanesTokens);
  take(&out->rank, pages * kPlanesTokens);
  take(&out->m, heads);
  take(&out->d, heads);
  take(&out->o, heads * channels);
  return bytes;
}

// A call, what is derived from it, and its scratch.
struct CascadeCall {
  const CascadeArgs& args;
  const CascadeScratch& s;
  PlanesLayout at;
  uint32_t candidates;  // pages, once chosen

  TS_INLINE const uint8_t* Page(uint32_t p) const { return PageAt(args.slab, args.pages[p]); }
  TS_INLINE const uint8_t* Spread(uint32_t p) const {
    return PageAt(args.records, args.pages[p]) + args.layout.spread_at;
  }
  TS_INLINE bool Forced(uint32_t p) const { return p < args.sink || p >= args.count - args.recent; }
};

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
  const uint32_t dim = call.args.shape.head_dim;
  for (uint32_t h = 0; h < call.args.group; ++h) {
    const float* q = call.args.q + (uint64_t)h * dim;
    VF top = Zero();
    for (uint32_t c = 0; c < dim; c += kLanes) {
      top = Max(top, Abs(LoadFirst(q + c, Smaller(kLanes, dim - c))));
    }
    const float highest = MaxLanes(top), to_codes = CodesPerUnit(highest, kQueryTop);
    call.s.q_scale[h] = call.args.scale * kLog2E * highest * (1.0f / kQueryTop);
    for (uint32_t c = 0; c < call.at.channels; c += kLanes) {
      const uint32_t n = c < dim ? Smaller(kLanes, dim - c) : 0;
      alignas(64) int32_t codes[kLanes];
      StoreInt(codes, ToInt(Mul(LoadFirst(q + c, n), Set(to_codes))));
      for (uint32_t i = 0; i < kLanes; ++i) {
        call.s.q[(uint64_t)h * call.at.channels + c + i] = (int16_t)codes[i];
      }
    }
  }
}

// ---- 1: pages ----

TS_INLINE __m256i LoadWords(const int16_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
TS_INLINE __m256i SignedToWords(const void* p) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p));
}
TS_INLINE __m256i UnsignedToWords(const void* p) {
  return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)p));
}

// Sums of q * mean and of (q * distance / 2^11)^2 of one page.
template <uint32_t kHeads>
TS_INLINE void SpreadSums(const uint8_t* spread, uint32_t channels, const int16_t* q, __m256i* dots,
                          __m256i* squares, uint32_t stride) {
  __m256i dot[kHeads], square[kHeads];
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) { dot[h] = square[h] = _mm256_setzero_si256(); }
  const uint8_t* means = spread + sizeof(SpreadScales);
  for (uint32_t c = 0; c < channels; c += 16) {
    const __m256i mean = SignedToWords(means + c);
    const __m256i distance = _mm256_slli_epi16(UnsignedToWords(means + channels + c), 4);
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      const __m256i code = LoadWords(q + (uint64_t)h * channels + c);
      const __m256i product = _mm256_mulhrs_epi16(code, distance);
      dot[h] = _mm256_add_epi32(dot[h], _mm256_madd_epi16(code, mean));
      square[h] = _mm256_add_epi32(square[h], _mm256_madd_epi16(product, product));
      Pin(dot[h]);
      Pin(square[h]);
    }
  }
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
    dots[h * stride] = dot[h];
    squares[h * stride] = square[h];
  }
}

// Scores of all pages for kHeads heads from `head` on, and their q.mean.
template <uint32_t kHeads, uint32_t kChannels>
TS_PHASE void ScoreSpreads(const CascadeCall& call, uint32_t head) {
  constexpr uint32_t kPages = 4;
  const CascadeScratch& s = call.s;
  const uint32_t channels = kChannels != 0 ? kChannels : call.at.channels;
  const uint32_t count = call.args.count;
  const int16_t* q = s.q + (uint64_t)head * channels;
  for (uint32_t p = 0; p < count; p += kPages) {
    __m256i dots[kHeads][kPages], squares[kHeads][kPages];
    float scales[2][kPages];
    TS_UNROLL for (uint32_t i = 0; i < kPages; ++i) {
      const uint8_t* spread = call.Spread(Smaller(p + i, count - 1));
      SpreadScales of_page;
      __builtin_memcpy(&of_page, spread, sizeof of_page);
      scales[0][i] = of_page.mean;
      scales[1][i] = of_page.distance;
      SpreadSums<kHeads>(spread, channels, q, dots[0] + i, squares[0] + i, kPages);
    }
    const V4 mean_scale = _mm_loadu_ps(scales[0]), distance_scale = _mm_loadu_ps(scales[1]);
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      const V4 q_scale = _mm_set1_ps(s.q_scale[head + h]);
      const V4 sum = _mm_cvtepi32_ps(FoldFourInt(dots[h][0], dots[h][1], dots[h][2], dots[h][3]));
      const V4 square =
          _mm_cvtepi32_ps(FoldFourInt(squares[h][0], squares[h][1], squares[h][2], squares[h][3]));
      const V4 dot = _mm_mul_ps(_mm_mul_ps(sum, mean_scale), q_scale);
      const V4 far = _mm_mul_ps(_mm_mul_ps(_mm_sqrt_ps(square), distance_scale),
                                _mm_mul_ps(q_scale, _mm_set1_ps(call.args.alpha * 2048.0f)));
      _mm_storeu_ps(s.mean_dot + (head + h) * s.pages + p, dot);
      _mm_storeu_ps(s.scores + (head + h) * s.pages + p, _mm_add_ps(dot, far));
    }
  }
}

// The largest T for which at least n of the ranks are T or more, n >= 1; ranks past `count` up to
// whole vectors are 0.
template <class T>
TS_INLINE uint32_t RankThreshold(const T* ranks, uint32_t count, uint32_t n) {
  constexpr uint32_t kPerVector = 32 / sizeof(T);
  uint32_t threshold = 0;
  for (uint32_t bit = 1u << (8 * sizeof(T) - 1); bit != 0; bit >>= 1) {
    const uint32_t tried = threshold | bit;
    __m256i sums = _mm256_setzero_si256();
    uint32_t reached = 0;
    const __m256i least =
        sizeof(T) == 1 ? _mm256_set1_epi8((char)tried) : _mm256_set1_epi16((short)tried);
    for (uint32_t i = 0; i < count;) {
      // Counts of a byte's lane stay below 256.
      const uint32_t end = Smaller(count, i + 255 * kPerVector);
      __m256i lanes = _mm256_setzero_si256();
      for (; i < end; i += kPerVector) {
        const __m256i x = _mm256_loadu_si256((const __m256i*)(ranks + i));
        if constexpr (sizeof(T) == 1) {
          lanes = _mm256_sub_epi8(lanes, _mm256_cmpeq_epi8(_mm256_max_epu8(x, least), x));
        } else {
          lanes = _mm256_sub_epi8(
              lanes, _mm256_and_si256(_mm256_cmpeq_epi16(_mm256_max_epu16(x, least), x),
                                      _mm256_set1_epi16(255)));
        }
      }
      sums = _mm256_add_epi64(sums, _mm256_sad_epu8(lanes, _mm256_setzero_si256()));
    }
    alignas(32) uint64_t parts[4];
    _mm256_store_si256((__m256i*)parts, sums);
    reached = (uint32_t)(parts[0] + parts[1] + parts[2] + parts[3]);
    if (reached >= n) threshold = tried;
  }
  return threshold;
}

// How many of the ranks are above a threshold.
template <class T>
TS_INLINE uint32_t CountAbove(const T* ranks, uint32_t count, uint32_t threshold) {
  uint32_t above = 0;
  for (uint32_t i = 0; i < count; ++i) above += ranks[i] > threshold;
  return above;
}

TS_PHASE uint32_t ChooseCandidates(const CascadeCall& call) {
  const CascadeScratch& s = call.s;
  const uint32_t count = call.args.count, padded = RoundUp(count, 32);
  for (uint32_t h = 0; h < call.args.group; ++h) {
    float* row = s.scores + h * s.pages;
    for (uint32_t p = count; p < padded; ++p) row[p] = -__builtin_inff();
    VF top = Set(-__builtin_inff());
    for (uint32_t p = 0; p < count; p += kLanes) top = Max(top, Load(row + p));
    const VF highest = Set(MaxLanes(top));
    VF sum = Zero();
    for (uint32_t p = 0; p < padded; p += kLanes) {
      const VF e = ExpTwo<6>(Sub(Load(row + p), highest));
      Store(row + p, e);
      sum = Add(sum, e);
    }
    const VF scale = Set(1.0f / SumLanes(sum));
    for (uint32_t p = 0; p < padded; p += kLanes) {
      const VF share = Mul(Load(row + p), scale);
      Store(s.scores + p, h == 0 ? share : Add(Load(s.scores + p), share));
    }
  }
  if (call.args.candidates >= count) {
    for (uint32_t p = 0; p < count; ++p) s.candidates[p] = p;
    return count;
  }
  for (uint32_t p = 0; p < padded; p += kLanes) {
    alignas(64) int32_t bits[kLanes];
    StoreInt(bits, ShiftRight((VI)Load(s.scores + p), 16));
    for (uint32_t i = 0; i < kLanes; ++i) s.page_rank[p + i] = (uint16_t)bits[i];
  }
  for (uint32_t p = count; p < padded; ++p) s.page_rank[p] = 0;
  for (uint32_t p = 0; p < call.args.sink; ++p) s.page_rank[p] = 0xffff;
  for (uint32_t p = count - call.args.recent; p < count; ++p) s.page_rank[p] = 0xffff;
  const uint32_t threshold = RankThreshold<uint16_t>(s.page_rank, count, call.args.candidates);
  uint32_t ties = call.args.candidates - CountAbove<uint16_t>(s.page_rank, count, threshold);
  uint32_t n = 0;
  for (uint32_t p = 0; p < count; ++p) {
    const bool tie = s.page_rank[p] == threshold && ties > 0;
    ties -= tie;
    s.candidates[n] = p;
    n += tie || s.page_rank[p] > threshold;
  }
  return n;
}

// ---- 2: approximate logits ----

// c + the four products u8 * s8 of each lane, of which pairs are summed apart on a target without
// byte dots.
TS_INLINE __m256i AddUpperProducts(__m256i c, __m256i upper, __m256i q) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
  return _mm256_dpbusd_epi32(c, upper, q);
#elif defined(__AVXVNNI__)
  return _mm256_dpbusd_avx_epi32(c, upper, q);
#else
  return _mm256_add_epi16(c, _mm256_maddubs_epi16(upper, q));
#endif
}
#if (defined(__AVX512VNNI__) && defined(__AVX512VL__)) || defined(__AVXVNNI__)
TS_INLINE __m256i WidenUpperSums(__m256i sums) { return sums; }
#else
TS_INLINE __m256i WidenUpperSums(__m256i sums) {
  return _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
}
#endif

// Of the words of two groups of 16 channels packed to bytes: where the four of channels
// 16 * group + 4 * i .. + 3 lie.
TS_INLINE constexpr uint32_t PackedDword(uint32_t group, uint32_t i) {
  return i / 2 * 4 + group * 2 + i % 2;
}

// q times the page's distances over 2^15 as bytes, in the order of PackedDword, and their sums.
template <uint32_t kHeads>
TS_INLINE void ScaleQueries(const uint8_t* distances, uint32_t channels, const int16_t* q,
                            int8_t (*out)[kPlanesHeadDimMax], V4* sums) {
  __m256i total[4];
  TS_UNROLL for (uint32_t h = 0; h < 4; ++h) total[h] = _mm256_setzero_si256();
  for (uint32_t c = 0; c < channels; c += 32) {
    const bool second = c + 16 < channels;
    const __m256i low = UnsignedToWords(distances + c);
    const __m256i high = second ? UnsignedToWords(distances + c + 16) : _mm256_setzero_si256();
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      const int16_t* codes = q + (uint64_t)h * channels + c;
      const __m256i bytes =
          _mm256_packs_epi16(_mm256_mulhrs_epi16(LoadWords(codes), low),
                             _mm256_mulhrs_epi16(LoadWords(codes + (second ? 16 : 0)), high));
      _mm256_store_si256((__m256i*)(out[h] + c), bytes);
      const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
      total[h] = _mm256_add_epi32(total[h], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
  }
  *sums = _mm_cvtepi32_ps(FoldFourInt(total[0], total[1], total[2], total[3]));
}

// Sums over channels of upper codes (0 .. 3) times q8, of the page's tokens 0-7 and 8-15.
template <uint32_t kHeads>
TS_INLINE void UpperSums(const uint8_t* upper, uint32_t channels,
                         const int8_t (*q8)[kPlanesHeadDimMax], __m256i (&sums)[kHeads][2]) {
  const __m256i three = _mm256_set1_epi8(3);
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
    sums[h][0] = sums[h][1] = _mm256_setzero_si256();
  }
  // q8 holds two groups of 16 channels together.
  for (uint32_t c = 0; c < channels; c += 32, upper += 128) {
    TS_UNROLL for (uint32_t second = 0; second < 2; ++second) {
      if (second == 1 && c + 16 >= channels) break;
      const __m256i low = _mm256_load_si256((const __m256i*)(upper + second * 64));
      const __m256i high = _mm256_load_si256((const __m256i*)(upper + second * 64 + 32));
      TS_UNROLL for (uint32_t i = 0; i < 4; ++i) {
        const __m256i low_codes = _mm256_and_si256(_mm256_srli_epi16(low, 2 * (int)i), three);
        const __m256i high_codes = _mm256_and_si256(_mm256_srli_epi16(high, 2 * (int)i), three);
        TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
          int32_t four;
          __builtin_memcpy(&four, q8[h] + c + PackedDword(second, i) * 4, 4);
          const __m256i q = _mm256_set1_epi32(four);
          sums[h][0] = AddUpperProducts(sums[h][0], low_codes, q);
          sums[h][1] = AddUpperProducts(sums[h][1], high_codes, q);
          Pin(sums[h][0]);
          Pin(sums[h][1]);
        }
      }
    }
  }
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
    sums[h][0] = WidenUpperSums(sums[h][0]);
    sums[h][1] = WidenUpperSums(sums[h][1]);
  }
}

template <uint32_t kHeads, uint32_t kChannels>
TS_PHASE void ApproximateLogits(const CascadeCall& call, uint32_t head) {
  const CascadeScratch& s = call.s;
  const uint32_t channels = kChannels != 0 ? kChannels : call.at.channels;
  const uint32_t ahead_bytes = kChannels != 0 ? PlanesLayoutOf(kChannels).low_at : call.at.low_at;
  const uint64_t row = s.pages * kPlanesTokens;
  const int16_t* q = s.q + (uint64_t)head * channels;
  const float* mean_dot = s.mean_dot + head * s.pages;
  float* logits = s.logits + head * row;
  alignas(64) int8_t q8[kHeads][kPlanesHeadDimMax];
  __m256 top[kHeads];
  float scale[kHeads];
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
    top[h] = _mm256_set1_ps(-__builtin_inff());
    // Levels are (2 * code - 3) / 3 of the distance: in all 2/3 (sum of codes - 3/2 sum of ones).
    scale[h] = s.q_scale[head + h] * (32768.0f * 2 / 3);
  }
  for (uint32_t i = 0; i < call.candidates; ++i, logits += kPlanesTokens) {
    const uint32_t p = s.candidates[i];
    // The upper plane, the mean value and the scales lie together.
    const uint8_t* ahead = s.page[i + kCandidatesAhead];
    TS_UNROLL for (uint32_t b = 0; b < ahead_bytes; b += kLineBytes) PrefetchLine(ahead + b);
    const uint8_t* spread = call.Spread(p);
    SpreadScales scales;
    __builtin_memcpy(&scales, spread, sizeof scales);
    V4 totals;
    ScaleQueries<kHeads>(spread + sizeof scales + channels, channels, q, q8, &totals);
    float total[4];
    _mm_storeu_ps(total, totals);
    __m256i sums[kHeads][2];
    UpperSums<kHeads>(s.page[i], channels, q8, sums);
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      const float step = scale[h] * scales.distance;
      const __m256 steps = _mm256_set1_ps(step);
      const __m256 base = _mm256_set1_ps(mean_dot[h * s.pages + p] - 1.5f * step * total[h]);
      TS_UNROLL for (uint32_t half = 0; half < 2; ++half) {
        const __m256 x = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[h][half]), steps, base);
        _mm256_storeu_ps(logits + h * row + 8 * half, x);
        top[h] = _mm256_max_ps(top[h], x);
      }
    }
  }
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
    alignas(32) float lanes[8];
    _mm256_store_ps(lanes, top[h]);
    float highest = lanes[0];
    for (uint32_t i = 1; i < 8; ++i) highest = lanes[i] > highest ? lanes[i] : highest;
    s.m[head + h] = highest;
  }
}

// ---- 3: weights of tokens, and which of them read what ----

// Logits of the candidates become exp(logit - m), and each token gets the bin of its weight, summed
// over the heads as shares of the softmax over candidates and open tokens.
TS_PHASE void RankTokens(const CascadeCall& call) {
  const CascadeScratch& s = call.s;
  const uint32_t tokens = call.candidates * kPlanesTokens;
  float share[kLanes * 8];
  for (uint32_t h = 0; h < call.args.group; ++h) {
    float* row = s.logits + h * s.pages * kPlanesTokens;
    const float open_d = call.args.open.d[h];
    const float open_m = open_d == 0 ? -__builtin_inff() : call.args.open.m[h] * kLog2E;
    const float m = open_m > s.m[h] ? open_m : s.m[h];
    s.m[h] = m;
    VF sum = Zero();
    for (uint32_t t = 0; t < tokens; t += kLanes) {
      const VF p = ExpTwo<6>(Sub(Load(row + t), Set(m)));
      Store(row + t, p);
      sum = Add(sum, p);
    }
    s.d[h] = SumLanes(sum);
    float open = 0;
    if (open_d != 0) {
      StoreFirst(&open, 1, Mul(Set(open_d), ExpTwo<6>(Set(open_m - m))));
    }
    share[h] = 1.0f / (s.d[h] + open);
  }
  // Bins of 1/8 octave up to 2^4, which no weight reaches; 255 is left to pages that are forced.
  const VI lowest = SetInt((127 + 4) * 8 - 255);
  for (uint32_t t = 0; t < tokens; t += kLanes) {
    VF weight = Zero();
    for (uint32_t h = 0; h < call.args.group; ++h) {
      weight = Fma(Load(s.logits + h * s.pages * kPlanesTokens + t), Set(share[h]), weight);
    }
    const VF bin = ToFloat(SubInt(ShiftRight((VI)weight, 20), lowest));
    const VI rank = ToInt(Min(Max(bin, Set(1)), Set(254)));
    StoreBytesUnsigned(s.rank + t, rank);
  }
  for (uint32_t i = 0; i < call.candidates; ++i) {
    if (!call.Forced(s.candidates[i])) continue;
    _mm_storeu_si128((__m128i*)(s.rank + i * kPlanesTokens), _mm_set1_epi8((char)255));
  }
  for (uint32_t t = tokens; t < RoundUp(tokens, 32); ++t) s.rank[t] = 0;
}

// Marks the tokens of largest rank, page by page, the first of equals.
struct TokenChoice {
  uint32_t threshold, ties;

  TS_PHASE TokenChoice(const uint8_t* ranks, uint32_t tokens, uint32_t n) : threshold(0), ties(0) {
    if (n >= tokens) return;  // every candidate's rank is above 0
    if (n == 0) {
      threshold = 255;
      return;
    }
    threshold = RankThreshold<uint8_t>(ranks, tokens, n);
    ties = n - CountAbove<uint8_t>(ranks, tokens, threshold);
  }

  TS_INLINE uint32_t Mask(const uint8_t* ranks) {
    const __m128i x = _mm_loadu_si128((const __m128i*)ranks);
    const __m128i at_least = _mm_cmpeq_epi8(_mm_max_epu8(x, _mm_set1_epi8((char)threshold)), x);
    const __m128i equal = _mm_cmpeq_epi8(x, _mm_set1_epi8((char)threshold));
    uint32_t tied = (uint32_t)_mm_movemask_epi8(equal);
    const uint32_t above = (uint32_t)_mm_movemask_epi8(at_least) & ~tied;
    uint32_t taken = (uint32_t)__builtin_popcount(tied);
    while (taken > ties) {
      tied &= ~(1u << (31 - (uint32_t)__builtin_clz(tied)));
      --taken;
    }
    ties -= taken;
    return above | tied;
  }
};

// ---- 4: exact logits ----

// Sixteen crumbs at p as bytes, in the order of channels.
TS_INLINE __m128i ExpandCrumbs(const uint8_t* p) {
  int32_t bits;
  __builtin_memcpy(&bits, p, 4);
  const __m128i shifted = _mm_srlv_epi32(_mm_set1_epi32(bits), _mm_setr_epi32(0, 2, 4, 6));
  return _mm_and_si128(shifted, _mm_set1_epi8(3));
}

// The page's distances times q over 2^8, [head][channels], for exact logits.
template <uint32_t kHeads>
TS_INLINE void ScaleQueriesExactly(const uint8_t* distances, uint32_t channels, const int16_t* q,
                                   int16_t (*out)[kPlanesHeadDimMax]) {
  for (uint32_t c = 0; c < channels; c += 16) {
    const __m256i distance = _mm256_slli_epi16(UnsignedToWords(distances + c), 7);
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      const __m256i code = LoadWords(q + (uint64_t)h * channels + c);
      _mm256_store_si256((__m256i*)(out[h] + c), _mm256_mulhrs_epi16(code, distance));
    }
  }
}

// Sums over channels of a token's codes, less 128, times q16, a lane for each head.
template <uint32_t kHeads>
TS_INLINE V4 ExactSums(const PlanesLayout& at, const uint8_t* page, uint32_t t,
                       const int16_t (*q16)[kPlanesHeadDimMax]) {
  const uint8_t* low = page + at.low_at + t * at.low_bytes;
  __m256i sums[4];
  TS_UNROLL for (uint32_t h = 0; h < 4; ++h) sums[h] = _mm256_setzero_si256();
  for (uint32_t group = 0; group < at.channels / 16; ++group) {
    const __m128i upper = ExpandCrumbs(page + at.upper_at + group * 64 + t * 4);
    const __m128i crumbs = ExpandCrumbs(low + at.channels / 2 + group * 4);
    const __m128i packed = _mm_loadl_epi64((const __m128i*)(low + group * 8));
    const __m128i nibbles =
        _mm_and_si128(_mm_unpacklo_epi64(packed, _mm_srli_epi16(packed, 4)), _mm_set1_epi8(15));
    const __m128i code =
        _mm_or_si128(_mm_or_si128(_mm_slli_epi16(upper, 6), _mm_slli_epi16(crumbs, 4)), nibbles);
    const __m256i offset = _mm256_cvtepi8_epi16(_mm_xor_si128(code, _mm_set1_epi8((char)0x80)));
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      sums[h] =
          _mm256_add_epi32(sums[h], _mm256_madd_epi16(offset, LoadWords(q16[h] + group * 16)));
    }
  }
  return _mm_cvtepi32_ps(FoldFourInt(sums[0], sums[1], sums[2], sums[3]));
}

// Replaces the weights of the page's tokens in `mask` by those of their exact logits. i: the
// candidate.
template <uint32_t kHeads, uint32_t kChannels>
TS_PHASE void WeighExactly(const CascadeCall& call, uint32_t head, uint32_t i, uint32_t mask) {
  const CascadeScratch& s = call.s;
  const PlanesLayout at = kChannels != 0 ? PlanesLayoutOf(kChannels) : call.at;
  const uint32_t p = s.candidates[i], channels = at.channels;
  const uint64_t row = s.pages * kPlanesTokens;
  const uint8_t* spread = call.Spread(p);
  SpreadScales scales;
  __builtin_memcpy(&scales, spread, sizeof scales);
  alignas(64) int16_t q16[kHeads][kPlanesHeadDimMax];
  ScaleQueriesExactly<kHeads>(spread + sizeof scales + channels, channels,
                              s.q + (uint64_t)head * channels, q16);
  float step[kLanes] = {}, base[kLanes] = {};
  for (uint32_t h = 0; h < kHeads; ++h) {
    step[h] = s.q_scale[head + h] * scales.distance * (256.0f / kPlanesTop);
    base[h] = s.mean_dot[(head + h) * s.pages + p] - s.m[head + h];
  }
  const VF steps = Load(step), bases = Load(base);
  float* weights = s.logits + head * row + i * kPlanesTokens;
  for (uint32_t left = mask; left != 0; left &= left - 1) {
    const uint32_t t = (uint32_t)__builtin_ctz(left);
    float sums[kLanes] = {};
    _mm_storeu_ps(sums, ExactSums<kHeads>(at, s.page[i], t, q16));
    // A weight may pass 1, where the approximate logits missed the largest: by less than 2^126.
    const VF y = Min(Fma(Load(sums), steps, bases), Set(100.0f));
    float exact[kLanes];
    Store(exact, ExpTwo<6>(y));
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      s.d[head + h] += exact[h] - weights[h * row + t];
      weights[h * row + t] = exact[h];
    }
  }
}

// ---- 5: values ----

// Rows of signed bytes with a weight for each head, on their way to the sums.
template <uint32_t kHeads>
struct ValueRows {
  const int8_t* rows[kValueRows];
  alignas(64) float weights[kHeads][kValueRows];
  uint32_t count;
};

// Sums over pairs of rows, from column c on, of rows times weights: kGroups times 16 columns, as
// [head][group][columns 0-3, 8-11; 4-7, 12-15].
template <uint32_t kHeads, uint32_t kGroups>
TS_INLINE void SumPairs(const int8_t* const* rows, uint32_t pair_count, uint32_t c,
                        const int32_t (&pairs)[kHeads][kValueRows / 2],
                        __m256i (&sums)[kHeads][2 * kGroups]) {
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
    TS_UNROLL for (uint32_t v = 0; v < 2 * kGroups; ++v) sums[h][v] = _mm256_setzero_si256();
  }
  for (uint32_t r = 0; r < pair_count; ++r) {
    const int8_t* a = rows[2 * r] + c;
    const int8_t* b = rows[2 * r + 1] + c;
    TS_UNROLL for (uint32_t group = 0; group < kGroups; ++group) {
      const __m256i x = SignedToWords(a + 16 * group), y = SignedToWords(b + 16 * group);
      const __m256i low = _mm256_unpacklo_epi16(x, y), high = _mm256_unpackhi_epi16(x, y);
      TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
        const __m256i weight = _mm256_set1_epi32(pairs[h][r]);
        __m256i& first = sums[h][2 * group];
        __m256i& then = sums[h][2 * group + 1];
        first = _mm256_add_epi32(first, _mm256_madd_epi16(low, weight));
        then = _mm256_add_epi32(then, _mm256_madd_epi16(high, weight));
        Pin(first);
        Pin(then);
      }
    }
  }
}

// o += weights * rows for kHeads heads; rows become none. Weights are coded in 15 bits with a scale
// for the rows of the call.
template <uint32_t kHeads, uint32_t kChannels>
TS_PHASE void AddRows(ValueRows<kHeads>& rows, uint32_t runtime_channels, float* o) {
  constexpr float kWeightTop = 32767;
  // Sums of two groups of columns and three heads fill the registers.
  constexpr uint32_t kGroups = kChannels != 0 && kHeads <= 3 ? 2 : 1;
  const uint32_t channels = kChannels != 0 ? kChannels : runtime_channels;
  if (rows.count == 0) return;
  alignas(64) int32_t pairs[kHeads][kValueRows / 2];
  float back[kHeads];
  const uint32_t padded = RoundUp(rows.count, kLanes * 2);
  for (uint32_t r = rows.count; r < padded; ++r) {
    rows.rows[r] = rows.rows[0];
    for (uint32_t h = 0; h < kHeads; ++h) rows.weights[h][r] = 0;
  }
  for (uint32_t h = 0; h < kHeads; ++h) {
    const float top = TopOf(rows.weights[h], padded), to_codes = CodesPerUnit(top, kWeightTop);
    back[h] = top * (1.0f / kWeightTop);
    for (uint32_t r = 0; r < padded; r += kLanes) {
      StoreWords((int16_t*)pairs[h] + r, ToInt(Mul(Load(rows.weights[h] + r), Set(to_codes))));
    }
  }
  for (uint32_t c = 0; c < channels; c += 16 * kGroups) {
    __m256i sums[kHeads][2 * kGroups];
    SumPairs<kHeads, kGroups>(rows.rows, (rows.count + 1) / 2, c, pairs, sums);
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      const __m256 scale = _mm256_set1_ps(back[h]);
      TS_UNROLL for (uint32_t group = 0; group < kGroups; ++group) {
        const __m256 low = _mm256_cvtepi32_ps(sums[h][2 * group]);
        const __m256 high = _mm256_cvtepi32_ps(sums[h][2 * group + 1]);
        float* to = o + (uint64_t)h * channels + c + group * 16;
        _mm256_storeu_ps(to, _mm256_fmadd_ps(_mm256_permute2f128_ps(low, high, 0x20), scale,
                                             _mm256_loadu_ps(to)));
        _mm256_storeu_ps(to + 8, _mm256_fmadd_ps(_mm256_permute2f128_ps(low, high, 0x31), scale,
                                                 _mm256_loadu_ps(to + 8)));
      }
    }
  }
  rows.count = 0;
}

// The weights of a page's tokens times their values' scales, and what the tokens out of `mask`
// weigh together.
template <uint32_t kHeads>
TS_INLINE void ScaleWeights(const float* weights, uint64_t row, const uint8_t* scales,
                            uint32_t mask, float (&scaled)[kHeads][kPlanesTokens],
                            float (&rest)[kHeads]) {
  const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  __m256 others[kHeads];
  TS_UNROLL for (uint32_t half = 0; half < 2; ++half) {
    const __m128i halves = _mm_load_si128((const __m128i*)scales + half);
    const __m256 scale = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
    const __m256i in = _mm256_and_si256(_mm256_set1_epi32((int)(mask >> 8 * half)), bits);
    const __m256 chosen = _mm256_castsi256_ps(_mm256_cmpeq_epi32(in, bits));
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
      const __m256 weight = _mm256_loadu_ps(weights + h * row + 8 * half);
      _mm256_store_ps(scaled[h] + 8 * half, _mm256_mul_ps(weight, scale));
      const __m256 other = _mm256_andnot_ps(chosen, weight);
      others[h] = half == 0 ? other : _mm256_add_ps(others[h], other);
    }
  }
  TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(others[h]), _mm256_extractf128_ps(others[h], 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    rest[h] = _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
  }
}

// Lists the candidate's tokens in `mask` with their values, the others with the page's mean.
template <uint32_t kHeads, uint32_t kChannels>
TS_INLINE void ListRows(const CascadeCall& call, uint32_t head, uint32_t i, uint32_t mask,
                        ValueRows<kHeads>& rows) {
  const PlanesLayout at = kChannels != 0 ? PlanesLayoutOf(kChannels) : call.at;
  const uint64_t row = call.s.pages * kPlanesTokens;
  const uint8_t* page = call.s.page[i];
  alignas(64) float scaled[kHeads][kPlanesTokens];
  float rest[kHeads], mean_scale;
  __builtin_memcpy(&mean_scale, page + at.scales_at + 2 * kPlanesTokens, 4);
  ScaleWeights<kHeads>(call.s.logits + head * row + i * kPlanesTokens, row, page + at.scales_at,
                       mask, scaled, rest);
  uint32_t n = rows.count;
  const uint8_t* values = page + at.v_at;
  for (uint32_t left = mask; left != 0; left &= left - 1, ++n) {
    const uint32_t t = (uint32_t)__builtin_ctz(left);
    const uint8_t* value = values + t * at.channels;
    rows.rows[n] = (const int8_t*)value;
    TS_UNROLL for (uint32_t b = 0; b < at.channels; b += kLineBytes) PrefetchLine(value + b);
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) rows.weights[h][n] = scaled[h][t];
  }
  if (mask != 0xffff) {
    rows.rows[n] = (const int8_t*)page + at.mean_v_at;
    TS_UNROLL for (uint32_t h = 0; h < kHeads; ++h) rows.weights[h][n] = rest[h] * mean_scale;
    ++n;
  }
  rows.count = n;
}

// Tokens chosen to be read in full, and those whose value is read, by candidate.
struct TokenMasks {
  uint16_t full, value;
};

template <uint32_t kHeads, uint32_t kChannels>
TS_PHASE void AddCandidates(const CascadeCall& call, uint32_t head, const TokenMasks* masks) {
  ValueRows<kHeads> lists[2];
  lists[0].count = lists[1].count = 0;
  uint32_t filling = 0;
  const uint32_t channels = call.at.channels, low_bytes = call.at.low_bytes;
  float* o = call.s.o + (uint64_t)head * channels;
  for (uint32_t i = 0; i < call.candidates; ++i) {
    // Rows are added up while those of the other list are on their way to the caches.
    if (lists[filling].count + kPlanesTokens + 1 > kValueRows) {
      filling ^= 1;
      AddRows<kHeads, kChannels>(lists[filling], channels, o);
    }
    const uint32_t ahead = Smaller(i + 2 * kCandidatesAhead, call.candidates - 1);
    for (uint32_t left = masks[ahead].full; left != 0; left &= left - 1) {
      const uint8_t* low =
          call.s.page[ahead] + call.at.low_at + (uint32_t)__builtin_ctz(left) * low_bytes;
      for (uint32_t b = 0; b < low_bytes; b += kLineBytes) PrefetchLine(low + b);
      PrefetchLine(low + low_bytes - 1);
    }
    if (masks[i].full != 0) WeighExactly<kHeads, kChannels>(call, head, i, masks[i].full);
    ListRows<kHeads, kChannels>(call, head, i, masks[i].value, lists[filling]);
  }
  AddRows<kHeads, kChannels>(lists[filling ^ 1], channels, o);
  AddRows<kHeads, kChannels>(lists[filling], channels, o);
}

// ---- entries of the table ----

uint64_t CascadeScratchBytes(const KvShape* shape, uint32_t group, uint32_t pages_max) {
  CascadeScratch unused;
  return LayCascadeScratch(*shape, group, pages_max, nullptr, &unused);
}

CascadeCounts AttendCascade(const CascadeArgs* args) {
  CascadeScratch s;
  LayCascadeScratch(args->shape, args->group, args->count, args->scratch, &s);
  CascadeCall call = {*args, s, PlanesLayoutOf(args->shape.head_dim), 0};
  if (call.at.channels > kPlanesHeadDimMax) __builtin_trap();
  const uint32_t group = args->group, channels = call.at.channels;
  CodeQueries(call);
  ForHeadPasses(call, [&]<uint32_t kHeads, uint32_t kChannels>(uint32_t head) {
    ScoreSpreads<kHeads, kChannels>(call, head);
  });
  call.candidates = ChooseCandidates(call);
  for (uint32_t i = 0; i < call.candidates + kCandidatesAhead; ++i) {
    s.page[i] = call.Page(s.candidates[Smaller(i, call.candidates - 1)]);
  }
  ForHeadPasses(call, [&]<uint32_t kHeads, uint32_t kChannels>(uint32_t head) {
    ApproximateLogits<kHeads, kChannels>(call, head);
  });
  RankTokens(call);
  const uint32_t tokens = call.candidates * kPlanesTokens;
  TokenChoice full(s.rank, tokens, args->full_tokens), value(s.rank, tokens, args->value_tokens);
  // Ranks are read once more, and give way to the masks.
  TokenMasks* masks = (TokenMasks*)s.rank;
  for (uint32_t i = 0; i < call.candidates; ++i) {
    const uint8_t* ranks = s.rank + i * kPlanesTokens;
    const TokenMasks of_page = {(uint16_t)full.Mask(ranks), (uint16_t)value.Mask(ranks)};
    masks[i] = of_page;
  }
  for (uint64_t i = 0; i < (uint64_t)group * channels; i += kLanes) Store(s.o + i, Zero());
  ForHeadPasses(call, [&]<uint32_t kHeads, uint32_t kChannels>(uint32_t head) {
    AddCandidates<kHeads, kChannels>(call, head, masks);
  });
  for (uint32_t h = 0; h < group; ++h) {
    args->out.m[h] = s.m[h] * kLn2;
    args->out.d[h] = s.d[h];
    for (uint32_t c = 0; c < args->shape.head_dim; c += kLanes) {
      StoreFirst(args->out.o + (uint64_t)h * args->shape.head_dim + c,
                 Smaller(kLanes, args->shape.head_dim - c), Load(s.o + (uint64_t)h * channels + c));
    }
  }
  if (args->chosen != nullptr) {
    __builtin_memcpy(args->chosen, s.candidates, call.candidates * sizeof(uint32_t));
  }
  return {args->count, call.candidates, Smaller(args->full_tokens, tokens),
          Smaller(args->value_tokens, tokens)};
}

}  // namespace
}  // namespace tinyserve
