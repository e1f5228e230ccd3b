#include <fmt/format.h>

#include "model/architectures.h"

namespace tinyserve {
namespace {

struct Layer {
  Norm attention_norm, ffn_norm;
  Linear qkv, attention_out, gate_up, down;
};

class Llama : public Model {
 public:
  void Prepare(Step* step, uint32_t first) const override {
    if (first == 0) step->Embed(embedding_);
    step->PrepareRope(frequencies_, rope_magnitude_);
  }

  void ForwardAttention(uint32_t l, Step* step) const override {
    const Layer& layer = layers_[l];
    const uint32_t q_dim = config_.heads * config_.head_dim,
                   kv_dim = config_.kv_heads * config_.head_dim;
    step->NormForQkv(layer.attention_norm, config_.norm_eps, layer.qkv);
    step->ProjectQkv(layer.qkv, q_dim);
    step->Rope(config_.heads, config_.kv_heads, config_.head_dim, config_.rope);
    step->Attend(l, q_dim, kv_dim);
    step->AddAttentionOut(layer.attention_out);
  }

  void ForwardFeedForward(uint32_t l, Step* step) const override {
    const Layer& layer = layers_[l];
    step->NormFor(layer.ffn_norm, config_.norm_eps, layer.gate_up);
    step->SwiGlu(layer.gate_up);
    step->AddDown(layer.down);
  }

 protected:
  void Declare(WeightLoader* loader) override {
    const ModelConfig& c = config_;
    const uint32_t q_dim = c.heads * c.head_dim, kv_dim = c.kv_heads * c.head_dim;
    DeclareEnds(loader, /*norm_bias=*/false);
    layers_.resize(c.layers);
    for (uint32_t l = 0; l < c.layers; ++l) {
      const auto name = [l](const char* part) { return fmt::format("blk.{}.{}", l, part); };
      Layer& layer = layers_[l];
      loader->AddVector(name("attn_norm.weight"), c.dim, &layer.attention_norm.weight);
      loader->AddLinear({name("attn_q.weight"), name("attn_k.weight"), name("attn_v.weight")},
                        {q_dim, kv_dim, kv_dim}, c.dim, &layer.qkv);
      loader->AddBias({name("attn_q.bias"), name("attn_k.bias"), name("attn_v.bias")},
                      {q_dim, kv_dim, kv_dim},
                      /*optional=*/true, &layer.qkv);
      loader->AddLinear({name("attn_output.weight")}, {c.dim}, q_dim, &layer.attention_out);
      loader->AddVector(name("ffn_norm.weight"), c.dim, &layer.ffn_norm.weight);
      loader->AddGated(name("ffn_gate.weight"), name("ffn_up.weight"), c.ffn_dim, c.dim,
                       &layer.gate_up);
      loader->AddLinear({name("ffn_down.weight")}, {c.dim}, c.ffn_dim, &layer.down);
    }
  }

  std::vector<const Linear*> LayerLinears() const override {
    std::vector<const Linear*> all;
    for (const Layer& l : layers_)
      all.insert(all.end(), {&l.qkv, &l.attention_out, &l.gate_up, &l.down});
    return all;
  }

 private:
  std::vector<Layer> layers_;
};

}  // namespace

std::unique_ptr<Model> MakeLlama() { return std::make_unique<Llama>(); }

}  // namespace tinyserve
