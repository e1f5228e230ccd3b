// Events of any data, and the chunks that carry them: a reader who keeps to the standards gets what
// was written, wherever the network cuts it.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "server/http_text.h"
#include "server/sse.h"

namespace tinyserve {
namespace {

// WHATWG HTML, 9.2.6, of fields that are written here; nothing else may be there.
std::vector<std::string> EventsOf(std::string_view stream) {
  std::vector<std::string> events;
  std::string data;
  bool any = false;
  while (!stream.empty()) {
    const size_t end = stream.find('\n');
    TS_CHECK(end != std::string_view::npos);
    const std::string_view line = stream.substr(0, end);
    stream.remove_prefix(end + 1);
    TS_CHECK(line.find('\r') == std::string_view::npos);
    if (line.empty()) {
      if (any) events.push_back(data);
      data.clear();
      any = false;
    } else if (line.starts_with("data: ")) {
      data += (any ? "\n" : "") + std::string(line.substr(6));
      any = true;
    } else {
      TS_CHECK(line.starts_with(": ") || line == "event: named");
    }
  }
  TS_CHECK(!any);  // the last event is whole
  return events;
}

// Its ends of lines, of which there are three, are one.
std::string WithOneLineEnd(std::string_view data) {
  std::string out;
  for (size_t i = 0; i < data.size(); ++i) {
    if (data[i] == '\r' && i + 1 < data.size() && data[i + 1] == '\n') continue;
    out += data[i] == '\r' ? '\n' : data[i];
  }
  return out;
}

// RFC 9112, 7.1.
std::string Unchunked(std::string_view body) {
  std::string out;
  for (;;) {
    const size_t end = body.find("\r\n");
    TS_CHECK(end != std::string_view::npos && end > 0);
    const size_t size = std::stoul(std::string(body.substr(0, end)), nullptr, 16);
    body.remove_prefix(end + 2);
    TS_CHECK(body.size() >= size + 2 && body.substr(size, 2) == "\r\n");
    out += body.substr(0, size);
    body.remove_prefix(size + 2);
    if (size > 0) continue;
    TS_CHECK(body.empty());
    return out;
  }
}

}  // namespace
}  // namespace tinyserve

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tinyserve;
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  std::string stream, chunked;
  std::vector<std::string> written;
  // A zero byte stands between two events.
  while (!rest.empty()) {
    const std::string_view one = rest.substr(0, rest.find('\0'));
    rest.remove_prefix(std::min(rest.size(), one.size() + 1));
    std::string part;
    if (one.size() % 3 == 0) {
      AppendNamedEvent("named", one, &part);
    } else {
      AppendEvent(one, &part);
    }
    if (one.size() % 5 == 0) part += kHeartbeat;
    written.push_back(WithOneLineEnd(one));
    stream += part;
    chunked += FormatChunk(part);
  }
  TS_CHECK(EventsOf(stream) == written);
  TS_CHECK(Unchunked(chunked + std::string(kLastChunk)) == stream);
  return 0;
}
