// Which storage of keys and values goes with which selector.
#ifndef TINYSERVE_ENGINE_SELECTOR_STORAGE_H_
#define TINYSERVE_ENGINE_SELECTOR_STORAGE_H_

#include <string>

#include "kv/codec.h"
#include "select/selector.h"
#include "tinyserve/status.h"

namespace tinyserve {

// The codec that a selector is served from where none is asked for: "planes" for one that reads
// coded pages, else "f16".
std::string KvFor(const SelectorSpec& spec);

// Whether a selector can read what a codec stores. Errors: kInvalidArgument, naming both.
Status CheckStored(const SelectorSpec& spec, const Codec& codec);

}  // namespace tinyserve

#endif  // TINYSERVE_ENGINE_SELECTOR_STORAGE_H_
