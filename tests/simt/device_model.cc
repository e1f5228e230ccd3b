#include "tests/simt/device_model.h"

#include <fmt/format.h>

#include <cmath>

#include "kernels/cuda/append.h"
#include "kernels/cuda/attention_decode.h"
#include "kernels/cuda/sample.h"
#include "tensor/convert.h"

namespace tinyserve::cuda {
namespace {

constexpr uint32_t kPageTokens = 16, kExtentShift = 2;

template <class T>
Array<T> Of(std::vector<T>& v) {
  return {v.data(), v.size()};
}
template <class T>
Array<const T> Const(const std::vector<T>& v) {
  return {v.data(), v.size()};
}

// Tensors of one type, row by row: one after the other, or (`alternate`) a row of each in turn.
Result<DeviceMatrix> PackTensors(const GgufFile& file, const std::vector<std::string>& names,
                                 uint32_t cols, bool alternate) {
  std::vector<const StoredTensor*> tensors;
  uint64_t rows = 0;
  for (const std::string& name : names) {
    const StoredTensor* t = file.FindTensor(name);
    if (t == nullptr || t->cols != cols || (!tensors.empty() && t->type != tensors[0]->type)) {
      return Status(Code::kNotFound, name + ": missing, or of another width or type");
    }
    tensors.push_back(t);
    rows += t->rows;
  }
  DeviceMatrix m{.plan = PlanWeights(tensors[0]->type, static_cast<uint32_t>(rows), cols)};
  m.codes.resize(m.plan.code_bytes / sizeof(uint32_t));
  m.scales.resize(m.plan.scale_bytes / sizeof(F16));
  uint64_t at = 0;
  const auto pack = [&](const StoredTensor& t, uint64_t row) {
    PackWeightRow(m.plan, t.type, cols, t.data + row * RowBytes(t.type, cols),
                  reinterpret_cast<uint8_t*>(m.codes.data()) + at * m.plan.row_lines * kLineBytes,
                  reinterpret_cast<uint8_t*>(m.scales.data() + at * m.plan.row_scales));
    ++at;
  };
  if (alternate) {
    for (uint64_t r = 0; r < tensors[0]->rows; ++r) {
      for (const StoredTensor* t : tensors) pack(*t, r);
    }
  } else {
    for (const StoredTensor* t : tensors) {
      for (uint64_t r = 0; r < t->rows; ++r) pack(*t, r);
    }
  }
  return Result<DeviceMatrix>(std::move(m));
}

Result<std::vector<float>> ReadVector(const GgufFile& file, const std::string& name) {
  const StoredTensor* t = file.FindTensor(name);
  if (t == nullptr || t->rows != 1)
    return Status(Code::kNotFound, name + ": missing, or no vector");
  std::vector<float> values(t->cols);
  DequantizeRow(t->type, t->data, t->cols, values.data());
  return values;
}

}  // namespace

Result<std::unique_ptr<DeviceModel>> DeviceModel::Load(const std::string& path, KvType kv,
                                                       uint32_t sequences, uint32_t tokens_max) {
  TS_ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file, GgufFile::Open(path));
  std::unique_ptr<DeviceModel> model(new DeviceModel);
  TS_ASSIGN_OR_RETURN(model->config_, ReadModelConfig(*file));
  TS_RETURN_IF_ERROR(model->LoadWeights(*file));
  const ModelConfig& c = model->config_;
  model->shape_ = {.type = kv,
                   .head_dim = c.head_dim,
                   .kv_heads = c.kv_heads,
                   .group = c.heads / c.kv_heads,
                   .page_tokens = kPageTokens};
  model->PlacePages(sequences, tokens_max);
  return Result<std::unique_ptr<DeviceModel>>(std::move(model));
}

Status DeviceModel::LoadWeights(const GgufFile& file) {
  ModelConfig& c = config_;
  std::vector<float> divisors;
  if (file.FindTensor("rope_freqs.weight") != nullptr) {
    TS_ASSIGN_OR_RETURN(divisors, ReadVector(file, "rope_freqs.weight"));
  }
  frequencies_ = RopeFrequencies(c.rope, divisors, &magnitude_);
  TS_ASSIGN_OR_RETURN(embedding_, PackTensors(file, {"token_embd.weight"}, c.dim, false));
  c.vocab = embedding_.plan.rows;
  const bool tied = file.FindTensor("output.weight") == nullptr;
  TS_ASSIGN_OR_RETURN(
      head_, PackTensors(file, {tied ? "token_embd.weight" : "output.weight"}, c.dim, false));
  TS_ASSIGN_OR_RETURN(final_norm_, ReadVector(file, "output_norm.weight"));
  layers_.resize(c.layers);
  for (uint32_t l = 0; l < c.layers; ++l) TS_RETURN_IF_ERROR(LoadLayer(file, l));
  return Status();
}

