// The cascade over coded pages: pages, then tokens, then the rest by its mean.
// docs/kernels/cascade.md has the limits, the figures and what was tried.
#include "kernels/cpu/cascade_call.inl"
#include "kernels/cpu/cascade_values.inl"

namespace tinyserve {
namespace {

// ---- 1: pages ----

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

// Records between those scored and those prefetched: what a hardware prefetcher loses at the end of
// a run of pages.
constexpr uint32_t kRecordsAhead = 16;

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
      const uint8_t* ahead = call.Spread(Smaller(p + i + kRecordsAhead, count - 1));
      PrefetchLine(ahead);
      PrefetchLine(ahead + kLineBytes);
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

// The n largest of some ranks: all above the threshold, and the first `ties` of those at it.
struct RankCut {
  uint32_t threshold, ties;
};

// Whole vectors are read: ranks past `count` are 0. REQUIRES: 0 < n <= count.
template <class T>
TS_INLINE RankCut CutRanks(const T* ranks, uint32_t count, uint32_t n) {
  constexpr uint32_t kPerVector = 32 / sizeof(T);
  // Counts of a byte's lane stay below 256.
  constexpr uint32_t kStretch = 252 * kPerVector;
  uint32_t threshold = 0, above = 0;
  for (uint32_t bit = 1u << (8 * sizeof(T) - 1); bit != 0; bit >>= 1) {
    const uint32_t tried = threshold | bit;
    const __m256i least =
        sizeof(T) == 1 ? _mm256_set1_epi8((char)tried) : _mm256_set1_epi16((short)tried);
    __m256i sums = _mm256_setzero_si256();
    for (uint32_t begin = 0; begin < count; begin += kStretch) {
      const uint32_t end = Smaller(count, begin + kStretch);
      __m256i lanes = _mm256_setzero_si256();
#pragma GCC unroll 4
      for (uint32_t i = begin; i < end; i += kPerVector) {
        const __m256i x = _mm256_loadu_si256((const __m256i*)(ranks + i));
        if constexpr (sizeof(T) == 1) {
          lanes = _mm256_sub_epi8(lanes, _mm256_cmpeq_epi8(_mm256_max_epu8(x, least), x));
        } else {
          // One, in the lower byte of its lane.
          lanes = _mm256_add_epi8(
              lanes, _mm256_srli_epi16(_mm256_cmpeq_epi16(_mm256_max_epu16(x, least), x), 15));
        }
      }
      sums = _mm256_add_epi64(sums, _mm256_sad_epu8(lanes, _mm256_setzero_si256()));
    }
    alignas(32) uint64_t parts[4];
    _mm256_store_si256((__m256i*)parts, sums);
    const uint32_t reached = (uint32_t)(parts[0] + parts[1] + parts[2] + parts[3]);
    if (reached >= n) {
      threshold = tried;
    } else {
      above = reached;  // the last one that is too large is the threshold's successor
    }
  }
  return {threshold, n - above};
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
    StoreWords(s.page_rank + p, ShiftRight((VI)Load(s.scores + p), 16));
  }
  for (uint32_t p = count; p < padded; ++p) s.page_rank[p] = 0;
  for (uint32_t p = 0; p < call.args.sink; ++p) s.page_rank[p] = 0xffff;
  for (uint32_t p = count - call.args.recent; p < count; ++p) s.page_rank[p] = 0xffff;
  RankCut cut = CutRanks<uint16_t>(s.page_rank, count, call.args.candidates);
  uint32_t n = 0;
  for (uint32_t p = 0; p < count; ++p) {
    const uint32_t tie = (s.page_rank[p] == cut.threshold) & (cut.ties > 0);
    cut.ties -= tie;
    s.candidates[n] = p;
    n += tie | (s.page_rank[p] > cut.threshold);
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

// Ranks of tokens: bins of the sums of their weights, each times its head's share.
TS_INLINE void RankWeights(const CascadeCall& call, uint32_t tokens) {
  // Bins of 1/8 octave up to 2^4, which no weight reaches; 255 is left to pages that are forced.
  const __m256i lowest = _mm256_set1_epi32((127 + 4) * 8 - 255);
  const uint64_t row = call.s.pages * kPlanesTokens;
  for (uint32_t t = 0; t < tokens; t += 32) {
    __m256 sums[4];
    TS_UNROLL for (uint32_t i = 0; i < 4; ++i) sums[i] = _mm256_setzero_ps();
    const float* weights = call.s.logits + t;
    for (uint32_t h = 0; h < call.args.group; ++h, weights += row) {
      const __m256 factor = _mm256_set1_ps(call.s.share[h]);
      TS_UNROLL for (uint32_t i = 0; i < 4; ++i) {
        sums[i] = _mm256_fmadd_ps(_mm256_loadu_ps(weights + 8 * i), factor, sums[i]);
      }
    }
    __m256i bins[4];
    TS_UNROLL for (uint32_t i = 0; i < 4; ++i) {
      bins[i] = _mm256_sub_epi32(_mm256_srli_epi32(_mm256_castps_si256(sums[i]), 20), lowest);
    }
    const __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(bins[0], bins[1]),
                                              _mm256_packs_epi32(bins[2], bins[3]));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i ranks = _mm256_permutevar8x32_epi32(bytes, order);
    _mm256_storeu_si256(
        (__m256i*)(call.s.rank + t),
        _mm256_min_epu8(_mm256_max_epu8(ranks, _mm256_set1_epi8(1)), _mm256_set1_epi8((char)254)));
  }
}

// Logits of the candidates become exp(logit - m), and each token gets the bin of its weight, summed
// over the heads as shares of the softmax over candidates and open tokens.
TS_PHASE void RankTokens(const CascadeCall& call) {
  const CascadeScratch& s = call.s;
  const uint32_t tokens = call.candidates * kPlanesTokens;
  for (uint32_t h = 0; h < call.args.group; ++h) {
    float* row = s.logits + h * s.pages * kPlanesTokens;
    const float open_d = call.args.open.d[h];
    const float open_m = open_d == 0 ? -__builtin_inff() : call.args.open.m[h] * kLog2E;
    const float m = open_m > s.m[h] ? open_m : s.m[h];
    s.m[h] = m;
    VF sum = Zero();
    for (uint32_t t = 0; t < tokens; t += kLanes) {
      const VF p = ExpTwo<4>(Sub(Load(row + t), Set(m)));
      Store(row + t, p);
      sum = Add(sum, p);
    }
    s.d[h] = SumLanes(sum);
    float open = 0;
    if (open_d != 0) {
      StoreFirst(&open, 1, Mul(Set(open_d), ExpTwo<6>(Set(open_m - m))));
    }
    s.share[h] = 1.0f / (s.d[h] + open);
  }
  RankWeights(call, tokens);
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
    const RankCut cut = CutRanks<uint8_t>(ranks, tokens, n);
    threshold = cut.threshold;
    ties = cut.ties;
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
