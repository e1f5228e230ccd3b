#include "device/device_step.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "device/device_choices.h"
#include "kernels/cuda/append.h"
#include "kernels/cuda/products.h"
#include "kernels/cuda/sample.h"
#include "kernels/cuda/seal.h"

namespace tinyserve::cuda {
namespace {

// Decode attention is launched once, not in splits, where items are so many times the processors.
constexpr uint32_t kFusedItems = 2;
// Pages of a row whose scores one block keeps in shared memory beside its tiles.
constexpr uint32_t kFusedPagesMax = 4096;

template <class T>
Array<const T> Const(const Array<T>& array) {
  return {array.data, array.count};
}
template <class T>
Array<T> From(const Array<T>& array, uint64_t first) {
  return {array.data + first, array.count - first};
}

uint64_t RoundUp(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit * unit; }

// A slab of the cache for all KV heads of its layer. `items`: of the pool; `head_stride`: bytes.
template <class Byte>
Slabs<Byte> SlabsOf(const KvSlab& first_head, uint64_t head_stride, uint32_t kv_heads,
                    uint64_t items) {
  const uint64_t last_extent = items == 0 ? 0 : (items - 1) >> first_head.extent_shift;
  return {
      .bytes = {first_head.base, last_extent * first_head.extent_stride + kv_heads * head_stride},
      .head_stride = head_stride,
      .extent_stride = first_head.extent_stride,
      .extent_shift = first_head.extent_shift,
      .item_bytes = first_head.page_bytes};
}

}  // namespace

// ---- memory -------------------------------------------------------------------------------------

Result<std::unique_ptr<DeviceStep>> DeviceStep::Create(const DeviceModel* model,
                                                       const KvCache* cache,
                                                       const DeviceStream* stream,
                                                       const DeviceStepOptions& options) {
  std::unique_ptr<DeviceStep> step(new DeviceStep);
  step->model_ = model;
  step->cache_ = cache;
  step->stream_ = stream;
  step->options_ = options;
  step->Measure();
  TS_RETURN_IF_ERROR(step->AllocateInputs());
  TS_RETURN_IF_ERROR(step->AllocateActivations());
  const Array<uint32_t>& zeros = step->arrived_;
  TS_RETURN_IF_ERROR(
      runtime::Fill(zeros.data, 0, zeros.count * sizeof(uint32_t), stream->handle()));
  TS_RETURN_IF_ERROR(stream->Synchronize());
  return Result<std::unique_ptr<DeviceStep>>(std::move(step));
}

void DeviceStep::Measure() {
  const ModelConfig& c = model_->config();
  const KvShape kv = cache_->shape(0);
  coded_ = cache_->coded(0);
  raw_type_ = cache_->open_shape(0).type;
  prompt_decodes_ = kv.type == KvType::kF32;
  shape_ = {.type = kv.type,
            .head_dim = c.head_dim,
            .kv_heads = c.kv_heads,
            .group = c.heads / c.kv_heads,
            .page_tokens = kv.page_tokens};
  q_dim_ = c.heads * c.head_dim;
  qkv_dim_ = q_dim_ + 2 * c.kv_heads * c.head_dim;
  cols_max_ = static_cast<uint32_t>(RoundUp(std::max({c.dim, q_dim_, c.ffn_dim}), kColsUnit));
  attend_rows_ = options_.sequences_max;
  // A row of each sequence, rounded up as steps that are replayed are.
  draws_max_ = std::min(options_.logits_max, std::bit_ceil(options_.sequences_max));
  const uint32_t page = kv.page_tokens, window = cache_->codec().group_tokens;
  TS_CHECK(!coded_ || (window == kPromptTile && raw_type_ == KvType::kF16));
  table_pages_ = cache_->BlocksFor(options_.sequence_tokens_max) * (cache_->block_tokens() / page);
  open_pages_ = coded_ ? (options_.uncommitted_max + window) / page + 1 : 0;
  raw_pages_ = coded_ ? window / page : 0;
}

Status DeviceStep::AllocateInputs() {
  pinned_.Add(&scored_host_, logit_rows());
  arena_.Add(&scored_, logit_rows());
  TS_RETURN_IF_ERROR(pinned_.Allocate());
  return inputs_.Allocate({.rows = options_.rows_max,
                           .sequences = options_.sequences_max,
                           .logits = options_.logits_max,
                           .draws = draws_max_,
                           .group = shape_.group,
                           .pairs = static_cast<uint32_t>(model_->frequencies().size()),
                           .learns_positions = model_->positions() != nullptr,
                           .table_pages = table_pages_,
                           .open_pages = open_pages_,
                           .raw_pages = raw_pages_,
                           .keeps_choices = options_.keeps_choices,
                           .mask_words = (model_->config().vocab + 31) / 32},
                          &arena_);
}

Status DeviceStep::AllocateActivations() {
  const ModelConfig& c = model_->config();
  const Checked rows = std::max(options_.rows_max, logit_rows()), logits = options_.logits_max;
  const Checked vocab = c.vocab, cols = cols_max_;
  arena_.Add(&x_, rows * Checked(c.dim));
  arena_.Add(&qkv_, rows * Checked(qkv_dim_));
  arena_.Add(&q_, rows * Checked(q_dim_));
  arena_.Add(&o_, rows * Checked(q_dim_));
  arena_.Add(&a_, rows * Checked(c.ffn_dim) * Checked(2));
  arena_.Add(&floats_, rows * cols);
  arena_.Add(&codes_, rows * Checked(cols_max_ / 4));
  arena_.Add(&code_scales_, rows * Checked(cols_max_ / 32));
  arena_.Add(&code_sums_, rows * Checked(cols_max_ / 32));
  arena_.Add(&halves_, rows * cols);
  arena_.Add(&half_scales_, rows);
  const uint32_t tokens = table_pages_ * shape_.page_tokens + (coded_ ? kSplitTokens : 0);
  const Checked items = Checked(attend_rows_) * Checked(c.kv_heads);
  arena_.Add(&partials_, PartialFloats(shape_, attend_rows_, tokens));
  arena_.Add(&arrived_, items);
  const bool selects = cache_->meta_layout(0).kinds != 0 || !options_.sub_pages.empty();
  const Checked lists = selects ? items * Checked(table_pages_) : Checked(0);
  arena_.Add(&head_scores_, lists * Checked(shape_.group));
  arena_.Add(&lists_, lists);
  arena_.Add(&list_tokens_, items);
  const Checked places = Checked(options_.sequences_max) * Checked(ChoicesInForce::kPlaces);
  arena_.Add(&kept_choices_,
             options_.keeps_choices
                 ? Checked(c.layers) * places * Checked(c.kv_heads) * Checked(table_pages_)
                 : Checked(0));
  arena_.Add(&failed_, selects ? rows * Checked(c.layers) * Checked(c.kv_heads) : Checked(0));
  if (shape_.type == KvType::kPlanes) {
    arena_.Add(&cascade_logits_, items * Checked(CascadeFloats(shape_.group, table_pages_)));
    arena_.Add(&cascade_reads_, items * Checked(table_pages_) * Checked(shape_.page_tokens));
  }
  arena_.Add(&logits_, logits * vocab);
  arena_.Add(&scoring_, Checked(logit_rows()) * vocab);
  const Checked draws = draws_max_;
  arena_.Add(&weights_, draws * vocab);
  arena_.Add(&sums_, draws * Checked((c.vocab + 63) / 64));
  arena_.Add(&edited_, draws * Checked(kEditsMax + 1));
  arena_.Add(&finite_, rows);
  arena_.Add(&row_ids_, rows);
  arena_.Add(&drawn_, draws);
  arena_.Add(&tops_, draws);
  arena_.Add(&scores_, draws);
  return arena_.Allocate();
}

// ---- launches -----------------------------------------------------------------------------------

Status DeviceStep::LaunchAll(const StepForm& form, const std::vector<DeviceSelector>& selectors) {
  const ModelConfig& c = model_->config();
  TS_RETURN_IF_ERROR(EmbedTokens(form));
  for (uint32_t l = 0; l < c.layers; ++l) TS_RETURN_IF_ERROR(RunLayer(form, l, selectors));
  TS_RETURN_IF_ERROR(CheckFinite(
      {.x = Const(x_), .rows = form.rows(), .cols = c.dim, .finite = finite_}, stream_->handle()));
  for (uint32_t i = 0; i < form.wanted; i += logit_rows()) {
    TS_RETURN_IF_ERROR(LaunchLogits(inputs_.wanted.part(i, std::min(logit_rows(), form.wanted - i)),
                                    From(logits_, uint64_t{i} * c.vocab)));
  }
  return form.drawn == 0 ? Status() : LaunchDraws(form);
}

Status DeviceStep::LaunchDraws(const StepForm& form) {
  return Sample({.logits = logits_,
                 .rows = form.drawn,
                 .vocab = model_->config().vocab,
                 .scales = Const(inputs_.scales.device),
                 .penalties = Const(inputs_.penalties.device),
                 .lists = Const(inputs_.lists.device),
                 .seeds = Const(inputs_.seeds.device),
                 .words = Const(inputs_.words.device),
                 .rows_of = Const(inputs_.wanted.device),
                 .ids = Const(row_ids_),
                 .weights = weights_,
                 .sums = sums_,
                 .edited = edited_,
                 .tokens = drawn_,
                 .tops = tops_,
                 .scores = scores_},
                stream_->handle());
}

Status DeviceStep::EmbedTokens(const StepForm& form) {
  EmbedRows rows{.embedding = model_->embedding(),
                 .ids = inputs_.ids.part(0, form.rows()),
                 .rows = form.rows(),
                 .cols = model_->config().dim,
                 .x = x_,
                 .add = false,
                 .drawn = Const(drawn_),
                 .tokens = row_ids_};
  TS_RETURN_IF_ERROR(Embed(rows, stream_->handle()));
  if (model_->positions() == nullptr) return Status();
  rows.embedding = *model_->positions();
  rows.ids = inputs_.learned.part(0, form.rows());
  rows.add = true;
  rows.drawn = {};
  rows.tokens = {};
  return Embed(rows, stream_->handle());
}

Status DeviceStep::LaunchScoring(std::span<const uint32_t> rows) {
  TS_CHECK(rows.size() <= logit_rows());
  std::copy(rows.begin(), rows.end(), scored_host_.data);
  TS_RETURN_IF_ERROR(
      runtime::Copy(scored_.data, scored_host_.data, rows.size_bytes(), stream_->handle()));
  return LaunchLogits({scored_.data, rows.size()}, scoring_);
}

Status DeviceStep::LaunchLogits(const Array<const uint32_t>& rows, const Array<float>& to) {
  const ModelConfig& c = model_->config();
  const DeviceLinear& head = model_->head();
  const auto count = static_cast<uint32_t>(rows.count);
  const StepForm form{.generated = count};
  TS_RETURN_IF_ERROR(Make({.source = model_->final_norm().source(),
                           .x = Const(x_),
                           .x_stride = c.dim,
                           .from = rows,
                           .rows = count,
                           .cols = c.dim,
                           .weight = model_->final_norm().weight,
                           .bias = model_->final_norm().bias,
                           .eps = c.norm_eps,
                           .to = {.floats = head.takes_floats ? floats_ : Array<float>{},
                                  .codes = head.takes_codes ? codes_ : Array<uint32_t>{},
                                  .code_scales = head.takes_codes ? code_scales_ : Array<float>{},
                                  .code_sums = head.takes_codes ? code_sums_ : Array<uint32_t>{},
                                  .halves = {},
                                  .half_scales = {}}},
                          stream_->handle()));
  return Multiply(form, head, to, c.vocab, Epilogue::kStore);
}

Status DeviceStep::RunLayer(const StepForm& form, uint32_t l,
                            const std::vector<DeviceSelector>& selectors) {
  const ModelConfig& c = model_->config();
  const DeviceLayer& layer = model_->layers()[l];
  TS_RETURN_IF_ERROR(
      MakeForms(form, layer.attention_norm.source(), x_, c.dim, layer.attention_norm, layer.qkv));
  TS_RETURN_IF_ERROR(Multiply(form, layer.qkv, qkv_, qkv_dim_, Epilogue::kStore));
  TS_RETURN_IF_ERROR(Append(form, l));
  TS_RETURN_IF_ERROR(Seal(form, l));
  TS_RETURN_IF_ERROR(Attend(form, l, selectors));
  TS_RETURN_IF_ERROR(MakeForms(form, RowSource::kPlain, o_, q_dim_, {}, layer.attention_out));
  TS_RETURN_IF_ERROR(Multiply(form, layer.attention_out, x_, c.dim, Epilogue::kAdd));

  TS_RETURN_IF_ERROR(MakeForms(form, layer.ffn_norm.source(), x_, c.dim, layer.ffn_norm, layer.up));
  // Gate and up of different types are gated by what makes the next product's activations.
  const Epilogue end = layer.up.gated    ? Epilogue::kSwiGlu
                       : model_->gated() ? Epilogue::kStore
                                         : Epilogue::kGelu;
  const bool apart = end == Epilogue::kStore;
  TS_RETURN_IF_ERROR(Multiply(form, layer.up, a_, apart ? 2 * c.ffn_dim : c.ffn_dim, end));
  TS_RETURN_IF_ERROR(MakeForms(form, apart ? RowSource::kGated : RowSource::kPlain, a_, c.ffn_dim,
                               {}, layer.down));
  return Multiply(form, layer.down, x_, c.dim, Epilogue::kAdd);
}

Status DeviceStep::MakeForms(const StepForm& form, RowSource source, const Array<float>& x,
                             uint32_t cols, const DeviceNorm& norm, const DeviceLinear& next) {
  const uint32_t stride = source == RowSource::kGated ? 2 * cols : cols;
  MakeRows make{.source = source,
                .x = Const(x),
                .x_stride = stride,
                .from = {},
                .rows = form.generated,
                .cols = cols,
                .weight = norm.weight,
                .bias = norm.bias,
                .eps = model_->config().norm_eps,
                .to = {}};
  if (next.takes_floats) make.to.floats = floats_;
  if (next.takes_codes) {
    make.to.codes = codes_;
    make.to.code_scales = code_scales_;
    make.to.code_sums = code_sums_;
  }
  if (form.generated > 0) TS_RETURN_IF_ERROR(Make(make, stream_->handle()));
  if (form.prompt == 0) return Status();
  make.x = Const(From(x, uint64_t{form.generated} * stride));
  make.rows = form.prompt;
  make.to = {};
  make.to.halves = halves_;
  make.to.half_scales = half_scales_;
  return Make(make, stream_->handle());
}

Status DeviceStep::Multiply(const StepForm& form, const DeviceLinear& linear,
                            const Array<float>& out, uint32_t stride, Epilogue epilogue) {
  for (const DeviceLinear::Part& part : linear.parts) {
    ProductOut to{
        .bias = {}, .out = From(out, part.out_offset), .stride = stride, .epilogue = epilogue};
    if (linear.bias.count != 0) to.bias = {linear.bias.data + part.out_offset, part.weights.rows};
    if (form.generated > 0) {
      TS_RETURN_IF_ERROR(
          MultiplyGenerated({.weights = part.weights,
                             .coded = {Const(codes_), Const(code_scales_), Const(code_sums_)},
                             .floats = Const(floats_),
                             .rows = form.generated,
                             .to = to},
                            stream_->handle()));
    }
    if (form.prompt == 0) continue;
    to.out = From(to.out, uint64_t{form.generated} * stride);
    TS_RETURN_IF_ERROR(MultiplyPrompt({.weights = part.weights,
                                       .acts = {Const(halves_), Const(half_scales_)},
                                       .rows = form.prompt,
                                       .to = to},
                                      stream_->handle()));
  }
  return Status();
}

// ---- pages --------------------------------------------------------------------------------------

DevicePages DeviceStep::PagesOf(uint32_t l) const {
  const KvSlab slab = cache_->slab(0, l, 0);
  return {.slabs = SlabsOf<const uint8_t>(slab, uint64_t{slab.page_bytes} << slab.extent_shift,
                                          shape_.kv_heads, Pages()),
          .v_offset = slab.v_offset};
}

DevicePages DeviceStep::RawPagesOf(uint32_t l) const {
  if (!coded_) return PagesOf(l);
  const KvSlab slab = cache_->open_slab(0, l, 0);
  const uint64_t pages = cache_->open_pool(0).total();
  return {.slabs = SlabsOf<const uint8_t>(slab, pages * slab.page_bytes, shape_.kv_heads, pages),
          .v_offset = slab.v_offset};
}

uint64_t DeviceStep::Pages() const {
  return uint64_t{cache_->pool(0).total()} * (cache_->block_tokens() / shape_.page_tokens);
}

Slabs<uint8_t> DeviceStep::RecordsOf(uint32_t l) const {
  const KvSlab slab = cache_->records(0, l, 0);
  return SlabsOf<uint8_t>(slab, uint64_t{slab.page_bytes} << slab.extent_shift, shape_.kv_heads,
                          Pages());
}

Slabs<uint8_t> DeviceStep::SummariesOf(uint32_t l) const {
  const KvSlab slab = cache_->summaries(0, l, 0);
  return SlabsOf<uint8_t>(slab, uint64_t{slab.page_bytes} << slab.extent_shift, shape_.kv_heads,
                          Pages());
}

namespace {

Slabs<uint8_t> Writable(const Slabs<const uint8_t>& slabs) {
  return {.bytes = {const_cast<uint8_t*>(slabs.bytes.data), slabs.bytes.count},
          .head_stride = slabs.head_stride,
          .extent_stride = slabs.extent_stride,
          .extent_shift = slabs.extent_shift,
          .item_bytes = slabs.item_bytes};
}
Slabs<const uint8_t> ReadOnly(const Slabs<uint8_t>& slabs) {
  return {.bytes = {slabs.bytes.data, slabs.bytes.count},
          .head_stride = slabs.head_stride,
          .extent_stride = slabs.extent_stride,
          .extent_shift = slabs.extent_shift,
          .item_bytes = slabs.item_bytes};
}

}  // namespace

Status DeviceStep::Append(const StepForm& form, uint32_t l) {
  const ModelConfig& c = model_->config();
  const DevicePages pages = RawPagesOf(l);
  const Upload<uint32_t>& tables = coded_ ? inputs_.open_tables : inputs_.tables;
  return AppendRotated({.rows = form.rows(),
                        .heads = c.heads,
                        .kv_heads = c.kv_heads,
                        .head_dim = c.head_dim,
                        .rotary_dim = c.rope.dims,
                        .interleaved = c.rope.interleaved,
                        .qkv = Const(qkv_),
                        .cos_sin = Const(inputs_.cos_sin.device),
                        .positions = inputs_.positions.part(0, form.rows()),
                        .table_of = inputs_.table_of.part(0, form.rows()),
                        .table_pages = coded_ ? open_pages_ : table_pages_,
                        .tables = Const(tables.device),
                        .q = q_,
                        .type = raw_type_,
                        .page_tokens = shape_.page_tokens,
                        .pages = Writable(pages.slabs),
                        .v_offset = pages.v_offset},
                       stream_->handle());
}

Status DeviceStep::Seal(const StepForm& form, uint32_t l) {
  const MetaLayout layout = cache_->meta_layout(0);
  if (coded_) {
    const SealCodedStep step{.shape = shape_,
                             .open_type = raw_type_,
                             .open = RawPagesOf(l),
                             .pages = Writable(PagesOf(l).slabs),
                             .records = RecordsOf(l),
                             .spread_at = layout.spread_at,
                             .from = {inputs_.seal_from.part(0, form.seal_pages)},
                             .to = {inputs_.seal_to.part(0, form.seal_pages)}};
    TS_RETURN_IF_ERROR((IsRanged(shape_.type) ? SealRanges : SealPlanes)(step, stream_->handle()));
  }
  const FullPages full = {coded_ ? inputs_.seal_to.part(0, form.seal_pages)
                                 : inputs_.full_pages.part(0, form.full_pages)};
  if ((layout.kinds & (kMetaBox | kMetaMoments)) != 0) {
    TS_RETURN_IF_ERROR(
        Summarise(shape_, PagesOf(l), layout, RecordsOf(l), full, stream_->handle()));
  }
  for (const SubPageBoxes& boxes : options_.sub_pages) {
    TS_RETURN_IF_ERROR(SummariseSubPages(shape_, PagesOf(l), layout, RecordsOf(l), boxes,
                                         SummariesOf(l), full, stream_->handle()));
  }
  return Status();
}

// ---- attention ----------------------------------------------------------------------------------

Status DeviceStep::Attend(const StepForm& form, uint32_t l,
                          const std::vector<DeviceSelector>& selectors) {
  const uint32_t decoded = prompt_decodes_ ? form.rows() : form.generated;
  for (uint32_t first = 0; first < decoded; first += attend_rows_) {
    const uint32_t rows = std::min(attend_rows_, decoded - first);
    for (uint32_t g = 0; g < kReadGroups; ++g) {
      if ((form.groups >> g & 1) == 0) continue;
      const DeviceSelector* selector = g == 0 ? nullptr : &selectors[g - 1];
      if (selector != nullptr && l < selector->spec.budget.dense_layers) selector = nullptr;
      TS_RETURN_IF_ERROR(AttendRows(form, l, first, rows, selector, g));
    }
  }
  return prompt_decodes_ ? Status() : AttendPromptRows(form, l);
}

DecodeStep DeviceStep::RowsOf(const StepForm&, uint32_t first, uint32_t rows,
                              uint32_t group) const {
  return {.rows = rows,
          .table_pages = table_pages_,
          .scale = 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)),
          .tables = Const(inputs_.tables.device),
          .table_of = inputs_.table_of.part(first, rows),
          .tokens = inputs_.tokens[group].part(first, rows),
          .q = Const(From(q_, uint64_t{first} * q_dim_)),
          .out = From(o_, uint64_t{first} * q_dim_),
          .partials = partials_,
          .arrived = arrived_};
}