Status DeviceModel::LoadLayer(const GgufFile& file, uint32_t l) {
  const ModelConfig& c = config_;
  Layer& layer = layers_[l];
  const auto name = [l](const char* part) { return fmt::format("blk.{}.{}.weight", l, part); };
  const auto pack = [&](const char* part, uint32_t cols) {
    return PackTensors(file, {name(part)}, cols, false);
  };
  TS_ASSIGN_OR_RETURN(layer.attention_norm, ReadVector(file, name("attn_norm")));
  TS_ASSIGN_OR_RETURN(layer.ffn_norm, ReadVector(file, name("ffn_norm")));
  TS_ASSIGN_OR_RETURN(layer.q, pack("attn_q", c.dim));
  TS_ASSIGN_OR_RETURN(layer.k, pack("attn_k", c.dim));
  TS_ASSIGN_OR_RETURN(layer.v, pack("attn_v", c.dim));
  TS_ASSIGN_OR_RETURN(layer.out, pack("attn_output", c.heads * c.head_dim));
  TS_ASSIGN_OR_RETURN(layer.gate_up,
                      PackTensors(file, {name("ffn_gate"), name("ffn_up")}, c.dim, true));
  TS_ASSIGN_OR_RETURN(layer.down, pack("ffn_down", c.ffn_dim));
  return Status();
}

// Pages of all sequences, those of one apart from each other: every second page is another's.
void DeviceModel::PlacePages(uint32_t sequences, uint32_t tokens_max) {
  table_pages_ = (tokens_max + kPageTokens - 1) / kPageTokens;
  const uint32_t element = shape_.type == KvType::kF32 ? 4 : 2;
  v_offset_ = kPageTokens * shape_.head_dim * element;
  page_bytes_ = 2 * v_offset_;
  head_stride_ = uint64_t{page_bytes_} << kExtentShift;
  extent_stride_ = head_stride_ * shape_.kv_heads;
  const uint32_t pages = table_pages_ * sequences;
  const uint64_t extents = (pages >> kExtentShift) + 1;
  for (Layer& layer : layers_) layer.pages.assign(extents * extent_stride_, 0xff);  // NaN
  sequence_tables_.resize(uint64_t{sequences} * table_pages_);
  for (uint32_t s = 0; s < sequences; ++s) {
    for (uint32_t p = 0; p < table_pages_; ++p) {
      sequence_tables_[uint64_t{s} * table_pages_ + p] = p * sequences + s;
    }
  }
}

void DeviceModel::BeginStep(const std::vector<StepRow>& rows) {
  const ModelConfig& c = config_;
  rows_ = static_cast<uint32_t>(rows.size());
  ids_.clear();
  positions_.clear();
  tokens_.clear();
  table_of_.clear();
  tables_.clear();
  cos_sin_.clear();
  for (const StepRow& row : rows) {
    const bool used = row.position != kNoPosition;
    ids_.push_back(used ? row.token : 0);
    positions_.push_back(row.position);
    tokens_.push_back(used ? row.position + 1 : 0);
    table_of_.push_back(static_cast<uint32_t>(table_of_.size()));
    const auto table = sequence_tables_.begin() + row.sequence * table_pages_;
    tables_.insert(tables_.end(), table, table + table_pages_);
    for (const float frequency : frequencies_) {
      const float angle = (used ? static_cast<float>(row.position) : 0.0f) * frequency;
      cos_sin_.push_back(std::cos(angle) * magnitude_);
      cos_sin_.push_back(std::sin(angle) * magnitude_);
    }
  }
  const uint32_t q_dim = c.heads * c.head_dim, qkv_dim = q_dim + 2 * c.kv_heads * c.head_dim;
  x_.assign(uint64_t{rows_} * c.dim, NAN);
  qkv_.assign(uint64_t{rows_} * qkv_dim, NAN);
  q_.assign(uint64_t{rows_} * q_dim, NAN);
  o_.assign(uint64_t{rows_} * q_dim, 0.0f);  // rows that are not in use stay as they are
  a_.assign(uint64_t{rows_} * c.ffn_dim, NAN);
  logits_.assign(uint64_t{rows_} * c.vocab, NAN);
  partials_.assign(PartialFloats(shape_, rows_, table_pages_ * kPageTokens), NAN);
  arrived_.assign(uint64_t{rows_} * c.kv_heads, 0);
}

Status DeviceModel::Run(const std::vector<StepRow>& rows) {
  BeginStep(rows);
  TS_RETURN_IF_ERROR(Embed({.embedding = embedding_.weights(),
                            .ids = Const(ids_),
                            .rows = rows_,
                            .cols = config_.dim,
                            .x = Of(x_),
                            .add = false},
                           nullptr));
  for (Layer& layer : layers_) TS_RETURN_IF_ERROR(RunLayer(&layer));
  TS_RETURN_IF_ERROR(MakeForms(RowSource::kRmsNorm, x_, config_.dim, final_norm_));
  return Multiply(head_, &logits_, config_.vocab, 0, Epilogue::kStore);
}

