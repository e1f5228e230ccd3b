// A conversation as chat templates take it, with the tools that its answer may call.
#ifndef TINYSERVE_SERVER_CHAT_CONVERSATION_H_
#define TINYSERVE_SERVER_CHAT_CONVERSATION_H_

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <cstdint>
#include <string>
#include <vector>

namespace tinyserve {

struct Tool {
  std::string name;                // of letters, digits, _ and -
  boost::json::object parameters;  // a JSON schema of its arguments
  boost::json::object definition;  // the tool as it was sent, for the template
};

enum class ToolUse : uint8_t {
  kNone,      // the model is not told of the tools
  kAuto,      // it may call them
  kRequired,  // its answer is one or more calls
};

struct Conversation {
  // {"role", "content", …}: contents are strings; arguments of calls are objects, not their text.
  boost::json::array messages;
  std::vector<Tool> tools;  // that may be called: one alone, where the request names it
  ToolUse tool_use = ToolUse::kAuto;
  bool parallel_calls = true;
  boost::json::object variables;  // further ones of the template
  bool add_generation_prompt = true;

  // Whether the answer may hold calls.
  bool calls() const { return !tools.empty() && tool_use != ToolUse::kNone; }
};

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_CHAT_CONVERSATION_H_
