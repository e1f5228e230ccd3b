#include "engine/request_check.h"

#include <fmt/format.h>

#include <utility>

#include "engine/sampler.h"

namespace tinyserve {
namespace {

constexpr uint32_t kTopLogprobsMax = 20;
constexpr size_t kStopStringsMax = 16, kStopBytesMax = 256, kNameBytesMax = 256;

}  // namespace

Status CheckRequest(const Request& r, uint32_t vocab, uint32_t context_tokens) {
  const auto bad = [](std::string message) {
    return Status(Code::kInvalidArgument, std::move(message));
  };
  if (r.prompt.empty()) return bad("prompt is empty: at least one token is needed");
  for (int32_t token : r.prompt) {
    if (token < 0 || static_cast<uint32_t>(token) >= vocab) {
      return bad(fmt::format("prompt holds token {}: allowed are 0 to {}", token, vocab - 1));
    }
  }
  const uint64_t total = uint64_t{r.prompt.size()} + r.max_tokens;
  if (total > context_tokens) {
    return bad(fmt::format("prompt ({} tokens) and max_tokens ({}) make {}: the context holds {}",
                           r.prompt.size(), r.max_tokens, total, context_tokens));
  }
  TS_RETURN_IF_ERROR(CheckSampling(r.sampling, vocab));
  if (r.top_logprobs < -1 || r.top_logprobs > static_cast<int32_t>(kTopLogprobsMax)) {
    return bad(
        fmt::format("top_logprobs is {}: allowed are -1 to {}", r.top_logprobs, kTopLogprobsMax));
  }
  if (r.min_tokens > r.max_tokens) {
    return bad(fmt::format("min_tokens is {}: it must not exceed max_tokens, {}", r.min_tokens,
                           r.max_tokens));
  }
  if (r.constraint != nullptr && (r.ignore_eos || r.min_tokens > 0)) {
    return bad(
        "ignore_eos and min_tokens are not allowed with a constraint, which says itself "
        "where an answer may end");
  }
  if (r.pooling != Pooling::kNone && r.max_tokens != 0) {
    return bad(fmt::format(
        "max_tokens is {}: an embedding is that of the prompt alone, allowed is 0", r.max_tokens));
  }
  if (r.stop.size() > kStopStringsMax) {
    return bad(fmt::format("stop holds {} strings: at most {} are allowed", r.stop.size(),
                           kStopStringsMax));
  }
  for (const std::string& stop : r.stop) {
    if (stop.empty() || stop.size() > kStopBytesMax) {
      return bad(fmt::format("stop holds a string of {} bytes: allowed are 1 to {}", stop.size(),
                             kStopBytesMax));
    }
  }
  for (int32_t token : r.stop_tokens) {
    if (token < 0 || static_cast<uint32_t>(token) >= vocab) {
      return bad(fmt::format("stop_tokens holds {}: allowed are 0 to {}", token, vocab - 1));
    }
  }
  for (const auto& [name, text] : {std::pair("salt", &r.salt),
                                   {"session", &r.session},
                                   {"client", &r.client},
                                   {"peer", &r.peer}}) {
    if (text->size() <= kNameBytesMax) continue;
    return bad(
        fmt::format("{} has {} bytes: at most {} are allowed", name, text->size(), kNameBytesMax));
  }
  return Status();
}

}  // namespace tinyserve