Status DeviceModel::RunLayer(Layer* layer) {
  const ModelConfig& c = config_;
  const uint32_t q_dim = c.heads * c.head_dim, kv_dim = c.kv_heads * c.head_dim;
  const uint32_t qkv_dim = q_dim + 2 * kv_dim;
  TS_RETURN_IF_ERROR(MakeForms(RowSource::kRmsNorm, x_, c.dim, layer->attention_norm));
  TS_RETURN_IF_ERROR(Multiply(layer->q, &qkv_, qkv_dim, 0, Epilogue::kStore));
  TS_RETURN_IF_ERROR(Multiply(layer->k, &qkv_, qkv_dim, q_dim, Epilogue::kStore));
  TS_RETURN_IF_ERROR(Multiply(layer->v, &qkv_, qkv_dim, q_dim + kv_dim, Epilogue::kStore));
  TS_RETURN_IF_ERROR(Attend(layer));
  TS_RETURN_IF_ERROR(MakeForms(RowSource::kPlain, o_, q_dim, {}));
  TS_RETURN_IF_ERROR(Multiply(layer->out, &x_, c.dim, 0, Epilogue::kAdd));
  TS_RETURN_IF_ERROR(MakeForms(RowSource::kRmsNorm, x_, c.dim, layer->ffn_norm));
  TS_RETURN_IF_ERROR(Multiply(layer->gate_up, &a_, c.ffn_dim, 0, Epilogue::kSwiGlu));
  TS_RETURN_IF_ERROR(MakeForms(RowSource::kPlain, a_, c.ffn_dim, {}));
  return Multiply(layer->down, &x_, c.dim, 0, Epilogue::kAdd);
}

Status DeviceModel::Attend(Layer* layer) {
  const ModelConfig& c = config_;
  const Slabs<uint8_t> slabs{Of(layer->pages), head_stride_, extent_stride_, kExtentShift,
                             page_bytes_};
  TS_RETURN_IF_ERROR(AppendRotated({.rows = rows_,
                                    .heads = c.heads,
                                    .kv_heads = c.kv_heads,
                                    .head_dim = c.head_dim,
                                    .rotary_dim = c.rope.dims,
                                    .interleaved = c.rope.interleaved,
                                    .qkv = Const(qkv_),
                                    .cos_sin = Const(cos_sin_),
                                    .positions = Const(positions_),
                                    .table_of = Const(table_of_),
                                    .table_pages = table_pages_,
                                    .tables = Const(tables_),
                                    .q = Of(q_),
                                    .type = shape_.type,
                                    .page_tokens = kPageTokens,
                                    .pages = slabs,
                                    .v_offset = v_offset_},
                                   nullptr));
  return AttendDense(
      shape_,
      {.slabs = {Const(layer->pages), head_stride_, extent_stride_, kExtentShift, page_bytes_},
       .v_offset = v_offset_},
      {.rows = rows_,
       .table_pages = table_pages_,
       .scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim)),
       .tables = Const(tables_),
       .tokens = Const(tokens_),
       .q = Const(q_),
       .out = Of(o_),
       .partials = Of(partials_),
       .arrived = Of(arrived_)},
      table_pages_ * kPageTokens, nullptr);
}

Status DeviceModel::MakeForms(RowSource source, const std::vector<float>& x, uint32_t cols,
                              const std::vector<float>& norm) {
  const uint64_t padded = (cols + kColsUnit - 1) / kColsUnit * kColsUnit;
  forms_.floats.assign(rows_ * padded, NAN);
  forms_.codes.assign(rows_ * padded / 4, 0);
  forms_.code_scales.assign(rows_ * padded / 32, NAN);
  forms_.code_sums.assign(rows_ * padded / 32, 0);
  return Make({.source = source,
               .x = Const(x),
               .x_stride = cols,
               .rows = rows_,
               .cols = cols,
               .weight = Const(norm),
               .eps = config_.norm_eps,
               .to = {.floats = Of(forms_.floats),
                      .codes = Of(forms_.codes),
                      .code_scales = Of(forms_.code_scales),
                      .code_sums = Of(forms_.code_sums)}},
              nullptr);
}

Status DeviceModel::Multiply(const DeviceMatrix& w, std::vector<float>* out, uint32_t stride,
                             uint32_t first, Epilogue epilogue) {
  return MultiplyGenerated(
      {.weights = w.weights(),
       .coded = {Const(forms_.codes), Const(forms_.code_scales), Const(forms_.code_sums)},
       .floats = Const(forms_.floats),
       .rows = rows_,
       .to = {.bias = {},
              .out = {out->data() + first, out->size() - first},
              .stride = stride,
              .epilogue = epilogue}},
      nullptr);
}

Result<std::vector<int32_t>> DeviceModel::Greedy() {
  const std::vector<float> zeros(rows_);
  const std::vector<uint64_t> no_seeds(rows_);
  std::vector<int32_t> tokens(rows_, -1);
  TS_RETURN_IF_ERROR(Sample({.logits = Const(logits_),
                             .rows = rows_,
                             .vocab = config_.vocab,
                             .temperatures = Const(zeros),
                             .min_ps = Const(zeros),
                             .seeds = Const(no_seeds),
                             .positions = Const(no_seeds),
                             .tokens = Of(tokens)},
                            nullptr));
  return tokens;
}

}  // namespace tinyserve::cuda
