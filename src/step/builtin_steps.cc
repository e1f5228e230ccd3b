#include "step/builtin_steps.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/value.hpp>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "select/builtin_parts.h"
#include "step/entropy.h"

namespace tinyserve {
namespace {

// ---- early_exit: the token leaves where the model is sure of the next one already ----
//
// CALM (Schuster et al. 2022, arXiv 2207.07061): section 3.1 has the rule for what later layers
// attend to, the state at which the token left, through each layer's own projections; its measure
// there is the gap of the two best probabilities, here it is the entropy of all (TinyServe).

struct EarlyExit {
  uint32_t layer, every;
  double entropy;

  static int Open(const tinyserve_step_shape* shape, const char* config_json, void** self,
                  tinyserve_error* error) {
    const boost::json::object options = Options(config_json);
    auto exit = std::make_unique<EarlyExit>(
        EarlyExit{.layer = options.at("layer").to_number<uint32_t>(),
                  .every = options.at("every").to_number<uint32_t>(),
                  .entropy = options.at("entropy").to_number<double>()});
    if (exit->layer == 0) exit->layer = std::max(1u, shape->layers * 2 / 3);
    if (exit->layer >= shape->layers) {
      return Refuse(error, fmt::format("layer is {}: the model has {} layers, and fewer must do",
                                       exit->layer, shape->layers));
    }
    *self = exit.release();
    return 0;
  }
  static int AsksAfter(void* self, uint32_t layers_done) {
    const auto& exit = *static_cast<EarlyExit*>(self);
    if (layers_done < exit.layer) return 0;
    return exit.every == 0 ? layers_done == exit.layer
                           : (layers_done - exit.layer) % exit.every == 0;
  }
  static int Leave(void* self, const tinyserve_layer_in* in, uint32_t* leave) {
    const double entropy = EntropyOf({in->logits, in->vocab});
    if (!(entropy >= -1)) return 1;  // no number
    *leave = entropy < static_cast<EarlyExit*>(self)->entropy;
    return 0;
  }
};

constexpr tinyserve_step_v2 kEarlyExit = {.abi_version = TINYSERVE_STEP_ABI_VERSION,
                                          .struct_size = sizeof(tinyserve_step_v2),
                                          .name = "early_exit",
                                          .config_schema = R"({"type":"object","properties":{
      "layer":{"type":"integer","minimum":0,"maximum":1024,"default":0},
      "every":{"type":"integer","minimum":0,"maximum":1024,"default":0},
      "entropy":{"type":"number","minimum":0,"maximum":20,"default":0.5}}})",
                                          .priority = 100,
                                          .answer_bytes = 0,
                                          .open = EarlyExit::Open,
                                          .close = Close<EarlyExit>,
                                          .asks_after = EarlyExit::AsksAfter,
                                          .leave = EarlyExit::Leave,
                                          .end = nullptr,
                                          .measures_every = nullptr,
                                          .prune = nullptr};

// ---- low_entropy_end: an answer that has been certain for long has come into a loop ----

struct LowEntropyEnd {
  uint32_t tokens;
  double entropy;

  static int Open(const tinyserve_step_shape*, const char* config_json, void** self,
                  tinyserve_error*) {
    const boost::json::object options = Options(config_json);
    *self = std::make_unique<LowEntropyEnd>(
                LowEntropyEnd{.tokens = options.at("tokens").to_number<uint32_t>(),
                              .entropy = options.at("entropy").to_number<double>()})
                .release();
    return 0;
  }
  static int End(void* self, const tinyserve_answer_in* in, uint32_t* end) {
    const auto& rule = *static_cast<LowEntropyEnd*>(self);
    const double entropy = EntropyOf({in->logits, in->vocab});
    if (!(entropy >= -1)) return 1;                  // no number
    auto& run = *static_cast<uint32_t*>(in->state);  // of certain tokens
    run = entropy < rule.entropy ? run + 1 : 0;
    *end = run >= rule.tokens;
    return 0;
  }
};

constexpr tinyserve_step_v2 kLowEntropyEnd = {.abi_version = TINYSERVE_STEP_ABI_VERSION,
                                              .struct_size = sizeof(tinyserve_step_v2),
                                              .name = "low_entropy_end",
                                              .config_schema = R"({"type":"object","properties":{
      "tokens":{"type":"integer","minimum":1,"maximum":1048576,"default":64},
      "entropy":{"type":"number","minimum":0,"maximum":20,"default":0.2}}})",
                                              .priority = 200,
                                              .answer_bytes = sizeof(uint32_t),
                                              .open = LowEntropyEnd::Open,
                                              .close = Close<LowEntropyEnd>,
                                              .asks_after = nullptr,
                                              .leave = nullptr,
                                              .end = LowEntropyEnd::End,
                                              .measures_every = nullptr,
                                              .prune = nullptr};

