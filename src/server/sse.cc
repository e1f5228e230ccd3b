#include "server/sse.h"

namespace tinyserve {

void AppendEvent(std::string_view data, std::string* out) {
  // A line may end in CR, LF or both; all of them would end the field.
  for (;;) {
    const size_t end = data.find_first_of("\r\n");
    *out += "data: ";
    *out += data.substr(0, end);
    *out += '\n';
    if (end == std::string_view::npos) break;
    data.remove_prefix(end + (data.substr(end).starts_with("\r\n") ? 2 : 1));
  }
  *out += '\n';
}

void AppendNamedEvent(std::string_view name, std::string_view data, std::string* out) {
  *out += "event: ";
  *out += name;
  *out += '\n';
  AppendEvent(data, out);
}

}  // namespace tinyserve
