// What an answer must follow: OpenAI's response_format and vLLM's names for the same.
#ifndef TINYSERVE_SERVER_STRUCTURED_FIELDS_H_
#define TINYSERVE_SERVER_STRUCTURED_FIELDS_H_

#include <optional>

#include "server/json_fields.h"
#include "server/openai_request.h"

namespace tinyserve {

// response_format, structured_outputs, guided_json, guided_regex, guided_choice, guided_grammar; no
// two of them together. Nothing: the answer is free.
std::optional<GrammarSpec> ReadStructured(Fields* fields, std::optional<ApiError>* error);
// `format` of a response's `text`: the same of the responses' API.
std::optional<GrammarSpec> ReadTextFormat(Fields* text, std::optional<ApiError>* error);

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_STRUCTURED_FIELDS_H_
