// Members of requests' bodies as OpenAPI's schemas have them. openapi_test.cc holds every row
// against what is parsed: its name, its range, its words.
#ifndef TINYSERVE_SERVER_OPENAPI_FIELDS_H_
#define TINYSERVE_SERVER_OPENAPI_FIELDS_H_

#include <span>
#include <string_view>

namespace tinyserve {

struct ApiField {
  std::string_view name;
  std::string_view schema;  // JSON
  bool required = false;
};

// A body is an object of the members of several tables, and no others.
extern const std::span<const ApiField> kGenerationFields;  // of completions, chats and responses
extern const std::span<const ApiField> kAnswerFields;      // of completions and chats
extern const std::span<const ApiField> kCompletionFields;
extern const std::span<const ApiField> kChatFields;
extern const std::span<const ApiField> kResponseFields;
extern const std::span<const ApiField> kEmbeddingFields;
extern const std::span<const ApiField> kTokenizeFields;
extern const std::span<const ApiField> kDetokenizeFields;

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_OPENAPI_FIELDS_H_
