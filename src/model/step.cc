#include "model/step.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/check.h"

namespace tinyserve {
namespace {

// Row-wise work on fewer rows than this stays on the calling thread.
constexpr uint32_t kSerialRows = 4;
constexpr uint32_t kRopePairsMax = 512;

constexpr size_t kPartsMax = 4;

// Marks a row that leaves, while rows are parted.
constexpr uint32_t kLeft = 1u << 31;

// How a product is cut into items: blocks of activation rows times groups of panels.
struct Tiling {
  uint32_t row_block, row_blocks;
  uint32_t panel_group, panel_groups;
};

// `panels`: of the matrix that are wanted. `unit`: panels that belong together (gate and up).
Tiling TilingFor(uint32_t rows, const PackedMatrix& w, uint32_t panels, uint32_t unit,
                 uint32_t threads) {
  // Few rows: the weights are what is read; several items a thread even out a core that is slower
  // for a while. Many rows: a block's activations stay in the second-level cache beside a group's
  // panels.
  constexpr uint32_t kItemsPerThread = 8;
  constexpr uint64_t kGroupBytesMin = 16 << 10, kGroupBytesMax = 96 << 10;
  Tiling t{};
  t.row_block = rows <= 32 ? rows : 64;
  t.row_blocks = (rows + t.row_block - 1) / t.row_block;
  uint64_t group = std::max<uint64_t>(1, panels / (kItemsPerThread * threads));
  if (rows > 32) group = std::min(group, std::max<uint64_t>(1, kGroupBytesMax / w.panel_bytes));
  group = std::max(group, kGroupBytesMin / w.panel_bytes);
  group = std::max<uint64_t>(unit, group / unit * unit);
  t.panel_group = static_cast<uint32_t>(std::min<uint64_t>(group, panels));
  t.panel_groups = (panels + t.panel_group - 1) / t.panel_group;
  return t;
}

}  // namespace

Result<std::unique_ptr<Step>> Step::Create(const StepSizes& sizes, const Kernels* kernels,
                                           ThreadPool* threads) {
  std::unique_ptr<Step> s(new Step);
  s->sizes_ = sizes;
  s->kernels_ = kernels;
  s->threads_ = threads;
  const uint64_t rows = std::max(sizes.rows_max, sizes.logits_max);
  const auto floats = [](uint64_t a, uint64_t b) {
    return Buffer::Allocate(a * b * sizeof(float));
  };
  TS_ASSIGN_OR_RETURN(s->x_, floats(sizes.rows_max, sizes.dim));
  TS_ASSIGN_OR_RETURN(s->normed_, floats(rows, sizes.dim));
  TS_ASSIGN_OR_RETURN(s->qkv_, floats(sizes.rows_max, sizes.qkv_dim));
  TS_ASSIGN_OR_RETURN(s->placed_, floats(sizes.rows_max, sizes.qkv_dim));
  for (auto* v : {&s->row_of_, &s->place_of_, &s->moves_}) v->reserve(sizes.rows_max);
  TS_ASSIGN_OR_RETURN(s->o_, floats(sizes.rows_max, sizes.attention_dim));
  TS_ASSIGN_OR_RETURN(s->a_, floats(sizes.rows_max, sizes.ffn_dim));
  TS_ASSIGN_OR_RETURN(s->up_, floats(sizes.rows_max, 2ull * sizes.ffn_dim));
  TS_ASSIGN_OR_RETURN(s->cos_sin_, floats(sizes.rows_max, 2ull * kRopePairsMax));
  const uint32_t widest = std::max({sizes.dim, sizes.attention_dim, sizes.ffn_dim});
  for (uint32_t kind = 0; kind < 3; ++kind) {
    const uint64_t bytes =
        rows * kernels->act_row_bytes(static_cast<ActKind>(kind), (widest + 31) / 32 * 32);
    TS_ASSIGN_OR_RETURN(s->acts_[kind], Buffer::Allocate(bytes));
  }
  return s;
}

template <class Body>
void Step::ForRows(uint32_t rows, const Body& body) {
  if (rows < kSerialRows) {
    for (uint32_t r = 0; r < rows; ++r) body(r);
    return;
  }
  // Rows cost the same: a block a thread, where they are few.
  const uint32_t block =
      std::clamp((rows + threads_->threads() - 1) / threads_->threads(), 1u, 16u);
  threads_->ForAlike((rows + block - 1) / block, [&](uint32_t item, uint32_t) {
    for (uint32_t r = item * block; r < std::min(rows, (item + 1) * block); ++r) body(r);
  });
}

void Step::Begin(std::span<const int32_t> tokens, std::span<const uint32_t> positions,
                 Attention* attention) {
  TS_CHECK(tokens.size() == positions.size() && tokens.size() <= sizes_.rows_max);
  rows_ = static_cast<uint32_t>(tokens.size());
  tokens_ = tokens;
  positions_ = positions;
  attention_ = attention;
  active_ = rows_;
  row_of_.resize(rows_);
  std::iota(row_of_.begin(), row_of_.end(), 0u);
  place_of_ = row_of_;
}

void Step::Reorder(std::span<const uint32_t> from) {
  const uint64_t dim = sizes_.dim;
  float* moved = normed_.as<float>();
  for (size_t i = 0; i < from.size(); ++i)
    std::memcpy(moved + i * dim, x() + from[i] * dim, dim * sizeof(float));
  std::memcpy(x(), moved, from.size() * dim * sizeof(float));
}

void Step::Leave(std::span<const uint32_t> rows) {
  if (rows.empty()) return;
  attention_->Leave(rows);
  for (uint32_t row : rows) {
    TS_CHECK(row < rows_ && place_of_[row] < active_);
    row_of_[place_of_[row]] |= kLeft;
  }
  // Those that stay first, each in their order. std::stable_partition would allocate.
  const std::span<uint32_t> ran(row_of_.data(), active_);
  moves_.clear();
  for (const uint32_t row : ran) {
    if ((row & kLeft) == 0) moves_.push_back(row);
  }
  active_ = static_cast<uint32_t>(moves_.size());
  for (const uint32_t row : ran) {
    if ((row & kLeft) != 0) moves_.push_back(row & ~kLeft);
  }
  std::copy(moves_.begin(), moves_.end(), row_of_.begin());
  moves_.clear();
  for (uint32_t row : row_of_) moves_.push_back(place_of_[row]);
  Reorder(moves_);
  for (uint32_t place = 0; place < rows_; ++place) place_of_[row_of_[place]] = place;
}

void Step::Rejoin() {
  if (active_ == rows_) return;
  Reorder(place_of_);
  active_ = rows_;
  std::iota(row_of_.begin(), row_of_.end(), 0u);
  place_of_ = row_of_;
}

void Step::Append(std::span<const float> states) {
  const uint64_t rows = rows_ + states.size() / sizes_.dim;
  TS_CHECK(active_ == rows_ && rows <= sizes_.rows_max && states.size() % sizes_.dim == 0);
  std::memcpy(x() + uint64_t{rows_} * sizes_.dim, states.data(), states.size_bytes());
  rows_ = active_ = static_cast<uint32_t>(rows);
  row_of_.resize(rows_);
  std::iota(row_of_.begin(), row_of_.end(), 0u);
  place_of_ = row_of_;
}

void Step::Embed(const Linear& embedding) {
  ForRows(rows_, [&](uint32_t r) {
    kernels_->unpack_row(&embedding.parts[0].matrix, static_cast<uint32_t>(tokens_[r]),
                         x() + uint64_t{r} * sizes_.dim);
  });
}

void Step::AddPositions(const Linear& embedding) {
  ForRows(rows_, [&](uint32_t r) {
    float* x = x_.as<float>() + uint64_t{r} * sizes_.dim;
    float* p = normed_.as<float>() + uint64_t{r} * sizes_.dim;
    kernels_->unpack_row(&embedding.parts[0].matrix, positions_[r], p);
    for (uint32_t c = 0; c < sizes_.dim; ++c) x[c] += p[c];
  });
}

void Step::NormRow(const Norm& norm, float eps, const float* x, float* out) const {
  if (norm.bias.empty()) {
    kernels_->rms_norm(x, sizes_.dim, 1, sizes_.dim, norm.weight.data(), eps, out, sizes_.dim);
  } else {
    kernels_->layer_norm(x, sizes_.dim, 1, sizes_.dim, norm.weight.data(), norm.bias.data(), eps,
                         out, sizes_.dim);
  }
}

void Step::MakeActs(uint8_t kinds, const float* x, uint32_t row, uint32_t cols) {
  for (uint32_t kind = 0; kind < 3; ++kind) {
    if ((kinds >> kind & 1) == 0) continue;
    const ActKind form = static_cast<ActKind>(kind);
    kernels_->make_acts(form, x, cols, 1, cols,
                        acts_[kind].data() + row * kernels_->act_row_bytes(form, cols));
  }
}

void Step::NormRows(const Norm& norm, float eps, const Linear& next, uint32_t rows) {
  ForRows(rows, [&](uint32_t r) {
    float* out = normed_.as<float>() + uint64_t{r} * sizes_.dim;
    NormRow(norm, eps, x() + uint64_t{r} * sizes_.dim, out);
    MakeActs(next.act_kinds, out, r, sizes_.dim);
  });
}

void Step::NormFor(const Norm& norm, float eps, const Linear& next) {
  NormRows(norm, eps, next, active_);
}

void Step::NormForQkv(const Norm& norm, float eps, const Linear& qkv) {
  NormRows(norm, eps, qkv, rows_);
}

void Step::Project(const Linear& linear, const Region& region, float* out, uint64_t out_stride,
                   Epilogue epilogue) {
  const uint32_t rows = region.end - region.begin;
  if (rows == 0) return;
  // All parts run in one parallel region: items [first_item[p], first_item[p + 1]) belong to part
  // p.
  std::array<Tiling, kPartsMax> tilings{};
  std::array<uint32_t, kPartsMax> first_panel{};
  std::array<uint32_t, kPartsMax + 1> first_item{};
  const size_t parts = linear.parts.size();
  TS_CHECK(parts <= kPartsMax);
  for (size_t p = 0; p < parts; ++p) {
    const Linear::Part& part = linear.parts[p];
    first_panel[p] = std::min(
        part.matrix.panels, (region.first_column - std::min(region.first_column, part.out_offset)) /
                                part.matrix.panel_rows);
    const uint32_t panels = part.matrix.panels - first_panel[p];
    first_item[p + 1] = first_item[p];
    if (panels == 0) continue;
    tilings[p] = TilingFor(rows, part.matrix, panels, linear.gated ? 2 : 1, threads_->threads());
    first_item[p + 1] += tilings[p].row_blocks * tilings[p].panel_groups;
  }
  // Neighbouring items share the panels, which are the larger operand. Where all rows are one
  // block, they are one call, which reads one panel while it multiplies by the one before.
  const auto run = [&](size_t p, uint32_t item, uint32_t items) {
    const Linear::Part& part = linear.parts[p];
    const Tiling& t = tilings[p];
    const uint32_t row = region.begin + item % t.row_blocks * t.row_block;
    const uint32_t panel = first_panel[p] + item / t.row_blocks * t.panel_group;
    const MatMulArgs args{
        .w = &part.matrix,
        .acts = acts_[static_cast<uint32_t>(part.matrix.acts)].data(),
        .act_row_bytes = kernels_->act_row_bytes(part.matrix.acts, linear.cols),
        .row_begin = row,
        .row_end = std::min(region.end, row + t.row_block),
        .panel_begin = panel,
        .panel_end = std::min(part.matrix.panels, panel + items * t.panel_group),
        .bias = linear.bias.empty() ? nullptr : linear.bias.data() + part.out_offset,
        .out = out + part.out_offset,
        .out_stride = out_stride,
        .epilogue = epilogue};
    kernels_->matmul(&args);
  };
  threads_->ForRanges(first_item[parts], [&](uint32_t item, uint32_t end, uint32_t) {
    for (size_t p = 0; item < end;) {
      if (item >= first_item[p + 1]) {
        ++p;
        continue;
      }
      const uint32_t stop = std::min(end, first_item[p + 1]);
      const uint32_t items = tilings[p].row_blocks == 1 ? stop - item : 1;
      run(p, item - first_item[p], items);
      item += items;
    }
  });
}

void Step::ProjectQkv(const Linear& linear, uint32_t q_dim) {
  const uint64_t dim = sizes_.qkv_dim;
  if (active_ == rows_) return Project(linear, {0, rows_}, qkv_.as<float>(), dim, Epilogue::kStore);
  float* placed = placed_.as<float>();
  Project(linear, {0, active_}, placed, dim, Epilogue::kStore);
  Project(linear, {active_, rows_, q_dim}, placed, dim, Epilogue::kStore);
  for (uint32_t place = 0; place < rows_; ++place) {
    const uint64_t first = place < active_ ? 0 : q_dim;
    std::memcpy(qkv_.as<float>() + row_of_[place] * dim + first, placed + place * dim + first,
                (dim - first) * sizeof(float));
  }
}

void Step::PrepareRope(const std::vector<float>& frequencies, float magnitude) {
  TS_CHECK(frequencies.size() <= kRopePairsMax);
  rope_pairs_ = static_cast<uint32_t>(frequencies.size());
  ForRows(rows_, [&](uint32_t r) {
    float* cos_sin = cos_sin_.as<float>() + uint64_t{r} * rope_pairs_ * 2;
    for (uint32_t i = 0; i < rope_pairs_; ++i) {
      // The angle is rounded to f32 as the reference implementations do; its sine is exact.
      const float angle = static_cast<float>(positions_[r]) * frequencies[i];
      cos_sin[2 * i] = std::cos(angle) * magnitude;
      cos_sin[2 * i + 1] = std::sin(angle) * magnitude;
    }
  });
}

void Step::Rope(uint32_t heads, uint32_t kv_heads, uint32_t head_dim, const RopeConfig& rope) {
  ForRows(rows_, [&](uint32_t r) {
    const uint32_t skipped = place_of_[r] < active_ ? 0 : heads;
    float* first = qkv_.as<float>() + uint64_t{r} * sizes_.qkv_dim + uint64_t{skipped} * head_dim;
    kernels_->rope(first, heads - skipped + kv_heads, head_dim, rope.dims, rope.interleaved,
                   cos_sin_.as<float>() + uint64_t{r} * rope_pairs_ * 2);
  });
}

void Step::Attend(uint32_t layer, uint32_t q_dim, uint32_t kv_dim) {
  const float* q = qkv_.as<float>();
  attention_->Append(layer, q + q_dim, q + q_dim + kv_dim, sizes_.qkv_dim);
  attention_->Run(layer, q, sizes_.qkv_dim, o_.as<float>(), sizes_.attention_dim);
}

void Step::AddAttentionOut(const Linear& linear) {
  ForRows(active_, [&](uint32_t place) {
    const float* o = o_.as<float>() + uint64_t{row_of_[place]} * sizes_.attention_dim;
    MakeActs(linear.act_kinds, o, place, sizes_.attention_dim);
  });
  Project(linear, {0, active_}, x(), sizes_.dim, Epilogue::kAdd);
}

void Step::SwiGlu(const Linear& gate_up) {
  if (gate_up.gated)
    return Project(gate_up, {0, active_}, a_.as<float>(), sizes_.ffn_dim, Epilogue::kSwiGlu);
  Project(gate_up, {0, active_}, up_.as<float>(), 2ull * sizes_.ffn_dim, Epilogue::kStore);
  ForRows(active_, [&](uint32_t r) {
    const float* gate = up_.as<float>() + uint64_t{r} * 2 * sizes_.ffn_dim;
    const float* up = gate + sizes_.ffn_dim;
    float* a = a_.as<float>() + uint64_t{r} * sizes_.ffn_dim;
    for (uint32_t c = 0; c < sizes_.ffn_dim; ++c)
      a[c] = gate[c] / (1.0f + std::exp(-gate[c])) * up[c];
  });
}

void Step::Gelu(const Linear& linear) {
  Project(linear, {0, active_}, a_.as<float>(), sizes_.ffn_dim, Epilogue::kGelu);
}

void Step::AddDown(const Linear& linear) {
  ForRows(active_, [&](uint32_t r) {
    MakeActs(linear.act_kinds, a_.as<float>() + uint64_t{r} * sizes_.ffn_dim, r, sizes_.ffn_dim);
  });
  Project(linear, {0, active_}, x(), sizes_.dim, Epilogue::kAdd);
}

void Step::Logits(std::span<const uint32_t> wanted, const Norm& norm, float eps, const Linear& head,
                  float* out) {
  TS_CHECK(wanted.size() <= sizes_.logits_max);
  const uint32_t rows = static_cast<uint32_t>(wanted.size());
  ForRows(rows, [&](uint32_t i) {
    float* normed = normed_.as<float>() + uint64_t{i} * sizes_.dim;
    NormRow(norm, eps, x() + uint64_t{place_of_[wanted[i]]} * sizes_.dim, normed);
    MakeActs(head.act_kinds, normed, i, sizes_.dim);
  });
  Project(head, {0, rows}, out, sizes_.vocab, Epilogue::kStore);
}

void Step::FinalState(uint32_t row, const Norm& norm, float eps, float* out) const {
  NormRow(norm, eps, x() + uint64_t{place_of_[row]} * sizes_.dim, out);
}

}  // namespace tinyserve
