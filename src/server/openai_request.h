// Bodies of OpenAI's completion routes as values: pure functions from JSON to a request or to the
// error that names the field. docs/API.md has the table of fields.
#ifndef TINYSERVE_SERVER_OPENAI_REQUEST_H_
#define TINYSERVE_SERVER_OPENAI_REQUEST_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "server/api_error.h"
#include "server/chat_conversation.h"
#include "server/json_fields.h"
#include "tinyserve/engine.h"

namespace tinyserve {

// What a request may ask for. The model's part is known once it is loaded.
struct RequestLimits {
  std::vector<std::string> models;  // names that requests may give; the first is the served one
  uint32_t vocab = 0;
  uint32_t context_tokens = 0;
  uint32_t json_depth_max = 32;
  uint32_t prompts_max = 128;  // of one request
  uint32_t inputs_max = 2048;  // of a request for embeddings
  uint32_t choices_max = 128;  // prompts times n
  uint32_t messages_max = 4096;
  uint32_t request_seconds_max = 0;  // that a request may take, its wait included; 0: any
};

inline constexpr uint32_t kTopLogprobsMax = 20;
inline constexpr size_t kCacheSaltBytesMax = 128;

// What an answer must follow.
struct GrammarSpec {
  GrammarKind kind = GrammarKind::kJsonSchema;
  std::string text;
  std::string field;  // that asked for it, for errors
};

// What both routes share. `engine` has no prompt, max_tokens and seed yet.
struct GenerationOptions {
  Request engine;
  std::optional<uint32_t> max_tokens;
  std::optional<uint64_t> seed;
  std::string cache_salt;
  uint32_t n = 1;
  bool stream = false;
  bool include_usage = false;     // a last chunk with it
  bool continuous_usage = false;  // every chunk has it
  bool add_special = false;       // tokens that the vocabulary puts around texts
  std::optional<GrammarSpec> grammar;
};

using Prompt = std::variant<std::string, std::vector<int32_t>>;

struct CompletionRequest {
  GenerationOptions options;
  std::vector<Prompt> prompts;  // at least one
  bool echo = false;
};

struct ChatRequest {
  GenerationOptions options;
  Conversation conversation;  // at least one message
};

struct ResponseRequest {
  GenerationOptions options;
  Conversation conversation;  // without `instructions` and what came before; may be empty
  std::string instructions;
  std::string previous;  // id of the response that it goes on from; "": none
  bool store = true;
  bool background = false;   // the reply does not wait for the answer
  boost::json::array input;  // the items of `conversation`, as the API has them, with ids
  boost::json::object echo;  // members of the request that the response repeats
};

struct EmbeddingRequest {
  std::vector<Prompt> inputs;  // at least one
  Pooling pooling = Pooling::kMean;
  Priority priority = Priority::kNormal;
  uint64_t deadline_ms = 0;  // since it was read; 0: none
  std::string cache_salt;
  bool base64 = false;  // else lists of numbers
  bool add_special = true;
};

// Nothing: `*error` says why.
std::optional<CompletionRequest> ParseCompletionRequest(std::string_view body,
                                                        const RequestLimits& limits,
                                                        std::optional<ApiError>* error);
std::optional<ChatRequest> ParseChatRequest(std::string_view body, const RequestLimits& limits,
                                            std::optional<ApiError>* error);
std::optional<ResponseRequest> ParseResponseRequest(std::string_view body,
                                                    const RequestLimits& limits,
                                                    std::optional<ApiError>* error);
// `dim`: of the model's embeddings.
std::optional<EmbeddingRequest> ParseEmbeddingRequest(std::string_view body,
                                                      const RequestLimits& limits, uint32_t dim,
                                                      std::optional<ApiError>* error);

// ---- parts, for other routes --------------------------------------------------------------------

// `model`: absent, or one that is served; else 404 model_not_found.
void ReadModel(Fields* fields, const RequestLimits& limits);
// A list of token ids of the vocabulary under `name`. REQUIRES: `value` is a list.
std::vector<int32_t> ReadTokens(Fields* fields, std::string_view name,
                                const boost::json::array& value, const RequestLimits& limits);

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_OPENAI_REQUEST_H_
