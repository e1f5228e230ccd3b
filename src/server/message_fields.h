// One message of a chat request.
#ifndef TINYSERVE_SERVER_MESSAGE_FIELDS_H_
#define TINYSERVE_SERVER_MESSAGE_FIELDS_H_

#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "server/api_error.h"

namespace tinyserve {

// As templates take it: {"role", "content"}, "name" where it has one, and, of assistants,
// "reasoning_content" and "tool_calls" with their arguments as objects; of tools "tool_call_id".
// Nothing: `*error` says why.
std::optional<boost::json::object> ReadMessage(const boost::json::value& value,
                                               const std::string& path, uint32_t json_depth_max,
                                               std::optional<ApiError>* error);

// The object whose text is `text`; nothing: it is none.
std::optional<boost::json::object> ParseObject(std::string_view text, uint32_t depth_max);

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_MESSAGE_FIELDS_H_
