#include "model/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

namespace tinyserve {
namespace {

// One row an architecture: how its keys and equations differ from the family's.
struct Architecture {
  const char* name;
  bool rope;
  bool interleaved;  // pairs of RoPE
  const char* eps_key;
};

constexpr Architecture kArchitectures[] = {
    {.name = "llama",
     .rope = true,
     .interleaved = true,
     .eps_key = "attention.layer_norm_rms_epsilon"},
    {.name = "qwen2",
     .rope = true,
     .interleaved = false,
     .eps_key = "attention.layer_norm_rms_epsilon"},
    {.name = "gpt2",
     .rope = false,
     .interleaved = false,
     .eps_key = "attention.layer_norm_epsilon"},
};

// Reads keys below one prefix and remembers the first error.
class KeyReader {
 public:
  KeyReader(const GgufFile& file, std::string prefix) : file_(file), prefix_(std::move(prefix)) {}

  // An integer in [low, high]; `fallback` where the key is absent, unless that is 0.
  uint32_t Uint(const std::string& key, uint64_t low, uint64_t high, uint64_t fallback = 0) {
    const std::string full = prefix_ + key;
    if (file_.Find(full) == nullptr && fallback != 0) return static_cast<uint32_t>(fallback);
    const Result<uint64_t> value = file_.GetUint(full);
    if (!value.ok()) return Fail(value.status());
    if (*value < low || *value > high) {
      return Fail(Status(Code::kCorrupt,
                         fmt::format("{} is {}: allowed are {} to {}", full, *value, low, high)));
    }
    return static_cast<uint32_t>(*value);
  }

  double Float(const std::string& key, double low, double high, double fallback) {
    const std::string full = prefix_ + key;
    if (file_.Find(full) == nullptr) return fallback;
    const Result<double> value = file_.GetFloat(full);
    if (!value.ok()) return Fail(value.status());
    if (!(*value >= low && *value <= high)) {
      return Fail(Status(Code::kCorrupt,
                         fmt::format("{} is {}: allowed are {} to {}", full, *value, low, high)));
    }
    return *value;
  }

  std::string String(const std::string& key, const std::string& fallback) {
    const std::string full = prefix_ + key;
    if (file_.Find(full) == nullptr) return fallback;
    Result<std::string> value = file_.GetString(full);
    if (!value.ok()) {
      Fail(value.status());
      return fallback;
    }
    return *std::move(value);
  }

  uint32_t Fail(const Status& status) {
    if (status_.ok()) status_ = status;
    return 0;
  }
  const Status& status() const { return status_; }

