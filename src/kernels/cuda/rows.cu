#include "kernels/acts.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/simt.h"
#include "kernels/cuda/weight_forms.h"

namespace tinyserve::cuda {
namespace {

constexpr uint32_t kThreads = 128, kWarps = kThreads / kWarpLanes;
constexpr uint32_t kPiece = 4;       // columns of a thread at a time
constexpr uint32_t kBlockLanes = 8;  // lanes that share a block of 32 columns

// ---- embedding ----------------------------------------------------------------------------------

constexpr int32_t kFirstDrawn = DrawnId(0);

TS_DEVICE uint32_t IdOf(const EmbedRows& e, uint32_t row) {
  const int32_t id = Global<const int32_t>(e.ids, "ids").Get(row);
  if (id > kFirstDrawn || e.drawn.count == 0) return static_cast<uint32_t>(id);
  const auto drawn = static_cast<uint32_t>(kFirstDrawn - id);
  return static_cast<uint32_t>(Global<const int32_t>(e.drawn, "drawn").Get(drawn));
}

// A block is a row.
template <class Form>
TS_KERNEL EmbedKernel(EmbedRows e) {
  const uint32_t row = BlockX(), lines = e.embedding.cols / Form::kCols;
  const Global<const uint32_t> codes(e.embedding.codes, "embedding codes");
  const Global<const F16> scales(e.embedding.scales, "embedding scales");
  const Global<float> x(e.x, "x");
  const uint32_t id = IdOf(e, row);
  if (e.tokens.count != 0 && ThreadIndex() == 0)
    Global<int32_t>(e.tokens, "tokens").Set(row, static_cast<int32_t>(id));
  for (uint32_t i = ThreadIndex(); i < lines; i += kThreads) {
    float values[Form::kCols] = {};
    if (id < e.embedding.rows) {
      const uint64_t at = uint64_t{id} * lines + i;
      Form::Values(codes.Get<Words>(at * 4), Form::Scale(scales, at), values);
    }
    TS_UNROLL
    for (uint32_t k = 0; k < Form::kCols; ++k) {
      const uint32_t c = i * Form::kCols + k;
      if (c >= e.cols) continue;
      const uint64_t at = uint64_t{row} * e.cols + c;
      x.Set(at, e.add ? x.Get(at) + values[k] : values[k]);
    }
  }
}

// ---- norms and forms ----------------------------------------------------------------------------

struct Stats {
  float mean = 0, factor = 1;
};

template <RowSource kSource>
struct RowReader {
  const MakeRows& m;
  Global<const float> x, weight, bias;
  uint64_t first;
  bool whole;  // pieces are aligned, and none reaches past the row

  TS_DEVICE RowReader(const MakeRows& make, uint32_t row)
      : m(make),
        x(make.x, "x"),
        weight(make.weight, "weight"),
        bias(make.bias, "bias"),
        first(uint64_t{make.from.count == 0 ? row
                                            : Global<const uint32_t>(make.from, "from").Get(row)} *
              make.x_stride),
        whole(make.cols % kPiece == 0 && make.x_stride % kPiece == 0) {}

