// Prompt attention: blocks of query rows against tiles of 64 keys at absolute positions from 0,
// with a running maximum in base-2 units (flash style).
//
// Keys that a row may not see are left out of its maximum, sum and weights: a row's result is the
// same bits whatever rows share the call, and whether or not a tile is filled.
#include "kernels/cpu/attention_tiles.inl"
#include "kernels/cpu/coded.inl"

namespace tinyserve {
namespace {

// Query rows (positions times heads) that share a conversion of the tiles. More would not pay: at
// this many the outputs, 96 KB, still fit the second-level cache, and conversion is a few percent.
constexpr uint32_t kBlockRowsMax = 384;
constexpr uint32_t kRegisterRowsMax = 6;

struct PromptScratch {
  char* q;         // [block rows][padded dim / kPer] lanes
  float* q_scale;  // [block rows]
  float* o;        // [block rows][padded dim], relative to m
  float* m;        // [block rows] largest logit so far, base 2
  float* d;        // [block rows]
  KeyTile keys;
  ValueTile values;
  float* x;       // [kRegisterRowsMax][kTileKeys] logits, then weights
  char* weights;  // [kRegisterRowsMax][kTileKeys / kPer] lanes
  float* pages;   // a tile of coded pages, unpacked, or of small ones, joined
};

TS_INLINE uint32_t BlockPositions(uint32_t group) {
  return group >= kBlockRowsMax ? 1 : kBlockRowsMax / group;
}

// Lays the scratch out from `at`, large enough for every form; returns its bytes. Null `at`: only
// the bytes.
TS_INLINE uint64_t LayPromptScratch(const KvShape& shape, uint32_t group, uint32_t rows, void* at,
                                    PromptScratch* out) {
  const uint64_t block_rows = (uint64_t)Smaller(rows, BlockPositions(group)) * group;
  const uint64_t dim = PaddedDim(shape);
  uint64_t bytes = 0;
  const auto take = [&](auto** field, uint64_t lanes) {
    *field = (__decltype(*field + 0))((uintptr_t)at + bytes);
    bytes += (lanes * 4 + kLineBytes - 1) / kLineBytes * kLineBytes;
  };
  take(&out->q, block_rows * dim);
  take(&out->q_scale, block_rows);
  take(&out->o, block_rows * dim);
  take(&out->m, block_rows);
  take(&out->d, block_rows);
  take(&out->keys.lanes, kTileKeys * dim);
  take(&out->keys.scale, kTileKeys);
  take(&out->keys.offset, kTileKeys);
  take(&out->values.lanes, kTileKeys * dim);
  take(&out->values.scale, kTileKeys);
  take(&out->x, kRegisterRowsMax * kTileKeys);
  take(&out->weights, kRegisterRowsMax * kTileKeys);
  take(&out->pages, UnpackedFloats(shape.head_dim));
  return bytes;
}

// The rows of one block: row r is head r % group of position first_position + r / group.
struct RowBlock {
  uint32_t first_position;
  uint32_t rows;
  uint32_t group;
  const float* q;
  uint64_t q_stride;