 private:
  const GgufFile& file_;
  std::string prefix_;
  Status status_;
};

// Scaling of positions past the context that the model was trained on. A factor without a type is
// linear scaling; files older than the types hold it as rope.scale_linear. A factor of 0 is written
// by converters that found none.
void ReadRopeScaling(KeyReader* keys, ModelConfig* c) {
  double factor = keys->Float("rope.scaling.factor", 0, 1e6, 0);
  if (factor == 0) factor = keys->Float("rope.scale_linear", 0, 1e6, 0);
  const std::string scaling = keys->String("rope.scaling.type", factor == 0 ? "none" : "linear");
  if (scaling == "linear") {
    c->rope.scaling = RopeScaling::kLinear;
  } else if (scaling == "yarn") {
    c->rope.scaling = RopeScaling::kYarn;
    c->rope.original_context =
        keys->Uint("rope.scaling.original_context_length", 1, UINT32_MAX, c->context);
    c->rope.attention_factor = keys->Float("rope.scaling.attn_factor", 1e-3, 1e3, 1.0);
    c->rope.beta_fast = keys->Float("rope.scaling.yarn_beta_fast", 1e-3, 1e6, 32.0);
    c->rope.beta_slow = keys->Float("rope.scaling.yarn_beta_slow", 1e-3, 1e6, 1.0);
  } else if (scaling == "none") {
    return;
  } else {
    keys->Fail(
        Status(Code::kUnsupported,
               fmt::format("rope.scaling.type '{}' is not supported: none, linear and yarn are",
                           scaling)));
  }
  c->rope.factor = factor == 0 ? 1 : factor;
  if (c->rope.factor < 1e-3) {
    keys->Fail(Status(
        Code::kCorrupt,
        fmt::format("rope.scaling.factor is {}: allowed are 0.001 to 1000000", c->rope.factor)));
  }
}

void ReadRope(KeyReader* keys, const Architecture& architecture, ModelConfig* c) {
  c->rope.interleaved = architecture.interleaved;
  c->rope.dims =
      keys->Uint("rope.dimension_count", 2, std::max(2u, c->head_dim), std::max(2u, c->head_dim));
  if (c->rope.dims % 2 != 0) {
    keys->Fail(Status(Code::kCorrupt,
                      fmt::format("rope.dimension_count is {}: it must be even", c->rope.dims)));
  }
  c->rope.base = keys->Float("rope.freq_base", 1.0, 1e12, 10000.0);
  ReadRopeScaling(keys, c);
}

}  // namespace

Result<ModelConfig> ReadModelConfig(const GgufFile& file) {
  TS_ASSIGN_OR_RETURN(const std::string name, file.GetString("general.architecture"));
  const Architecture* architecture = nullptr;
  std::string known;
  for (const Architecture& a : kArchitectures) {
    if (name == a.name) architecture = &a;
    known += (known.empty() ? "" : ", ") + std::string(a.name);
  }
  if (architecture == nullptr) {
    return Status(Code::kUnsupported,
                  fmt::format("architecture '{}' is not supported: {} are", name, known));
  }
  KeyReader keys(file, name + ".");
  ModelConfig c;
  c.architecture = name;
  if (file.Find("general.name") != nullptr) {
    TS_ASSIGN_OR_RETURN(c.name, file.GetString("general.name"));
  }
  c.layers = keys.Uint("block_count", 1, 1024);
  c.dim = keys.Uint("embedding_length", 1, 1 << 17);
  c.heads = keys.Uint("attention.head_count", 1, 4096);
  c.kv_heads = keys.Uint("attention.head_count_kv", 1, 4096, std::max(1u, c.heads));
  c.ffn_dim = keys.Uint("feed_forward_length", 1, 1 << 20);
  c.context = keys.Uint("context_length", 1, UINT32_MAX);
  c.norm_eps = static_cast<float>(keys.Float(architecture->eps_key, 0, 1, 1e-5));
  TS_RETURN_IF_ERROR(keys.status());
  if (c.heads % c.kv_heads != 0) {
    return Status(
        Code::kCorrupt,
        fmt::format("{}.attention.head_count is {}: it must be a multiple of head_count_kv, {}",
                    name, c.heads, c.kv_heads));
  }
  c.head_dim = keys.Uint("attention.key_length", 1, 1024, std::max(1u, c.dim / c.heads));
  const uint32_t value_dim = keys.Uint("attention.value_length", 1, 1024, std::max(1u, c.head_dim));
  if (architecture->rope) ReadRope(&keys, *architecture, &c);
  TS_RETURN_IF_ERROR(keys.status());
  if (!architecture->rope && (c.kv_heads != c.heads || uint64_t{c.heads} * c.head_dim != c.dim)) {
    return Status(
        Code::kCorrupt,
        fmt::format("{}: {} heads ({} of keys) of {} channels do not make up the width {}", name,
                    c.heads, c.kv_heads, c.head_dim, c.dim));
  }
  if (value_dim != c.head_dim) {
    return Status(Code::kUnsupported,
                  fmt::format("{}.attention.value_length {} differs from key_length {}", name,
                              value_dim, c.head_dim));
  }
  return c;
}

std::vector<float> RopeFrequencies(const RopeConfig& rope, const std::vector<float>& divisors,
                                   float* magnitude) {
  const uint32_t pairs = rope.dims / 2;
  std::vector<float> frequencies(pairs);
  *magnitude = 1.0f;
  // The pair whose angle makes `rotations` full turns over the original context.
  const auto pair_of = [&](double rotations) {
    return rope.dims * std::log(rope.original_context / (rotations * 2 * std::numbers::pi)) /
           (2 * std::log(rope.base));
  };
  double low = 0, high = 0;
  if (rope.scaling == RopeScaling::kYarn) {
    low = std::max(0.0, std::floor(pair_of(rope.beta_fast)));
    high = std::min(rope.dims - 1.0, std::ceil(pair_of(rope.beta_slow)));
    *magnitude = static_cast<float>(rope.attention_factor *
                                    (rope.factor > 1 ? 1 + 0.1 * std::log(rope.factor) : 1));
  }
  for (uint32_t i = 0; i < pairs; ++i) {
    double f = std::pow(rope.base, -2.0 * i / rope.dims);
    if (!divisors.empty()) f /= divisors[i];
    if (rope.scaling == RopeScaling::kLinear) f /= rope.factor;
    if (rope.scaling == RopeScaling::kYarn) {
      // Fast pairs keep their frequency, slow ones are interpolated, with a linear ramp between.
      const double keep = 1 - std::clamp((i - low) / std::max(0.001, high - low), 0.0, 1.0);
      f = f * keep + f / rope.factor * (1 - keep);
    }
    frequencies[i] = static_cast<float>(f);
  }
  return frequencies;
}

}  // namespace tinyserve
