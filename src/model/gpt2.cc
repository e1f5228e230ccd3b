#include <fmt/format.h>

#include "model/architectures.h"

namespace tinyserve {
namespace {

struct Layer {
  Norm attention_norm, ffn_norm;
  Linear qkv, attention_out, up, down;
};

class Gpt2 : public Model {
 public:
  void Prepare(Step* step, uint32_t first) const override {
    if (first > 0) return;
    step->Embed(embedding_);
    step->AddPositions(positions_);
  }

  void ForwardAttention(uint32_t l, Step* step) const override {
    const Layer& layer = layers_[l];
    step->NormForQkv(layer.attention_norm, config_.norm_eps, layer.qkv);
    step->ProjectQkv(layer.qkv, config_.dim);
    step->Attend(l, config_.dim, config_.dim);
    step->AddAttentionOut(layer.attention_out);
  }

  void ForwardFeedForward(uint32_t l, Step* step) const override {
    const Layer& layer = layers_[l];
    step->NormFor(layer.ffn_norm, config_.norm_eps, layer.up);
    step->Gelu(layer.up);
    step->AddDown(layer.down);
  }

 protected:
  void Declare(WeightLoader* loader) override {
    const ModelConfig& c = config_;
    DeclareEnds(loader, /*norm_bias=*/true);
    loader->AddLinear({"position_embd.weight"}, {c.context}, c.dim, &positions_);
    layers_.resize(c.layers);
    for (uint32_t l = 0; l < c.layers; ++l) {
      const auto name = [l](const char* part) { return fmt::format("blk.{}.{}", l, part); };
      const auto linear = [&](const std::string& part, uint32_t rows, uint32_t cols, Linear* out) {
        loader->AddLinear({name((part + ".weight").c_str())}, {rows}, cols, out);
        loader->AddBias({name((part + ".bias").c_str())}, {rows}, /*optional=*/false, out);
      };
      const auto norm = [&](const std::string& part, Norm* out) {
        loader->AddVector(name((part + ".weight").c_str()), c.dim, &out->weight);
        loader->AddVector(name((part + ".bias").c_str()), c.dim, &out->bias);
      };
      Layer& layer = layers_[l];
      norm("attn_norm", &layer.attention_norm);
      linear("attn_qkv", 3 * c.dim, c.dim, &layer.qkv);
      linear("attn_output", c.dim, c.dim, &layer.attention_out);
      norm("ffn_norm", &layer.ffn_norm);
      linear("ffn_up", c.ffn_dim, c.dim, &layer.up);
      linear("ffn_down", c.dim, c.ffn_dim, &layer.down);
    }
  }

  std::vector<const Linear*> LayerLinears() const override {
    std::vector<const Linear*> all;
    for (const Layer& l : layers_)
      all.insert(all.end(), {&l.qkv, &l.attention_out, &l.up, &l.down});
    return all;
  }

 private:
  Linear positions_;
  std::vector<Layer> layers_;
};

}  // namespace

std::unique_ptr<Model> MakeGpt2() { return std::make_unique<Gpt2>(); }

}  // namespace tinyserve
