#include "server/http_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "base/check.h"

namespace tinyserve {
namespace {

struct Phrase {
  int status;
  std::string_view text;
};
constexpr Phrase kPhrases[] = {{200, "OK"},
                               {204, "No Content"},
                               {400, "Bad Request"},
                               {401, "Unauthorized"},
                               {403, "Forbidden"},
                               {404, "Not Found"},
                               {405, "Method Not Allowed"},
                               {408, "Request Timeout"},
                               {413, "Content Too Large"},
                               {417, "Expectation Failed"},
                               {429, "Too Many Requests"},
                               {431, "Request Header Fields Too Large"},
                               {500, "Internal Server Error"},
                               {503, "Service Unavailable"}};

void AppendHeader(std::string_view name, std::string_view value, std::string* out) {
  *out += name;
  *out += ": ";
  const size_t first = out->size();
  *out += value;
  std::replace_if(
      out->begin() + static_cast<ptrdiff_t>(first), out->end(),
      [](char c) { return c == '\r' || c == '\n' || c == '\0'; }, ' ');
  *out += "\r\n";
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

std::string_view ReasonPhrase(int status) {
  for (const Phrase& phrase : kPhrases) {
    if (phrase.status == status) return phrase.text;
  }
  return "";
}

std::string FormatHead(const HttpReply& reply, const HeaderList& common,
                       const BodyFraming& framing) {
  std::string head = fmt::format("HTTP/1.1 {} {}\r\n", reply.status, ReasonPhrase(reply.status));
  if (!reply.content_type.empty()) AppendHeader("Content-Type", reply.content_type, &head);
  for (const HeaderList* list : {&common, &reply.headers}) {
    for (const auto& [name, value] : *list) AppendHeader(name, value, &head);
  }
  if (framing.content_bytes) {
    AppendHeader("Content-Length", fmt::format("{}", *framing.content_bytes), &head);
  } else if (framing.chunked) {
    AppendHeader("Transfer-Encoding", "chunked", &head);
  }
  AppendHeader("Connection", framing.keep_alive ? "keep-alive" : "close", &head);
  return head + "\r\n";
}

std::string FormatChunk(std::string_view data) {
  TS_CHECK(!data.empty());
  std::string chunk = fmt::format("{:x}\r\n", data.size());
  chunk += data;
  chunk += "\r\n";
  return chunk;
}

std::optional<std::string> PathOfTarget(std::string_view target) {
  if (target.starts_with("http://") || target.starts_with("https://")) {
    const size_t slash = target.find('/', target.find("//") + 2);
    target = slash == std::string_view::npos ? "/" : target.substr(slash);
  }
  target = target.substr(0, target.find_first_of("?#"));
  if (!target.starts_with('/')) return std::nullopt;
  std::string path;
  for (size_t i = 0; i < target.size(); ++i) {
    char c = target[i];
    if (c == '%') {
      if (i + 2 >= target.size()) return std::nullopt;
      const int high = HexDigit(target[i + 1]), low = HexDigit(target[i + 2]);
      if (high < 0 || low < 0) return std::nullopt;
      c = static_cast<char>(high * 16 + low);
      i += 2;
    }
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) return std::nullopt;
    path += c;
  }
  return path;
}

bool IsPlainId(std::string_view text) {
  constexpr size_t kIdBytesMax = 128;
  return !text.empty() && text.size() <= kIdBytesMax &&
         std::all_of(text.begin(), text.end(), [](unsigned char c) {
           return (c < 0x80 && std::isalnum(c) != 0) ||
                  std::string_view("-_.:").find(static_cast<char>(c)) != std::string_view::npos;
         });
}

}  // namespace tinyserve