OpenTokens DeviceStep::RawOf(uint32_t l, uint32_t first, uint32_t rows, uint32_t group) const {
  return {
      .type = raw_type_,
      .pages = RawPagesOf(l),
      .table_pages = raw_pages_,
      .tables = inputs_.raw_tables.part(uint64_t{first} * raw_pages_, uint64_t{rows} * raw_pages_),
      .tokens = inputs_.raw_tokens[group].part(first, rows),
      .tokens_max = raw_pages_ * shape_.page_tokens};
}

KeptChoices DeviceStep::ChoicesOf(uint32_t l, uint32_t first, uint32_t rows) const {
  const uint64_t of_layer =
      uint64_t{options_.sequences_max} * ChoicesInForce::kPlaces * shape_.kv_heads * table_pages_;
  return {.rows = inputs_.choices.part(first, rows),
          .places = inputs_.choice_places.part(first, rows),
          .q = Const(q_),
          .list_pages = table_pages_,
          .lists = {kept_choices_.data + l * of_layer, of_layer}};
}

DeviceRecords DeviceStep::ScoredOf(uint32_t l, const DeviceSelector& selector) const {
  const MetaLayout layout = cache_->meta_layout(0);
  const bool by_range =
      IsRanged(shape_.type) && selector.kind == ScoreKind::kBox && !selector.scorer;
  DeviceRecords records{.slabs = ReadOnly(RecordsOf(l)),
                        .channels = layout.channels,
                        .box_at = layout.box_at,
                        .moments_at = layout.moments_at,
                        .range_at = by_range ? layout.spread_at : kNoRange};
  if (selector.sub_tokens == 0) return records;
  records.slabs = ReadOnly(SummariesOf(l));
  records.box_at = selector.summary_at;
  records.range_at = kNoRange;
  records.boxes = shape_.page_tokens / selector.sub_tokens;
  records.box_bytes = MetaLayoutOf(kMetaBox, shape_.head_dim).record_bytes;
  return records;
}

