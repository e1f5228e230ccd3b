// Server-sent events (WHATWG HTML, section 9.2), as OpenAI's API uses them.
#ifndef TINYSERVE_SERVER_SSE_H_
#define TINYSERVE_SERVER_SSE_H_

#include <string>
#include <string_view>

namespace tinyserve {

inline constexpr std::string_view kEventStream = "text/event-stream";
// Ends every stream that went well.
inline constexpr std::string_view kDone = "[DONE]";
// A comment that says that the connection lives; clients skip it.
inline constexpr std::string_view kHeartbeat = ": waiting\n\n";

// Appends an event whose data is `data`; each line of it becomes a data field.
void AppendEvent(std::string_view data, std::string* out);
// The same of an event with a name of its own, which is one line.
void AppendNamedEvent(std::string_view name, std::string_view data, std::string* out);

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_SSE_H_
