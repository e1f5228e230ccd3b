// Model files that are well-formed GGUF but wrong as models: each is refused with the key or tensor
// and what is allowed.
#include "model/model.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <map>
#include <memory>

#include "kernels/tables.h"
#include "tests/support/gguf_builder.h"

namespace tinyserve {
namespace {

// A tiny llama: one layer, width 32, 4 heads of 8 channels, 2 KV heads, 64 hidden, 50 tokens. A
// test changes keys or shapes.
struct Recipe {
  std::map<std::string, uint32_t> uints = {
      {"llama.block_count", 1},          {"llama.embedding_length", 32},
      {"llama.attention.head_count", 4}, {"llama.attention.head_count_kv", 2},
      {"llama.feed_forward_length", 64}, {"llama.context_length", 128}};
  std::map<std::string, std::string> strings = {{"general.architecture", "llama"}};
  std::map<std::string, float> floats = {{"llama.attention.layer_norm_rms_epsilon", 1e-5f}};
  std::map<std::string, std::vector<uint64_t>> tensors = {
      {"token_embd.weight", {32, 50}},        {"output_norm.weight", {32}},
      {"blk.0.attn_norm.weight", {32}},       {"blk.0.attn_q.weight", {32, 32}},
      {"blk.0.attn_k.weight", {32, 16}},      {"blk.0.attn_v.weight", {32, 16}},
      {"blk.0.attn_output.weight", {32, 32}}, {"blk.0.ffn_norm.weight", {32}},
      {"blk.0.ffn_gate.weight", {32, 64}},    {"blk.0.ffn_up.weight", {32, 64}},
      {"blk.0.ffn_down.weight", {64, 32}}};

