#include "model/model.h"

#include <fmt/format.h>

#include "model/architectures.h"
#include "tensor/convert.h"

namespace tinyserve {
namespace {

// Which dot a packed matrix's products use.
DotKind DotOf(const PackedMatrix& w) {
  switch (w.acts) {
    case ActKind::kF32:
      return DotKind::kF32;
    case ActKind::kBF16:
      return DotKind::kBF16;
    case ActKind::kQ8:
      break;
  }
  const bool four_bits = w.type == DType::kQ4_0 || w.type == DType::kQ4_1 || w.type == DType::kQ4_K;
  return four_bits ? DotKind::kU4S8 : DotKind::kU8S8;
}

void AddCost(const Linear& linear, uint64_t rows, ProductCost* cost) {
  cost->weight_bytes += linear.bytes();
  for (const Linear::Part& part : linear.parts) {
    cost->multiply_adds[static_cast<uint32_t>(DotOf(part.matrix))] +=
        uint64_t{part.matrix.rows} * part.matrix.cols * rows;
  }
}

}  // namespace

Result<std::vector<float>> ReadRopeDivisors(const GgufFile& file, const ModelConfig& config) {
  const StoredTensor* tensor = file.FindTensor("rope_freqs.weight");
  if (tensor == nullptr || config.rope.dims == 0) return std::vector<float>();
  if (tensor->rows != 1 || tensor->cols != config.rope.dims / 2) {
    return Status(Code::kCorrupt,
                  fmt::format("tensor 'rope_freqs.weight' has {} x {} elements: expected {}",
                              tensor->rows, tensor->cols, config.rope.dims / 2));
  }
  std::vector<float> divisors(tensor->cols);
  DequantizeRow(tensor->type, tensor->data, tensor->cols, divisors.data());
  for (float d : divisors) {
    if (!(d > 0))
      return Status(Code::kCorrupt,
                    fmt::format("tensor 'rope_freqs.weight' holds {}: it must be positive", d));
  }
  return divisors;
}

Result<ModelConfig> ReadModelShape(const GgufFile& file) {
  TS_ASSIGN_OR_RETURN(ModelConfig config, ReadModelConfig(file));
  const StoredTensor* embedding = file.FindTensor("token_embd.weight");
  if (embedding == nullptr)
    return Status(Code::kNotFound, "the model file has no tensor 'token_embd.weight'");
  if (embedding->rows == 0 || embedding->rows > (1 << 24)) {
    return Status(Code::kCorrupt,
                  fmt::format("tensor 'token_embd.weight' has {} rows: allowed are 1 to 2^24",
                              embedding->rows));
  }
  config.vocab = static_cast<uint32_t>(embedding->rows);
  return config;
}

Result<std::unique_ptr<Model>> LoadModel(const GgufFile& file, const ModelLoadOptions& options) {
  TS_ASSIGN_OR_RETURN(const ModelConfig config, ReadModelShape(file));
  std::unique_ptr<Model> model = config.architecture == "gpt2" ? MakeGpt2() : MakeLlama();
  model->config_ = config;
  model->kernels_ = options.kernels;
  model->compute_ = options.compute;
  TS_ASSIGN_OR_RETURN(const std::vector<float> divisors, ReadRopeDivisors(file, config));
  model->frequencies_ = RopeFrequencies(config.rope, divisors, &model->rope_magnitude_);
  WeightLoader loader(file, options.kernels, options.compute);
  model->Declare(&loader);
  TS_RETURN_IF_ERROR(loader.Load(options.threads, options.progress, &model->arena_));
  return model;
}

void Model::DeclareEnds(WeightLoader* loader, bool norm_bias) {
  loader->AddLinear({"token_embd.weight"}, {config_.vocab}, config_.dim, &embedding_);
  loader->AddVector("output_norm.weight", config_.dim, &final_norm_.weight);
  if (norm_bias) loader->AddVector("output_norm.bias", config_.dim, &final_norm_.bias);
  head_tied_ = !loader->Has("output.weight");
  if (!head_tied_) loader->AddLinear({"output.weight"}, {config_.vocab}, config_.dim, &head_);
}

StepSizes Model::Sizes(uint32_t rows_max, uint32_t logits_max) const {
  return {.dim = config_.dim,
          .qkv_dim = (config_.heads + 2 * config_.kv_heads) * config_.head_dim,
          .attention_dim = config_.heads * config_.head_dim,
          .ffn_dim = config_.ffn_dim,
          .vocab = config_.vocab,
          .rows_max = rows_max,
          .logits_max = logits_max};
}

void Model::Forward(Step* step, const LayerHook& hook) const {
  Prepare(step, 0);
  for (uint32_t l = 0; l < config_.layers; ++l) {
    ForwardAttention(l, step);
    ForwardFeedForward(l, step);
    if (hook) hook(l, step->x(), step->rows(), config_.dim);
  }
}

void Model::ForwardSublayer(uint32_t sublayer, Step* step) const {
  const uint32_t layer = sublayer / kSublayers;
  if (sublayer % kSublayers == 0) return ForwardAttention(layer, step);
  ForwardFeedForward(layer, step);
}

ProductCost Model::CostOf(uint64_t rows, uint64_t logits_rows) const {
  ProductCost cost;
  if (rows > 0) {
    for (const Linear* linear : LayerLinears()) AddCost(*linear, rows, &cost);
  }
  if (logits_rows > 0) AddCost(head_tied_ ? embedding_ : head_, logits_rows, &cost);
  return cost;
}

ProductCost Model::CostOfPart(uint64_t rows, SublayerRange part) const {
  ProductCost cost;
  const std::vector<const Linear*> linears = LayerLinears();
  const size_t of_layer = linears.size() / config_.layers;
  for (size_t i = 0; i < linears.size(); ++i) {
    const bool attends = i % of_layer < kAttentionLinears;
    const size_t sublayer = i / of_layer * kSublayers + (attends ? 0 : 1);
    if (sublayer >= part.begin && sublayer < part.end) AddCost(*linears[i], rows, &cost);
  }
  return cost;
}

ProductCost Model::CostOfExits(std::span<const uint32_t> rows_of_layer, uint64_t rows,
                               uint64_t logits_rows) const {
  ProductCost cost;
  const std::vector<const Linear*> linears = LayerLinears();
  const size_t of_layer = linears.size() / config_.layers;
  const double kv_share =
      2.0 * config_.kv_heads / static_cast<double>(config_.heads + 2 * config_.kv_heads);
  for (size_t i = 0; i < linears.size(); ++i) {
    const uint64_t runs = rows_of_layer[i / of_layer];
    ProductCost whole;
    AddCost(*linears[i], 1, &whole);
    const double others = i % of_layer == 0 ? kv_share * static_cast<double>(rows - runs) : 0;
    for (uint32_t kind = 0; kind < kDotKinds; ++kind) {
      const double one = static_cast<double>(whole.multiply_adds[kind]);
      cost.multiply_adds[kind] += static_cast<uint64_t>(one * (static_cast<double>(runs) + others));
    }
    if (runs > 0) {
      cost.weight_bytes += whole.weight_bytes;
    } else if (i % of_layer == 0) {
      cost.weight_bytes +=
          static_cast<uint64_t>(kv_share * static_cast<double>(whole.weight_bytes));
    }
  }
  if (logits_rows > 0) AddCost(head_tied_ ? embedding_ : head_, logits_rows, &cost);
  return cost;
}

}  // namespace tinyserve
