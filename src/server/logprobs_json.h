// Log-probabilities in the forms of OpenAI's two completion APIs.
#ifndef TINYSERVE_SERVER_LOGPROBS_JSON_H_
#define TINYSERVE_SERVER_LOGPROBS_JSON_H_

#include <boost/json/object.hpp>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "tinyserve/engine.h"

namespace tinyserve {

struct ScoredToken {
  int32_t token = -1;
  std::optional<float> logprob;   // nothing: a text's first token follows from none
  std::vector<TokenLogprob> top;  // best first
};

// What a token stands for, as text: control tokens spelled, half characters as U+FFFD.
std::string TokenText(const Engine& engine, int32_t token);

// {"tokens", "token_logprobs", "top_logprobs", "text_offset"}: offsets in characters, the first
// token's is `*offset`, which then is that of what follows. Without `with_top`, top_logprobs is
// null.
boost::json::object CompletionLogprobs(const Engine& engine, std::span<const ScoredToken> tokens,
                                       bool with_top, uint64_t* offset);

// {"content": [{"token", "logprob", "bytes", "top_logprobs"}]}.
boost::json::object ChatLogprobs(const Engine& engine, std::span<const ScoredToken> tokens);

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_LOGPROBS_JSON_H_