  Result<std::unique_ptr<Model>> Load() const {
    GgufBuilder builder;
    for (const auto& [key, value] : strings) builder.String(key, value);
    for (const auto& [key, value] : uints) builder.Uint32(key, value);
    for (const auto& [key, value] : floats) builder.Float32(key, value);
    for (const auto& [name, dims] : tensors) {
      uint64_t elements = 1;
      for (uint64_t d : dims) elements *= d;
      builder.Tensor(name, DType::kF32, dims, std::vector<uint8_t>(elements * sizeof(float), 0));
    }
    const std::vector<uint8_t> bytes = builder.Build();
    TS_ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file, GgufFile::Parse(bytes, "test"));
    ThreadPool threads(1);
    return LoadModel(
        *file,
        {.kernels = RefKernels(), .compute = Compute::kFast, .threads = &threads, .progress = {}});
  }
};

std::string MessageAfter(const std::function<void(Recipe*)>& change) {
  Recipe recipe;
  change(&recipe);
  return recipe.Load().status().message();
}

void ExpectRefused(const std::function<void(Recipe*)>& change, const std::string& part) {
  const std::string message = MessageAfter(change);
  EXPECT_NE(message.find(part), std::string::npos)
      << "got: '" << message << "', expected: '" << part << "'";
}

TEST(LoadModel, TheRecipeItselfLoads) {
  EXPECT_EQ(MessageAfter([](Recipe*) {}), "");
}

TEST(LoadModel, RefusesArchitecturesByName) {
  ExpectRefused([](Recipe* r) { r->strings["general.architecture"] = "mamba"; },
                "architecture 'mamba' is not supported: llama, qwen2, gpt2 are");
  ExpectRefused([](Recipe* r) { r->strings.erase("general.architecture"); },
                "general.architecture");
}

TEST(LoadModel, EveryRequiredKeyIsMissedByName) {
  for (const char* key :
       {"llama.block_count", "llama.embedding_length", "llama.attention.head_count",
        "llama.feed_forward_length", "llama.context_length"}) {
    ExpectRefused([&](Recipe* r) { r->uints.erase(key); }, key);
    ExpectRefused([&](Recipe* r) { r->uints[key] = 0; }, std::string(key) + " is 0: allowed are");
    ExpectRefused(
        [&](Recipe* r) {
          r->uints.erase(key);
          r->strings[key] = "many";
        },
        key);
  }
  ExpectRefused([](Recipe* r) { r->uints["llama.block_count"] = 5000; },
                "llama.block_count is 5000: allowed are 1 to 1024");
}

TEST(LoadModel, HeadsMustFit) {
  ExpectRefused([](Recipe* r) { r->uints["llama.attention.head_count_kv"] = 3; },
                "must be a multiple of head_count_kv");
  ExpectRefused([](Recipe* r) { r->uints["llama.attention.value_length"] = 4; },
                "value_length 4 differs from key_length 8");
  ExpectRefused([](Recipe* r) { r->uints["llama.rope.dimension_count"] = 7; }, "it must be even");
  ExpectRefused([](Recipe* r) { r->uints["llama.rope.dimension_count"] = 10; },
                "allowed are 2 to 8");
}

TEST(LoadModel, ScalingMustBeKnown) {
  ExpectRefused([](Recipe* r) { r->strings["llama.rope.scaling.type"] = "longrope"; },
                "rope.scaling.type 'longrope' is not supported");
  ExpectRefused(
      [](Recipe* r) {
        r->strings["llama.rope.scaling.type"] = "yarn";
        r->uints["llama.rope.scaling.original_context_length"] = 0;
      },
      "original_context_length is 0");
  ExpectRefused([](Recipe* r) { r->floats["llama.rope.scaling.factor"] = 0x1p-12f; },
                "rope.scaling.factor is 0.000244140625: allowed are 0.001 to");
  ExpectRefused([](Recipe* r) { r->floats["llama.rope.scaling.factor"] = NAN; },
                "rope.scaling.factor is nan");
  ExpectRefused([](Recipe* r) { r->floats["llama.rope.freq_base"] = NAN; },
                "rope.freq_base is nan");
}

RopeConfig RopeAfter(const std::function<void(Recipe*)>& change) {
  Recipe recipe;
  change(&recipe);
  const auto model = recipe.Load();
  EXPECT_TRUE(model.ok()) << model.status().message();
  return model.ok() ? (*model)->config().rope : RopeConfig();
}

TEST(LoadModel, ScalingOfFilesThatLeaveKeysOut) {
  const RopeConfig untyped =
      RopeAfter([](Recipe* r) { r->floats["llama.rope.scaling.factor"] = 4; });
  EXPECT_EQ(untyped.scaling, RopeScaling::kLinear);
  EXPECT_EQ(untyped.factor, 4);
  const RopeConfig legacy = RopeAfter([](Recipe* r) { r->floats["llama.rope.scale_linear"] = 2; });
  EXPECT_EQ(legacy.scaling, RopeScaling::kLinear);
  EXPECT_EQ(legacy.factor, 2);
  const RopeConfig none = RopeAfter([](Recipe* r) {
    r->strings["llama.rope.scaling.type"] = "none";
    r->floats["llama.rope.scaling.factor"] = 4;
  });
  EXPECT_EQ(none.scaling, RopeScaling::kNone);
  EXPECT_EQ(none.factor, 1);
  const RopeConfig yarn = RopeAfter([](Recipe* r) {
    r->strings["llama.rope.scaling.type"] = "yarn";
    r->floats["llama.rope.scaling.factor"] = 8;
  });
  EXPECT_EQ(yarn.scaling, RopeScaling::kYarn);
  EXPECT_EQ(yarn.original_context, 128u);  // the model's own
}

TEST(LoadModel, TensorsAreMissedAndMeasuredByName) {
  for (const auto& [name, dims] : Recipe().tensors) {
    ExpectRefused([&, n = name](Recipe* r) { r->tensors.erase(n); }, "no tensor '" + name + "'");
    if (name == "token_embd.weight") continue;  // its rows are the vocabulary
    ExpectRefused([&, n = name](Recipe* r) { r->tensors[n].back() += 1; },
                  "tensor '" + name + "' is ");
  }
  ExpectRefused([](Recipe* r) { r->tensors["token_embd.weight"][0] = 31; },
                "the model's configuration asks for 50 x 32");
  ExpectRefused([](Recipe* r) { r->tensors["rope_freqs.weight"] = {3}; },
                "tensor 'rope_freqs.weight' has 1 x 3 elements: expected 4");
  ExpectRefused([](Recipe* r) { r->tensors["rope_freqs.weight"] = {4}; }, "it must be positive");
}

TEST(RopeFrequencies, LinearAndDivisorsAndYarn) {
  RopeConfig rope{.dims = 8, .base = 10000};
  float magnitude = 0;
  const auto plain = RopeFrequencies(rope, {}, &magnitude);
  EXPECT_EQ(magnitude, 1.0f);
  EXPECT_FLOAT_EQ(plain[0], 1.0f);
  EXPECT_FLOAT_EQ(plain[1], 0.1f);
  EXPECT_FLOAT_EQ(RopeFrequencies(rope, {1, 2, 4, 8}, &magnitude)[3], plain[3] / 8);
  rope.scaling = RopeScaling::kLinear;
  rope.factor = 4;
  EXPECT_FLOAT_EQ(RopeFrequencies(rope, {}, &magnitude)[2], plain[2] / 4);
  rope.scaling = RopeScaling::kYarn;
  rope.original_context = 2048;
  const auto yarn = RopeFrequencies(rope, {}, &magnitude);
  EXPECT_FLOAT_EQ(magnitude, 1.0f + 0.1f * std::log(4.0f));
  EXPECT_FLOAT_EQ(yarn[0], plain[0]);      // fast pairs keep their frequency
  EXPECT_FLOAT_EQ(yarn[3], plain[3] / 4);  // slow ones are interpolated
  for (size_t i = 0; i < yarn.size(); ++i) {
    EXPECT_LE(yarn[i], plain[i]);
    EXPECT_GE(yarn[i] * 1.0001f, plain[i] / 4);
  }
}

}  // namespace
}  // namespace tinyserve
