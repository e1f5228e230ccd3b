// What a request may ask for, whatever else runs.
#ifndef TINYSERVE_ENGINE_REQUEST_CHECK_H_
#define TINYSERVE_ENGINE_REQUEST_CHECK_H_

#include <cstdint>

#include "tinyserve/engine.h"
#include "tinyserve/status.h"

namespace tinyserve {

// Errors: kInvalidArgument, naming the field and what is allowed.
Status CheckRequest(const Request& request, uint32_t vocab, uint32_t context_tokens);

}  // namespace tinyserve

#endif  // TINYSERVE_ENGINE_REQUEST_CHECK_H_
