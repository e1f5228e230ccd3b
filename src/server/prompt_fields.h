// Prompts as requests give them: texts or token ids.
#ifndef TINYSERVE_SERVER_PROMPT_FIELDS_H_
#define TINYSERVE_SERVER_PROMPT_FIELDS_H_

#include <cstdint>
#include <string_view>
#include <vector>

#include "server/json_fields.h"
#include "server/openai_request.h"

namespace tinyserve {

// The member `name`, which must be there: a string, a list of token ids, or a list of 1 to
// `count_max` of either. Token ids are of the vocabulary, and no list of them is empty.
std::vector<Prompt> ReadPrompts(Fields* fields, std::string_view name, uint32_t count_max,
                                const RequestLimits& limits);

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_PROMPT_FIELDS_H_
