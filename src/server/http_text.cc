#include "server/http_text.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <ctime>

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
                               {415, "Unsupported Media Type"},
                               {417, "Expectation Failed"},
                               {429, "Too Many Requests"},
                               {431, "Request Header Fields Too Large"},
                               {500, "Internal Server Error"},
                               {503, "Service Unavailable"},
                               {504, "Gateway Timeout"}};

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

std::string HttpDate(int64_t unix_seconds) {
  return fmt::format("{:%a, %d %b %Y %H:%M:%S} GMT", fmt::gmtime(std::time_t{unix_seconds}));
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

namespace {

// Nothing: what follows a % is no byte, or it decodes to a control character.
std::optional<std::string> PercentDecoded(std::string_view text) {
  std::string decoded;
  for (size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (c == '%') {
      if (i + 2 >= text.size()) return std::nullopt;
      const int high = HexDigit(text[i + 1]), low = HexDigit(text[i + 2]);
      if (high < 0 || low < 0) return std::nullopt;
      c = static_cast<char>(high * 16 + low);
      i += 2;
    }
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) return std::nullopt;
    decoded += c;
  }
  return decoded;
}

}  // namespace

std::optional<std::string> PathOfTarget(std::string_view target) {
  if (target.starts_with("http://") || target.starts_with("https://")) {
    const size_t slash = target.find('/', target.find("//") + 2);
    target = slash == std::string_view::npos ? "/" : target.substr(slash);
  }
  target = target.substr(0, target.find_first_of("?#"));
  if (!target.starts_with('/')) return std::nullopt;
  return PercentDecoded(target);
}

std::optional<HeaderList> QueryOfTarget(std::string_view target) {
  constexpr size_t kParametersMax = 64;
  HeaderList query;
  target = target.substr(0, target.find('#'));
  const size_t begin = target.find('?');
  std::string_view rest = begin == std::string_view::npos ? "" : target.substr(begin + 1);
  while (!rest.empty()) {
    const std::string_view one = rest.substr(0, rest.find('&'));
    rest.remove_prefix(std::min(rest.size(), one.size() + 1));
    if (one.empty()) continue;
    std::string text(one);
    std::replace(text.begin(), text.end(), '+', ' ');
    const size_t equals = text.find('=');
    const std::string_view whole = text;
    std::optional<std::string> name = PercentDecoded(whole.substr(0, equals));
    std::optional<std::string> value =
        PercentDecoded(equals == std::string::npos ? "" : whole.substr(equals + 1));
    if (!name || !value || query.size() == kParametersMax) return std::nullopt;
    query.emplace_back(*std::move(name), *std::move(value));
  }
  return query;
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
