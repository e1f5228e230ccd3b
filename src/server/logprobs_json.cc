#include "server/logprobs_json.h"

#include <algorithm>
#include <boost/json/array.hpp>

#include "text/utf8.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

uint64_t Characters(std::string_view valid_utf8) {
  // Bytes that do not continue a character.
  return static_cast<uint64_t>(std::count_if(valid_utf8.begin(), valid_utf8.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xc0u) != 0x80u;
  }));
}

std::string TokenBytes(const Engine& engine, int32_t token) {
  const Result<std::string> bytes = engine.TokenBytes(token);
  return bytes.ok() ? *bytes : std::string();  // only a padding row of the embedding has none
}

json::object Described(const Engine& engine, int32_t token, float logprob) {
  const std::string bytes = TokenBytes(engine, token);
  json::array numbers;
  for (const char c : bytes) numbers.push_back(static_cast<unsigned char>(c));
  return {
      {"token", ReplaceInvalidUtf8(bytes)}, {"logprob", logprob}, {"bytes", std::move(numbers)}};
}

}  // namespace

std::string TokenText(const Engine& engine, int32_t token) {
  return ReplaceInvalidUtf8(TokenBytes(engine, token));
}

json::object CompletionLogprobs(const Engine& engine, std::span<const ScoredToken> tokens,
                                bool with_top, uint64_t* offset) {
  json::array texts, logprobs, tops, offsets;
  for (const ScoredToken& scored : tokens) {
    const std::string text = TokenText(engine, scored.token);
    texts.emplace_back(text);
    logprobs.push_back(scored.logprob ? json::value(*scored.logprob) : json::value(nullptr));
    offsets.emplace_back(*offset);
    *offset += Characters(text);
    if (!scored.logprob) {
      tops.emplace_back(nullptr);
      continue;
    }
    // The chosen token is always there, also where it is none of the best.
    json::object top;
    for (const TokenLogprob& other : scored.top)
      top.emplace(TokenText(engine, other.token), other.logprob);
    top.emplace(text, *scored.logprob);
    tops.push_back(std::move(top));
  }
  return {{"tokens", std::move(texts)},
          {"token_logprobs", std::move(logprobs)},
          {"top_logprobs", with_top ? json::value(std::move(tops)) : json::value(nullptr)},
          {"text_offset", std::move(offsets)}};
}

json::object ChatLogprobs(const Engine& engine, std::span<const ScoredToken> tokens) {
  json::array content;
  for (const ScoredToken& scored : tokens) {
    json::object described = Described(engine, scored.token, scored.logprob.value_or(0));
    json::array top;
    for (const TokenLogprob& other : scored.top)
      top.push_back(Described(engine, other.token, other.logprob));
    described["top_logprobs"] = std::move(top);
    content.push_back(std::move(described));
  }
  return {{"content", std::move(content)}};
}

}  // namespace tinyserve