// ---- token_pruning: what gets the least attention leaves the cache ----
//
// H2O (Zhang et al. 2023, arXiv 2306.14048), section 4: the tokens with the largest accumulated
// attention stay, and the newest ones. There by token and head, with the sum over all queries; here
// by units of tokens, over all heads, with the mean over the queries that saw a unit, so that old
// ones have no advantage.

struct TokenPruning {
  double keep;
  uint32_t min_tokens, sink, recent, every;

  static int Open(const tinyserve_step_shape*, const char* config_json, void** self,
                  tinyserve_error*) {
    const boost::json::object options = Options(config_json);
    const auto tokens = [&](const char* name) { return options.at(name).to_number<uint32_t>(); };
    *self =
        std::make_unique<TokenPruning>(TokenPruning{.keep = options.at("keep").to_number<double>(),
                                                    .min_tokens = tokens("min_tokens"),
                                                    .sink = tokens("sink"),
                                                    .recent = tokens("recent"),
                                                    .every = tokens("every")})
            .release();
    return 0;
  }
  static uint32_t MeasuresEvery(void* self) { return static_cast<TokenPruning*>(self)->every; }
  static int Prune(void* self, const tinyserve_prune_in* in, uint8_t* drop) {
    const auto& rule = *static_cast<const TokenPruning*>(self);
    const auto units = [in](uint32_t tokens) {
      return (uint64_t{tokens} + in->unit_tokens - 1) / in->unit_tokens;
    };
    const double kept = std::max<double>(rule.min_tokens, std::ceil(rule.keep * in->position));
    // What is held beyond the units that are offered is the newest.
    const uint64_t offered = uint64_t{in->n_units} * in->unit_tokens, newest = in->held - offered;
    const uint64_t first = units(rule.sink);
    const uint64_t spared =
        rule.recent > newest ? units(static_cast<uint32_t>(rule.recent - newest)) : 0;
    if (first + spared >= in->n_units || kept >= in->held) return 0;
    std::vector<uint32_t> order;
    for (auto u = static_cast<uint32_t>(first); u < in->n_units - spared; ++u) {
      if (std::isnan(in->mass[u])) return 1;
      if (std::isfinite(in->mass[u])) order.push_back(u);
    }
    std::stable_sort(order.begin(), order.end(),
                     [in](uint32_t a, uint32_t b) { return in->mass[a] < in->mass[b]; });
    const auto wanted = static_cast<size_t>((in->held - kept) / in->unit_tokens);
    for (size_t i = 0; i < std::min(wanted, order.size()); ++i) drop[order[i]] = 1;
    return 0;
  }
};

constexpr tinyserve_step_v2 kTokenPruning = {.abi_version = TINYSERVE_STEP_ABI_VERSION,
                                             .struct_size = sizeof(tinyserve_step_v2),
                                             .name = "token_pruning",
                                             .config_schema = R"({"type":"object","properties":{
      "keep":{"type":"number","minimum":0.01,"maximum":1,"default":0.5},
      "min_tokens":{"type":"integer","minimum":0,"maximum":16777216,"default":1024},
      "sink":{"type":"integer","minimum":0,"maximum":16777216,"default":16},
      "recent":{"type":"integer","minimum":0,"maximum":16777216,"default":256},
      "every":{"type":"integer","minimum":8,"maximum":4096,"default":32}}})",
                                             .priority = 300,
                                             .answer_bytes = 0,
                                             .open = TokenPruning::Open,
                                             .close = Close<TokenPruning>,
                                             .asks_after = nullptr,
                                             .leave = nullptr,
                                             .end = nullptr,
                                             .measures_every = TokenPruning::MeasuresEvery,
                                             .prune = TokenPruning::Prune};

constexpr const tinyserve_step_v2* kBuiltin[] = {&kEarlyExit, &kLowEntropyEnd, &kTokenPruning};

}  // namespace

std::span<const tinyserve_step_v2* const> BuiltinSteps() { return kBuiltin; }

}  // namespace tinyserve