Selection DeviceStep::SelectionOf(const StepForm& form, uint32_t l, uint32_t first, uint32_t rows,
                                  const DeviceSelector& selector) const {
  const SelectorBudget& budget = selector.spec.budget;
  const uint32_t pages_max = (form.tokens_max + shape_.page_tokens - 1) / shape_.page_tokens;
  const uint32_t most = std::max(budget.PagesOf(pages_max, shape_.page_tokens),
                                 std::min(pages_max, budget.sink + budget.recent));
  return {
      .kind = selector.kind,
      .pool = selector.pool,
      .alpha = selector.alpha,
      .sink = budget.sink,
      .recent = budget.recent,
      .pages_max = pages_max,
      .budgets = inputs_.budgets.part(first, rows),
      .newer = coded_ ? inputs_.newer.part(first, rows) : Array<const uint32_t>{},
      .head_scores = head_scores_,
      .chosen = {.list_pages = std::min(most, pages_max), .lists = lists_, .tokens = list_tokens_},
      .kept = selector.keeps_choices() ? ChoicesOf(l, first, rows) : KeptChoices{}};
}

Cascade DeviceStep::CascadeOf(const StepForm& form, uint32_t l, uint32_t first, uint32_t rows,
                              const DeviceSelector& selector) const {
  const SelectorBudget& budget = selector.spec.budget;
  const uint32_t pages_max = form.tokens_max / shape_.page_tokens;
  const uint32_t widen = selector.Widen(l);
  const uint32_t most = widen * budget.PagesOf(pages_max, shape_.page_tokens);
  return {
      .sink = budget.sink,
      .recent = budget.recent,
      .widen = widen,
      .alpha = selector.cascade->alpha,
      .least_share = selector.cascade->least_share,
      .pages_max = pages_max,
      .candidates = inputs_.budgets.part(first, rows),
      .full_tokens = inputs_.full_tokens.part(first, rows),
      .value_tokens = inputs_.value_tokens.part(first, rows),
      .newer = inputs_.newer.part(first, rows),
      .head_scores = head_scores_,
      .chosen = {.list_pages = std::min(most, pages_max), .lists = lists_, .tokens = list_tokens_},
      .logits = cascade_logits_,
      .reads = cascade_reads_};
}

