// Grammars in the form of llama.cpp's GBNF, which vLLM takes as well, made Lark's.
#ifndef TINYSERVE_TEXT_GBNF_H_
#define TINYSERVE_TEXT_GBNF_H_

#include <string>
#include <string_view>

#include "tinyserve/status.h"

namespace tinyserve {

// Whether a grammar's text defines a rule by "::=", which Lark does not know.
bool IsGbnf(std::string_view text);

// The same language, beginning at `start`. Literals, classes of characters, ".", groups, "|", "*",
// "+", "?", "{m,n}" and comments are understood. Errors: kInvalidArgument (what else stands there,
// by its line; a rule that is not defined; no `root`).
Result<std::string> LarkOfGbnf(std::string_view text);

}  // namespace tinyserve

#endif  // TINYSERVE_TEXT_GBNF_H_