  TS_DEVICE void Floats(const Global<const float>& from, uint64_t base, uint32_t c,
                        float (&out)[kPiece]) const {
    if (whole) {
      const auto line = from.template Get<Line<float>>(base + c);
      TS_UNROLL
      for (uint32_t k = 0; k < kPiece; ++k) out[k] = line.at[k];
      return;
    }
    TS_UNROLL
    for (uint32_t k = 0; k < kPiece; ++k) out[k] = c + k < m.cols ? from.Get(base + c + k) : 0.0f;
  }
  // The row as it is, from column c on.
  TS_DEVICE void Raw(uint32_t c, float (&out)[kPiece]) const { Floats(x, first, c, out); }
  // The row as it is to become; zeros past its end.
  TS_DEVICE void Value(uint32_t c, const Stats& stats, float (&out)[kPiece]) const {
    TS_UNROLL
    for (uint32_t k = 0; k < kPiece; ++k) out[k] = 0;
    if (c >= m.cols) return;
    Raw(c, out);
    if constexpr (kSource == RowSource::kGated) {
      float up[kPiece];
      Floats(x, first + m.cols, c, up);
      TS_UNROLL
      for (uint32_t k = 0; k < kPiece; ++k) out[k] = Silu(out[k]) * up[k];
    }
    if constexpr (kSource == RowSource::kRmsNorm || kSource == RowSource::kLayerNorm) {
      float w[kPiece], b[kPiece] = {};
      Floats(weight, 0, c, w);
      if constexpr (kSource == RowSource::kLayerNorm) Floats(bias, 0, c, b);
      TS_UNROLL
      for (uint32_t k = 0; k < kPiece; ++k)
        out[k] = (out[k] - stats.mean) * stats.factor * w[k] + b[k];
      if (whole) return;
      TS_UNROLL
      for (uint32_t k = 0; k < kPiece; ++k) out[k] = c + k < m.cols ? out[k] : 0.0f;
    }
  }
};

// Of all threads, in one order; every thread has the result. `parts`: [kWarps].
TS_DEVICE float BlockSum(float value, const Shared<float>& parts) {
  const float warp = WarpSum(value);
  SyncBlock();  // nobody reads the parts of an earlier call any more
  if (LaneIndex() == 0) parts.Set(WarpIndex(), warp);
  SyncBlock();
  float sum = 0;
  TS_UNROLL
  for (uint32_t w = 0; w < kWarps; ++w) sum += parts.Get(w);
  return sum;
}
TS_DEVICE float BlockMax(float value, const Shared<float>& parts) {
  const float warp = WarpMax(value);
  SyncBlock();
  if (LaneIndex() == 0) parts.Set(WarpIndex(), warp);
  SyncBlock();
  float most = 0;
  TS_UNROLL
  for (uint32_t w = 0; w < kWarps; ++w) most = fmaxf(most, parts.Get(w));
  return most;
}

template <RowSource kSource>
TS_DEVICE Stats StatsOf(const RowReader<kSource>& reader, const Shared<float>& parts) {
  Stats stats;
  if constexpr (kSource == RowSource::kPlain || kSource == RowSource::kGated) return stats;
  const uint32_t cols = reader.m.cols;
  const auto over_row = [&](auto term) {
    float sum = 0;
    for (uint32_t c = ThreadIndex() * kPiece; c < cols; c += kThreads * kPiece) {
      float x[kPiece];
      reader.Raw(c, x);
      TS_UNROLL
      for (uint32_t k = 0; k < kPiece; ++k) sum += c + k < cols ? term(x[k]) : 0.0f;
    }
    return BlockSum(sum, parts) / static_cast<float>(cols);
  };
  if constexpr (kSource == RowSource::kLayerNorm) stats.mean = over_row([](float x) { return x; });
  const float mean = stats.mean;
  const float square = over_row([mean](float x) { return (x - mean) * (x - mean); });
  stats.factor = 1.0f / sqrtf(square + reader.m.eps);
  return stats;
}

// The power of two that takes magnitudes up to `most` to 1 at most, as its inverse and itself.
struct PowerScale {
  float scale, inverse;
};
TS_DEVICE PowerScale PowerFor(float most) {
  constexpr uint32_t kLargest = 252;  // whose inverse is no denormal
  const uint32_t exponent = Bits(most) >> 23;
  if (exponent == 0) return {1.0f, 1.0f};
  const uint32_t up = exponent + 1 < kLargest ? exponent + 1 : kLargest;
  return {FromBits(up << 23), FromBits((254 - up) << 23)};
}

struct CodedPiece {
  uint32_t word;
  float scale;
  uint32_t sums;
};

// Four columns of each lane, eight lanes a block of 32 (kernels/acts.h). All lanes must come.
TS_DEVICE CodedPiece CodePiece(const float (&x)[kPiece]) {
  float most = 0;
  TS_UNROLL
  for (uint32_t k = 0; k < kPiece; ++k) most = fmaxf(most, fabsf(x[k]));
  TS_UNROLL
  for (uint32_t lanes = kBlockLanes / 2; lanes > 0; lanes /= 2) {
    most = fmaxf(most, ShuffleXor(most, lanes, kAllLanes));
  }
  const bool any = most >= kActAbsmaxMin;
  const float inverse = any ? 127.0f / most : 0.0f;
  CodedPiece piece{0, any ? most / 127.0f : 0.0f, 0};
  int sum = 0;
  TS_UNROLL
  for (uint32_t k = 0; k < kPiece; ++k) {
    const float scaled = rintf(x[k] * inverse);
    const int code = fabsf(scaled) <= 127.0f ? static_cast<int>(scaled) : 0;  // no number: 0
    piece.word |= (static_cast<uint32_t>(code) & 0xff) << (8 * k);
    sum += code;
  }
  sum += ShuffleXor(sum, 1, kAllLanes);
  sum += ShuffleXor(sum, 2, kAllLanes);
  const auto own = static_cast<uint32_t>(sum) & 0xffff;
  const uint32_t other = ShuffleXor(own, 4, kAllLanes);
  piece.sums = own | other << 16;  // of the block's first lane: its own half is the lower
  return piece;
}

// A block is a row.
template <RowSource kSource>
TS_KERNEL MakeKernel(MakeRows m) {
  TS_SHARED(float, parts, kWarps);
  const uint32_t row = BlockX(), padded = (m.cols + kColsUnit - 1) / kColsUnit * kColsUnit;
  const RowReader<kSource> reader(m, row);
  const Stats stats = StatsOf(reader, parts);
  const RowForms& to = m.to;
  PowerScale power{1, 1};
  if (to.halves.count != 0) {
    float most = 0;
    for (uint32_t c = ThreadIndex() * kPiece; c < padded; c += kThreads * kPiece) {
      float x[kPiece];
      reader.Value(c, stats, x);
      TS_UNROLL
      for (uint32_t k = 0; k < kPiece; ++k) most = fmaxf(most, fabsf(x[k]));
    }
    power = PowerFor(BlockMax(most, parts));
    if (ThreadIndex() == 0) Global<float>(to.half_scales, "half scales").Set(row, power.scale);
  }
  // Whole warps go round together: lanes past the end have zeros and write nothing.
  for (uint32_t base = WarpIndex() * kWarpLanes * kPiece; base < padded;
       base += kThreads * kPiece) {
    const uint32_t c = base + LaneIndex() * kPiece;
    float x[kPiece];
    reader.Value(c, stats, x);
    const uint64_t at = uint64_t{row} * padded + c;
    if (to.floats.count != 0 && c < padded) {
      Global<float>(to.floats, "floats").template Set<Line<float>>(at, {{x[0], x[1], x[2], x[3]}});
    }
    if (to.halves.count != 0 && c < padded) {
      const Global<F16> halves(to.halves, "halves");
      halves.template Set<uint32_t>(at, HalfPair(x[0] * power.inverse, x[1] * power.inverse));
      halves.template Set<uint32_t>(at + 2, HalfPair(x[2] * power.inverse, x[3] * power.inverse));
    }
    if (to.codes.count == 0) continue;
    const CodedPiece piece = CodePiece(x);
    if (c >= padded) continue;
    Global<uint32_t>(to.codes, "codes").Set(at / 4, piece.word);
    if (LaneIndex() % kBlockLanes != 0) continue;
    Global<float>(to.code_scales, "code scales").Set(at / 32, piece.scale);
    Global<uint32_t>(to.code_sums, "code sums").Set(at / 32, piece.sums);
  }
}

// A block is a row.
TS_KERNEL FiniteKernel(FiniteRows f) {
  constexpr uint32_t kExponent = 0x7f800000;  // all ones: infinite or no number
  TS_SHARED(float, parts, kWarps);
  const uint32_t row = BlockX();
  const Global<const float> x = Global<const float>(f.x, "x").Part(uint64_t{row} * f.cols, f.cols);
  float bad = 0;
  for (uint32_t c = ThreadIndex(); c < f.cols; c += kThreads) {
    bad = (Bits(x.Get(c)) & kExponent) == kExponent ? 1.0f : bad;
  }
  bad = BlockMax(bad, parts);
  if (ThreadIndex() == 0) Global<uint32_t>(f.finite, "finite").Set(row, bad == 0.0f ? 1u : 0u);
}

template <RowSource kSource>
Status LaunchMake(const MakeRows& rows, Stream stream) {
  return Launch({.kernel = "MakeRows", .grid = {rows.rows}, .threads = kThreads, .stream = stream},
                MakeKernel<kSource>, rows);
}

}  // namespace

Status Embed(const EmbedRows& rows, Stream stream) {
  return WithForm(rows.embedding.form, [&](auto form) {
    return Launch({.kernel = "Embed", .grid = {rows.rows}, .threads = kThreads, .stream = stream},
                  EmbedKernel<decltype(form)>, rows);
  });
}

Status CheckFinite(const FiniteRows& rows, Stream stream) {
  return Launch(
      {.kernel = "CheckFinite", .grid = {rows.rows}, .threads = kThreads, .stream = stream},
      FiniteKernel, rows);
}

Status Make(const MakeRows& rows, Stream stream) {
  switch (rows.source) {
    case RowSource::kPlain:
      return LaunchMake<RowSource::kPlain>(rows, stream);
    case RowSource::kRmsNorm:
      return LaunchMake<RowSource::kRmsNorm>(rows, stream);
    case RowSource::kLayerNorm:
      return LaunchMake<RowSource::kLayerNorm>(rows, stream);
    case RowSource::kGated:
      return LaunchMake<RowSource::kGated>(rows, stream);
  }
  return Status(Code::kUnsupported, "a source of rows outside its enumerators");
}

}  // namespace tinyserve::cuda