Status DeviceStep::AttendRows(const StepForm& form, uint32_t l, uint32_t first, uint32_t rows,
                              const DeviceSelector* selector, uint32_t group) {
  const Stream stream = stream_->handle();
  const DecodeStep step = RowsOf(form, first, rows, group);
  const DevicePages pages = PagesOf(l);
  if (selector == nullptr && !coded_)
    return AttendDense(shape_, pages, step, form.tokens_max, stream);
  const MetaLayout layout = cache_->meta_layout(0);
  const Slabs<const uint8_t> records = ReadOnly(RecordsOf(l));
  const CodedPages coded{pages.slabs, records, layout.spread_at};
  if (selector == nullptr) {
    return AttendCoded(shape_, coded, step, RawOf(l, first, rows, group), nullptr, form.tokens_max,
                       stream);
  }
  if (selector->cascade) {
    return AttendCascade(shape_, coded, step, RawOf(l, first, rows, group),
                         CascadeOf(form, l, first, rows, *selector), stream);
  }
  Selection selection = SelectionOf(form, l, first, rows, *selector);
  const DeviceRecords of_pages = ScoredOf(l, *selector);
  if (selector->scorer) {
    TS_RETURN_IF_ERROR(ScoreByPlugin(l, first, *selector, step, of_pages, &selection));
  }
  if (coded_) {
    return AttendCodedSparse(shape_, coded, of_pages, step, RawOf(l, first, rows, group), selection,
                             stream);
  }
  const bool fused = !selector->scorer &&
                     rows * shape_.kv_heads >= kFusedItems * options_.processors &&
                     selection.pages_max <= kFusedPagesMax;
  return (fused ? AttendFused : AttendInTwo)(shape_, pages, of_pages, step, selection, stream);
}

