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
// `deadline_ms` of TinyServe's own fields, or what the server allows where that is less; 0: none.
// `own`: their object; null: it is absent.
uint64_t ReadDeadline(Fields* own, const RequestLimits& limits);

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_GENERATION_FIELDS_H_
