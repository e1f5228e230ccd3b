#include "device/device_model.h"

#include <fmt/format.h>

#include "device/device_loader.h"
#include "model/model.h"

namespace tinyserve::cuda {
namespace {

// What the kernels have instances for (kernels/cuda/dispatch.h).
Status CheckShape(const ModelConfig& c) {
  if (c.architecture == "gpt2") {
    return Status(
        Code::kUnsupported,
        "device cuda: the architecture gpt2 is computed on the CPU alone; llama and qwen2 "
        "on both");
  }
  const bool head = c.head_dim == 64 || c.head_dim == 80 || c.head_dim == 96 || c.head_dim == 128;
  const uint32_t group = c.heads / c.kv_heads;
  if (head && group <= 8 && c.dim % 4 == 0 && c.ffn_dim % 4 == 0) return Status();
  return Status(Code::kUnsupported,
                fmt::format("device cuda: the model has heads of {} channels, {} query heads of a "
                            "KV head, a width of {} and {}: allowed are heads of 64, 80, 96 and "
                            "128, 1 to 8 query heads, widths that are multiples of 4",
                            c.head_dim, group, c.dim, c.ffn_dim));
}

void DeclareLayer(const ModelConfig& c, uint32_t l, DeviceLoader* loader, DeviceLayer* layer) {
  const uint32_t q_dim = c.heads * c.head_dim, kv_dim = c.kv_heads * c.head_dim;
  const auto name = [l](const char* part) { return fmt::format("blk.{}.{}", l, part); };
  loader->AddVector(name("attn_norm.weight"), c.dim, &layer->attention_norm);
  loader->AddLinear({name("attn_q.weight"), name("attn_k.weight"), name("attn_v.weight")},
                    {q_dim, kv_dim, kv_dim}, c.dim, &layer->qkv);
  loader->AddBias({name("attn_q.bias"), name("attn_k.bias"), name("attn_v.bias")},
                  {q_dim, kv_dim, kv_dim}, &layer->qkv);
  loader->AddLinear({name("attn_output.weight")}, {c.dim}, q_dim, &layer->attention_out);
  loader->AddVector(name("ffn_norm.weight"), c.dim, &layer->ffn_norm);
  loader->AddGated(name("ffn_gate.weight"), name("ffn_up.weight"), c.ffn_dim, c.dim,
                   &layer->gate_up);
  loader->AddLinear({name("ffn_down.weight")}, {c.dim}, c.ffn_dim, &layer->down);
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
  loader.AddVector("output_norm.weight", c.dim, &m.final_norm_, &m.final_norm_of_host_);
  const bool tied = !loader.Has("output.weight");
  if (!tied) loader.AddLinear({"output.weight"}, {c.vocab}, c.dim, &m.head_);
  m.layers_.resize(c.layers);
  for (uint32_t l = 0; l < c.layers; ++l) DeclareLayer(c, l, &loader, &m.layers_[l]);
  TS_RETURN_IF_ERROR(loader.Load(threads, progress, &m.arena_));
  const auto bytes = [](const DeviceWeights& w) {
    return w.codes.count * sizeof(uint32_t) + w.scales.count * sizeof(F16);
  };
  m.step_bytes_ = m.bytes() - (tied ? 0 : bytes(m.embedding()));
  return Result<std::unique_ptr<DeviceModel>>(std::move(model));
}

}  // namespace tinyserve::cuda