Status DeviceStep::ScoreByPlugin(uint32_t l, uint32_t first, const DeviceSelector& selector,
                                 const DecodeStep& step, const DeviceRecords& records,
                                 Selection* selection) {
  const uint32_t heads = shape_.kv_heads, layers = model_->config().layers;
  selection->page_scores = Const(head_scores_);
  selection->failed = From(failed_, (uint64_t{first} * layers + l) * heads);
  selection->failed_stride = layers * heads;
  selection->chosen.list_pages = selection->pages_max;  // a row whose scores fail reads them all
  return LaunchScorer(*selector.scorer,
                      {.shape = shape_,
                       .layer = l,
                       .record_kinds = cache_->meta_layout(0).kinds &
                                       (TINYSERVE_NEEDS_BOX | TINYSERVE_NEEDS_MOMENTS),
                       .records = records,
                       .step = step,
                       .first_page = selection->sink,
                       .pages_max = selection->pages_max,
                       .candidates = inputs_.candidates.part(first, step.rows),
                       .scores = head_scores_},
                      stream_->handle());
}

Status DeviceStep::AttendPromptRows(const StepForm& form, uint32_t l) {
  if (form.prompt == 0) return Status();
  const uint64_t first = uint64_t{form.generated} * q_dim_, runs = form.runs;
  const uint64_t table = form.first_prompt_table;
  const PromptStep step{
      .scale = 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)),
      .table_pages = table_pages_,
      .runs = inputs_.runs.part(0, runs),
      .blocks = inputs_.blocks.part(0, form.blocks),
      .tables = inputs_.tables.part(table * table_pages_, runs * table_pages_),
      .q = Const(From(q_, first)),
      .out = From(o_, first),
      .raw_table_pages = open_pages_,
      .raw_tables = inputs_.open_tables.part(table * open_pages_, runs * open_pages_)};
  const DevicePages pages = PagesOf(l);
  if (!coded_) return AttendPrompt(shape_, pages, step, stream_->handle());
  const CodedPages coded{pages.slabs, ReadOnly(RecordsOf(l)), cache_->meta_layout(0).spread_at};
  return AttendPromptCoded(shape_, coded, RawPagesOf(l), step, stream_->handle());
}

}  // namespace tinyserve::cuda
