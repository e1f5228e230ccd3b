#include "device/device_model.h"

#include <fmt/format.h>

#include "device/device_loader.h"
#include "kernels/tables.h"
#include "model/model.h"

namespace tinyserve::cuda {
namespace {

// What the kernels have instances for (kernels/cuda/dispatch.h).
Status CheckShape(const ModelConfig& c) {
  const bool head = c.head_dim == 64 || c.head_dim == 80 || c.head_dim == 96 || c.head_dim == 128;
  const uint32_t group = c.heads / c.kv_heads;
  if (head && group <= 8 && c.dim % 4 == 0 && c.ffn_dim % 4 == 0) return Status();
  return Status(Code::kUnsupported,
                fmt::format("device cuda: the model has heads of {} channels, {} query heads of a "
                            "KV head, a width of {} and {}: allowed are heads of 64, 80, 96 and "
                            "128, 1 to 8 query heads, widths that are multiples of 4",
                            c.head_dim, group, c.dim, c.ffn_dim));
}

void DeclareLlamaLayer(const ModelConfig& c, uint32_t l, DeviceLoader* loader, DeviceLayer* layer) {
  const uint32_t q_dim = c.heads * c.head_dim, kv_dim = c.kv_heads * c.head_dim;
  const auto name = [l](const char* part) { return fmt::format("blk.{}.{}", l, part); };
  loader->AddVector(name("attn_norm.weight"), c.dim, &layer->attention_norm.weight);
  loader->AddLinear({name("attn_q.weight"), name("attn_k.weight"), name("attn_v.weight")},
                    {q_dim, kv_dim, kv_dim}, c.dim, &layer->qkv);
  loader->AddBias({name("attn_q.bias"), name("attn_k.bias"), name("attn_v.bias")},
                  {q_dim, kv_dim, kv_dim}, /*optional=*/true, &layer->qkv);
  loader->AddLinear({name("attn_output.weight")}, {c.dim}, q_dim, &layer->attention_out);
  loader->AddVector(name("ffn_norm.weight"), c.dim, &layer->ffn_norm.weight);
  loader->AddGated(name("ffn_gate.weight"), name("ffn_up.weight"), c.ffn_dim, c.dim, &layer->up);
  loader->AddLinear({name("ffn_down.weight")}, {c.dim}, c.ffn_dim, &layer->down);
}

void DeclareGpt2Layer(const ModelConfig& c, uint32_t l, DeviceLoader* loader, DeviceLayer* layer) {
  const auto name = [l](const char* part, const char* kind) {
    return fmt::format("blk.{}.{}.{}", l, part, kind);
  };
  const auto norm = [&](const char* part, DeviceNorm* out) {
    loader->AddVector(name(part, "weight"), c.dim, &out->weight);
    loader->AddVector(name(part, "bias"), c.dim, &out->bias);
  };
  const auto linear = [&](const char* part, uint32_t rows, uint32_t cols, DeviceLinear* out) {
    loader->AddLinear({name(part, "weight")}, {rows}, cols, out);
    loader->AddBias({name(part, "bias")}, {rows}, /*optional=*/false, out);
  };
  norm("attn_norm", &layer->attention_norm);
  linear("attn_qkv", 3 * c.dim, c.dim, &layer->qkv);
  linear("attn_output", c.dim, c.dim, &layer->attention_out);
  norm("ffn_norm", &layer->ffn_norm);
  linear("ffn_up", c.ffn_dim, c.dim, &layer->up);
  linear("ffn_down", c.dim, c.ffn_dim, &layer->down);
}

uint64_t BytesOf(const DeviceWeights& w) {
  return w.codes.count * sizeof(uint32_t) + w.scales.count * sizeof(F16);
}

}  // namespace

Result<std::unique_ptr<DeviceModel>> DeviceModel::Load(
    const GgufFile& file, ThreadPool* threads, const std::function<void(double)>& progress) {
  std::unique_ptr<DeviceModel> model(new DeviceModel);
  DeviceModel& m = *model;
  TS_ASSIGN_OR_RETURN(m.config_, ReadModelShape(file));
  const ModelConfig& c = m.config_;
  TS_RETURN_IF_ERROR(CheckShape(c));
  TS_ASSIGN_OR_RETURN(const std::vector<float> divisors, ReadRopeDivisors(file, c));
  m.frequencies_ = RopeFrequencies(c.rope, divisors, &m.rope_magnitude_);
  DeviceLoader loader(file);
  loader.AddLinear({"token_embd.weight"}, {c.vocab}, c.dim, &m.embedding_);
  loader.AddVector("output_norm.weight", c.dim, &m.final_norm_.weight,
                   &m.final_norm_of_host_.weight);
  const bool gpt2 = c.architecture == "gpt2";
  if (gpt2) {
    loader.AddVector("output_norm.bias", c.dim, &m.final_norm_.bias, &m.final_norm_of_host_.bias);
    loader.AddLinear({"position_embd.weight"}, {c.context}, c.dim, &m.positions_);
  }
  const bool tied = !loader.Has("output.weight");
  if (!tied) loader.AddLinear({"output.weight"}, {c.vocab}, c.dim, &m.head_);
  m.layers_.resize(c.layers);
  for (uint32_t l = 0; l < c.layers; ++l)
    (gpt2 ? DeclareGpt2Layer : DeclareLlamaLayer)(c, l, &loader, &m.layers_[l]);
  TS_RETURN_IF_ERROR(loader.Load(threads, progress, &m.arena_));
  m.step_bytes_ = m.bytes() - (tied ? 0 : BytesOf(m.embedding()));
  if (gpt2) m.step_bytes_ -= BytesOf(*m.positions());
  return Result<std::unique_ptr<DeviceModel>>(std::move(model));
}

void DeviceModel::FinalNorm(const float* x, float* out) const {
  const float *weight = final_norm_of_host_.weight.data(), *bias = final_norm_of_host_.bias.data();
  const uint32_t dim = config_.dim;
  if (final_norm_of_host_.bias.empty()) {
    RefKernels()->rms_norm(x, dim, 1, dim, weight, config_.norm_eps, out, dim);
  } else {
    RefKernels()->layer_norm(x, dim, 1, dim, weight, bias, config_.norm_eps, out, dim);
  }
}

}  // namespace tinyserve::cuda
