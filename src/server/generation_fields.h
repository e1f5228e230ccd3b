// The fields that completion and chat requests have in common.
#ifndef TINYSERVE_SERVER_GENERATION_FIELDS_H_
#define TINYSERVE_SERVER_GENERATION_FIELDS_H_

#include "server/json_fields.h"
#include "server/openai_request.h"

namespace tinyserve {

// Reads and checks them, those that are only accepted and those that are refused included.
void ReadGenerationFields(Fields* fields, const RequestLimits& limits, GenerationOptions* options);

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_GENERATION_FIELDS_H_