  TS_INLINE const float* Query(uint32_t r, uint32_t dim) const {
    return q + r / group * q_stride + (uint64_t)(r % group) * dim;
  }
  // Keys of the tile from `key` that row r sees.
  TS_INLINE uint32_t Visible(uint32_t r, uint32_t key) const {
    const uint32_t end = first_position + r / group + 1;
    return end <= key ? 0 : Smaller(kTileKeys, end - key);
  }
};

// Packs the block's queries, times the scale of logits in base 2.
template <class Form>
void PackQueries(const RowBlock& block, uint32_t dim, uint32_t v_stride, float scale,
                 const PromptScratch& s) {
  const VF base2 = Set(scale * kLog2E);
  for (uint32_t r = 0; r < block.rows; ++r) {
    const float* q = block.Query(r, dim);
    char* out = s.q + (uint64_t)r * v_stride * 4 / Form::kPer;
    VF inverse = Zero();
    if constexpr (Form::kScaled) {
      VF top = Zero();
      for (uint32_t c = 0; c < dim; c += kLanes) {
        top = Max(top, Abs(Mul(LoadFirst(q + c, Smaller(kLanes, dim - c)), base2)));
      }
      VF q_scale;
      ScalesOf(Set(MaxLanes(top)), Form::QueryMax(dim), &inverse, &q_scale);
      // Never 0: a masked logit of -inf is multiplied by it.
      StoreFirst(s.q_scale + r, 1, Max(q_scale, Set(1e-37f)));
    }
    for (uint32_t c = 0; c < dim; c += kLanes, out += kVectorBytes / Form::kPer) {
      const VF x = Mul(LoadFirst(q + c, Smaller(kLanes, dim - c)), base2);
      if constexpr (Form::kScaled) {
        Form::StoreQuery(out, ToInt(Mul(x, inverse)));
      } else {
        Store((float*)out, x);
      }
    }
    s.m[r] = -__builtin_inff();
    s.d[r] = 0;
  }
  for (uint64_t i = 0; i < (uint64_t)block.rows * v_stride; i += kLanes) Store(s.o + i, Zero());
}

// Logits of kRows rows for the first `keys` keys of the tile, without the rows' own scales.
template <class Form, uint32_t kRows, uint32_t kVectors>
TS_INLINE void LogitColumns(const char* q, uint64_t q_stride, uint32_t steps, uint32_t key,
                            const PromptScratch& s) {
  typename Form::Acc acc[kRows][kVectors];
  MultiplyLanes<Form, kRows, kVectors>(q, s.keys.lanes + key * 4, {q_stride, kTileKeys * 4}, steps,
                                       acc);
  TS_UNROLL for (uint32_t i = 0; i < kVectors; ++i) {
    const uint32_t at = key + i * kLanes;
    TS_UNROLL for (uint32_t r = 0; r < kRows; ++r) {
      float* x = s.x + r * kTileKeys + at;
      if constexpr (!Form::kScaled) {
        Store(x, Form::ToF32(acc[r][i]));
      } else {
        VI sum = acc[r][i];
        if (Form::kOffset) sum = AddInt(sum, LoadInt(s.keys.offset + at));
        Store(x, Mul(Form::ToF32(sum), Load(s.keys.scale + at)));
      }
    }
  }
}

// Vectors of a tile that a register block takes at a time.
constexpr uint32_t kColumnVectors = kLanes == 16 ? 4 : 2;

template <class Form, uint32_t kRows>
TS_INLINE void Logits(const char* q, uint64_t q_stride, uint32_t steps, uint32_t keys,
                      const PromptScratch& s) {
  uint32_t key = 0;
  for (; key + (kColumnVectors - 1) * kLanes < keys; key += kColumnVectors * kLanes) {
    LogitColumns<Form, kRows, kColumnVectors>(q, q_stride, steps, key, s);
  }
  for (; key < keys; key += kLanes) LogitColumns<Form, kRows, 1>(q, q_stride, steps, key, s);
}

// What one tile means to kRows rows: what it makes of their sums so far, and what its weights'
// packed products are to be multiplied by.
struct TileEffect {
  float rescale[kLanes];
  float back[kLanes];
};

// Lanes of a vector at key t that a row sees.
TS_INLINE uint32_t LanesSeen(uint32_t visible, uint32_t t) {
  return visible <= t ? 0 : Smaller(kLanes, visible - t);
}

// Moves the running maxima m of kRows rows. Where kRagged, rows see fewer than `keys` keys: the
// rest of their logits becomes -inf.
template <class Forms, uint32_t kRows, bool kRagged>
TS_INLINE void MoveMaxima(const uint32_t* visible, uint32_t keys, const float* q_scale, float* x,
                          float* m, float* rescale) {
  const VF lowest = Set(-__builtin_inff());
  VF top[kRows];
  TS_UNROLL for (uint32_t r = 0; r < kRows; ++r) top[r] = lowest;
  for (uint32_t t = 0; t < keys; t += kLanes) {
    TS_UNROLL for (uint32_t r = 0; r < kRows; ++r) {
      VF logits = Load(x + r * kTileKeys + t);
      if (kRagged) {
        logits = SelectFirst(LanesSeen(visible[r], t), logits, lowest);
        Store(x + r * kTileKeys + t, logits);
      }
      top[r] = Max(top[r], logits);
    }
  }
  float change[kLanes] = {};
  TS_UNROLL for (uint32_t r = 0; r < kRows; ++r) {
    const float highest = MaxLanes(top[r]);
    const float tile_m = Forms::Keys::kScaled ? highest * q_scale[r] : highest;
    const float before = m[r];
    m[r] = tile_m > before ? tile_m : before;
    change[r] = before - m[r];
  }
  Store(rescale, ExpTwo<Forms::kExpDegree>(Load(change)));
}

// Turns the logits x of kRows rows into weights and adds them to the sums d. Where values are
// scaled, multiplies the weights by those scales, and leaves in top what shall become the largest
// code: of each row the largest weight, or the largest sum of four that are summed in 16 bits.
template <class Forms, uint32_t kRows, bool kRagged>
TS_INLINE void Weigh(const uint32_t* visible, uint32_t keys, const float* q_scale, const float* m,
                     const float* rescale, const float* v_scale, float* x, float* d, float* top) {
  using Values = typename Forms::Values;
  VF sum[kRows], highest[kRows][2], scale[kRows], minus_m[kRows];
  TS_UNROLL for (uint32_t r = 0; r < kRows; ++r) {
    sum[r] = highest[r][0] = highest[r][1] = Zero();
    scale[r] = Set(q_scale[r]);
    minus_m[r] = Set(-m[r]);
  }
  for (uint32_t group = 0; group < keys; group += 4 * kLanes) {
    TS_UNROLL for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t t = group + i * kLanes;
      if (t >= keys) break;
      TS_UNROLL for (uint32_t r = 0; r < kRows; ++r) {
        float* at = x + r * kTileKeys + t;
        const VF logit = Load(at);
        const VF y =
            Forms::Keys::kScaled ? Fma(logit, scale[r], minus_m[r]) : Add(logit, minus_m[r]);
        VF p = ExpTwo<Forms::kExpDegree>(y);
        if (kRagged) p = SelectFirst(LanesSeen(visible[r], t), p, Zero());
        sum[r] = Add(sum[r], p);
        if constexpr (Values::kScaled) {
          p = Mul(p, Load(v_scale + t));
          // Members 0 and 1 of a lane share a 16-bit sum, and 2 and 3, with those of the other
          // half.
          VF& h = highest[r][Values::kPairSums ? i / 2 : 0];
          h = Values::kPairSums ? Add(h, p) : Max(h, p);
        }
        Store(at, p);
      }
    }
  }
  TS_UNROLL for (uint32_t r = 0; r < kRows; ++r) {
    d[r] = d[r] * rescale[r] + SumLanes(sum[r]);
    if constexpr (Values::kScaled) top[r] = MaxLanes(Max(highest[r][0], highest[r][1]));
  }
}

constexpr uint32_t WeightRowBytes(uint32_t per) { return kTileKeys * 4 / per; }

// Packs the weights x of kRows rows, each with a scale of its own.
template <class Form, uint32_t kRows>
TS_INLINE void PackWeights(uint32_t keys, const float* x, const float* top, char* weights,
                           float* back) {
  constexpr uint32_t kPer = Form::kPer, kGroupKeys = kPer * kLanes;
  float inverse[kLanes];
  VF to_codes, from_codes;
  ScalesOf(Load(top), Form::WeightMax(), &to_codes, &from_codes);
  Store(inverse, to_codes);
  Store(back, from_codes);
  // Pairs of halves are multiplied whole, so that the second is packed even where it is empty.
  const uint32_t end = Form::kPairSums ? kTileKeys : keys;
  for (uint32_t group = 0; group < end; group += kGroupKeys, weights += kVectorBytes) {
    TS_UNROLL for (uint32_t r = 0; r < kRows; ++r) {
      VI lane = ZeroInt();
      TS_UNROLL for (uint32_t i = 0; i < kPer; ++i) {
        const uint32_t t = group + i * kLanes;
        if (t >= keys) break;
        const VI codes = ToInt(Mul(Load(x + r * kTileKeys + t), Set(inverse[r])));
        // No code is negative.
        lane = i == 0 ? codes : Or(lane, ShiftLeft(codes, (int)(i * 32 / kPer)));
      }
      StoreInt(weights + r * WeightRowBytes(kPer), lane);
    }
  }
}

// Logits x of kRows rows to packed weights.
template <class Forms, uint32_t kRows, bool kRagged>
TS_INLINE TileEffect SoftmaxRows(const uint32_t* visible, uint32_t keys, uint32_t r0,
                                 const PromptScratch& s) {
  using Values = typename Forms::Values;
  TileEffect effect;
  float top[kLanes] = {};
  MoveMaxima<Forms, kRows, kRagged>(visible, keys, s.q_scale + r0, s.x, s.m + r0, effect.rescale);
  Weigh<Forms, kRows, kRagged>(visible, keys, s.q_scale + r0, s.m + r0, effect.rescale,
                               s.values.scale, s.x, s.d + r0, top);
  if constexpr (Values::kScaled) {
    PackWeights<Values, kRows>(keys, s.x, top, s.weights, effect.back);
  }
  return effect;
}

// o = o * rescale + weights * values for kVectors vectors of channels.
template <class Form, uint32_t kRows, uint32_t kVectors>
TS_INLINE void ValueColumns(const uint32_t* visible, uint32_t keys, uint32_t v_stride,
                            uint32_t channel, const TileEffect& effect, float* o,
                            const PromptScratch& s) {
  typename Form::Acc acc[kRows][kVectors];
  const char* tile = s.values.lanes + channel * 4;
  const ProductStrides stride = {WeightRowBytes(Form::kPer), (uint64_t)v_stride * 4};
  if constexpr (!Form::kScaled) {
    MultiplyLanes<Form, kRows, kVectors>((const char*)s.x, tile, stride, keys, acc);
  } else if constexpr (Form::kPairSums) {
    MultiplyPairs<kRows, kVectors>(s.weights, tile, stride, Smaller(keys, kLanes), acc);
  } else {
    MultiplyLanes<Form, kRows, kVectors>(s.weights, tile, stride, ValueSteps<Form>(keys), acc);
  }
  TS_UNROLL for (uint32_t r = 0; r < kRows; ++r) {
    if (visible[r] == 0) continue;
    const VF keep = Set(effect.rescale[r]);
    TS_UNROLL for (uint32_t i = 0; i < kVectors; ++i) {
      float* at = o + (uint64_t)r * v_stride + channel + i * kLanes;
      const VF sum = Form::ToF32(acc[r][i]), kept = Mul(Load(at), keep);
      Store(at, Form::kScaled ? Fma(sum, Set(effect.back[r]), kept) : Add(sum, kept));
    }
  }
}

// Rows r0 .. r0 + kRows - 1 of the block against the tile of keys from `key`.
template <class Forms, uint32_t kRows>
void AttendRows(const RowBlock& block, uint32_t r0, uint32_t key, uint32_t dim, uint32_t v_stride,
                const PromptScratch& s) {
  using Keys = typename Forms::Keys;
  using Values = typename Forms::Values;
  static_assert(kRows <= kRegisterRowsMax && kRows <= kLanes);
  // Positions rise with the rows, so the last one sees most.
  const uint32_t keys = block.Visible(r0 + kRows - 1, key);
  if (keys == 0) return;
  uint32_t visible[kRows];
  for (uint32_t r = 0; r < kRows; ++r) visible[r] = block.Visible(r0 + r, key);
  const uint64_t q_stride = (uint64_t)v_stride * 4 / Keys::kPer;
  Logits<Keys, kRows>(s.q + r0 * q_stride, q_stride, (dim + Keys::kPer - 1) / Keys::kPer, keys, s);
  const TileEffect effect = visible[0] == kTileKeys
                                ? SoftmaxRows<Forms, kRows, false>(visible, keys, r0, s)
                                : SoftmaxRows<Forms, kRows, true>(visible, keys, r0, s);
  float* o = s.o + (uint64_t)r0 * v_stride;
  uint32_t c = 0;
  for (; c + kColumnVectors * kLanes <= v_stride; c += kColumnVectors * kLanes) {
    ValueColumns<Values, kRows, kColumnVectors>(visible, keys, v_stride, c, effect, o, s);
  }
  for (; c < v_stride; c += kLanes) {
    ValueColumns<Values, kRows, 1>(visible, keys, v_stride, c, effect, o, s);
  }
}

// A register block of rows is so many parts of the work on a tile (Pace).
constexpr uint32_t kRowsParts = 4;
// And so is the unpacking of a tile of coded pages.
constexpr uint32_t kUnpackParts = 8;

// All rows against the tile of keys from `key`.
template <class Forms>
void AttendTile(const RowBlock& block, uint32_t key, uint32_t dim, uint32_t v_stride, Pace& pace,
                const PromptScratch& s) {
  constexpr uint32_t kRows = Forms::Keys::kRows;
  for (uint32_t r = 0; r < block.rows;) {
    const uint32_t left = block.rows - r;
    const uint32_t taken = left >= kRows ? kRows : left >= 2 ? 2 : 1;
    pace.Go(kRowsParts);
    if (taken == kRows) {
      AttendRows<Forms, kRows>(block, r, key, dim, v_stride, s);
    } else if (taken == 2) {
      AttendRows<Forms, 2>(block, r, key, dim, v_stride, s);
    } else {
      AttendRows<Forms, 1>(block, r, key, dim, v_stride, s);
    }
    r += taken;
  }
}

// The tile of keys and values of whole coded pages from absolute position `key` on.
template <class Forms>
void MakeSealedTiles(const PromptArgs& args, uint32_t key, Pace& pace, const PromptScratch& s) {
  const SealedKeys& sealed = args.sealed;
  const uint32_t dim = args.shape.head_dim, first = key / kUnitTokens;
  Unit<PageF32> units[kBlockUnits];
  for (uint32_t u = first + kBlockUnits; u < Smaller(first + 2 * kBlockUnits, sealed.view.count);
       ++u) {
    const char* record = (const char*)PageAt(sealed.records, sealed.view.pages[u]);
    for (uint32_t b = sealed.layout.spread_at; b < sealed.layout.record_bytes; b += kLineBytes)
      PrefetchLine(record + b);
  }
  pace.Go(kUnpackParts / 2);
  UnpackUnits(sealed.shape, sealed.slab, sealed.records, sealed.layout, sealed.view.pages + first,
              kBlockUnits, s.pages, units);
  pace.Go(kUnpackParts / 2);
  MakeKeyTile<typename Forms::Keys, PageF32>(units, kTileKeys, dim, kUnitTokens, pace, s.keys);
  MakeValueTile<typename Forms::Values, PageF32>(units, kTileKeys, PaddedDim(args.shape), pace,
                                                 s.values);
}

// The tile of `tokens` tokens in open pages, the view's from the `first`-th on.
template <class Forms, class Page>
void MakeOpenTiles(const PromptArgs& args, uint32_t first, uint32_t tokens, Pace& pace,
                   const PromptScratch& s) {
  using Keys = typename Forms::Keys;
  using Values = typename Forms::Values;
  const uint32_t dim = args.shape.head_dim, v_stride = PaddedDim(args.shape);
  Unit<Page> units[kBlockUnits];
  if (IsPartOfUnit(args.shape)) {
    JoinUnits<Page>(args.shape, args.slab, args.view, first, tokens, s.pages, units);
  } else {
    for (uint32_t t = 0; t < tokens; t += kUnitTokens) {
      units[t / kUnitTokens] =
          UnitAt<Page>(args.shape, args.slab, args.view, (first + t) / kUnitTokens);
    }
  }
  MakeKeyTile<Keys, Page>(units, tokens, dim, UnitStride(args.shape), pace, s.keys);
  MakeValueTile<Values, Page>(units, tokens, v_stride, pace, s.values);
}

template <class Forms, class Page>
void AttendBlock(const PromptArgs& args, uint32_t first_row, uint32_t rows,
                 const PromptScratch& s) {
  const KvShape& shape = args.shape;
  const uint32_t dim = shape.head_dim, v_stride = PaddedDim(shape);
  const RowBlock block = {args.first_position + first_row, rows * args.group, args.group,
                          args.q + first_row * args.q_stride, args.q_stride};
  PackQueries<typename Forms::Keys>(block, dim, v_stride, args.scale, s);
  const uint32_t tokens = block.first_position + rows;
  const uint32_t sealed_tokens = TokensOf(args.sealed.shape, args.sealed.view);
  const uint32_t parts = Pace::kMakeParts + (block.rows / Forms::Keys::kRows + 1) * kRowsParts;
  for (uint32_t key = 0; key < tokens; key += kTileKeys) {
    const uint32_t next = key + kTileKeys < tokens ? key + kTileKeys : key;
    Pace pace = {next < sealed_tokens
                     ? PagesAhead(args.sealed.shape, args.sealed.slab, args.sealed.view, next)
                     : PagesAhead(shape, args.slab, args.view, next - sealed_tokens),
                 0};
    pace.lines = (LinesOf(pace.ahead) + parts - 1) / parts;
    if (key < sealed_tokens) {
      MakeSealedTiles<Forms>(args, key, pace, s);
    } else {
      MakeOpenTiles<Forms, Page>(args, key - sealed_tokens, Smaller(kTileKeys, tokens - key), pace,
                                 s);
    }
    AttendTile<Forms>(block, key, dim, v_stride, pace, s);
  }
  for (uint32_t r = 0; r < block.rows; ++r) {
    float* out = args.out + (first_row + r / args.group) * args.out_stride +
                 (uint64_t)(r % args.group) * dim;
    const VF d = Set(s.d[r]);
    for (uint32_t c = 0; c < dim; c += kLanes) {
      StoreFirst(out + c, Smaller(kLanes, dim - c), Div(Load(s.o + (uint64_t)r * v_stride + c), d));
    }
  }
}

template <class Forms>
void AttendAll(const PromptArgs& args) {
  PromptScratch s;
  LayPromptScratch(args.shape, args.group, args.rows, args.scratch, &s);
  const uint32_t positions = BlockPositions(args.group);
  for (uint32_t row = 0; row < args.rows; row += positions) {
    const uint32_t rows = Smaller(positions, args.rows - row);
    switch (args.shape.type) {
      case KvType::kF32:
        AttendBlock<Forms, PageF32>(args, row, rows, s);
        break;
      case KvType::kF16:
        AttendBlock<Forms, PageF16>(args, row, rows, s);
        break;
      case KvType::kBF16:
        AttendBlock<Forms, PageBF16>(args, row, rows, s);
        break;
      default:
        __builtin_trap();  // coded keys are args.sealed
    }
  }
}

// ---- entries of the table ----

uint64_t PromptScratchBytes(const KvShape* shape, uint32_t group, uint32_t rows) {
  PromptScratch unused;
  return LayPromptScratch(*shape, group, rows, nullptr, &unused);
}

void AttendPrompt(const PromptArgs* args) {
  if (args->compute == Compute::kF32) {
    AttendAll<ExactForms>(*args);
  } else if constexpr (kHasByteDot) {
    AttendAll<ByteForms>(*args);
  } else {
    AttendAll<WordForms>(*args);
  }
}

}  // namespace
}  // namespace tinyserve
