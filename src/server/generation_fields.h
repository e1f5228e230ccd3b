// The fields that several routes have in common.
#ifndef TINYSERVE_SERVER_GENERATION_FIELDS_H_
#define TINYSERVE_SERVER_GENERATION_FIELDS_H_

#include "server/json_fields.h"
#include "server/openai_request.h"

namespace tinyserve {

// Reads and checks them, those that are only accepted and those that are refused included.
void ReadGenerationFields(Fields* fields, const RequestLimits& limits, GenerationOptions* options);
// OpenAI's service_tier or vLLM's priority (a lower number is served first), as the engine's three
// classes.
Priority ReadPriority(Fields* fields);

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_GENERATION_FIELDS_H_
