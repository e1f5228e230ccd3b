// Which storage of keys and values goes with which selector.
#ifndef TINYSERVE_ENGINE_SELECTOR_STORAGE_H_
#define TINYSERVE_ENGINE_SELECTOR_STORAGE_H_

#include <cstdint>
#include <span>
#include <string>

#include "kv/codec.h"
#include "model/config.h"
#include "select/selector.h"
#include "tinyserve/status.h"

namespace tinyserve {

// The codec that a selector is served from where none is asked for: "planes" for one that reads
// those, else "f16".
std::string KvFor(const SelectorSpec& spec);

// Whether a selector can read what a codec stores. Errors: kInvalidArgument, naming both.
Status CheckStored(const SelectorSpec& spec, const Codec& codec);

// The kinds of record that a cache keeps for its codec and for these selectors.
uint32_t RecordKindsOf(std::span<const SelectorSpec> specs, const Codec& codec);

// What selectors are opened for: sequences of at most `tokens_max` tokens over pages of which
// `record_kinds` are kept.
tinyserve_shape SelectorShapeOf(const ModelConfig& config, uint32_t page_tokens,
                                uint32_t tokens_max, uint32_t record_kinds);

}  // namespace tinyserve

#endif  // TINYSERVE_ENGINE_SELECTOR_STORAGE_H_
