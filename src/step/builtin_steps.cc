#include "step/builtin_steps.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/value.hpp>
#include <cstdint>
#include <memory>

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

constexpr tinyserve_step_v1 kEarlyExit = {.abi_version = TINYSERVE_STEP_ABI_VERSION,
                                          .struct_size = sizeof(tinyserve_step_v1),
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
                                          .end = nullptr};

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

constexpr tinyserve_step_v1 kLowEntropyEnd = {.abi_version = TINYSERVE_STEP_ABI_VERSION,
                                              .struct_size = sizeof(tinyserve_step_v1),
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
                                              .end = LowEntropyEnd::End};

constexpr const tinyserve_step_v1* kBuiltin[] = {&kEarlyExit, &kLowEntropyEnd};

}  // namespace

std::span<const tinyserve_step_v1* const> BuiltinSteps() { return kBuiltin; }

}  // namespace tinyserve
