#include "server/request_origin.h"

#include <algorithm>
#include <cctype>

namespace tinyserve {
namespace {

bool EqualIgnoringCase(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](unsigned char x, unsigned char y) {
    return std::tolower(x) == std::tolower(y);
  });
}

bool IsLoopbackV4(std::string_view host) {
  // A name may begin like an address ("127.0.0.1.example.com"): only digits and dots are one.
  return host.starts_with("127.") &&
         host.find_first_not_of("0123456789.") == std::string_view::npos &&
         std::count(host.begin(), host.end(), '.') == 3;
}

}  // namespace

bool IsLoopbackHost(std::string_view host) {
  return EqualIgnoringCase(host, "localhost") || host == "::1" || IsLoopbackV4(host);
}

std::string_view HostName(std::string_view header) {
  if (header.starts_with('[')) {
    const size_t end = header.find(']');
    return end == std::string_view::npos ? "" : header.substr(1, end - 1);
  }
  const std::string_view name = header.substr(0, header.find(':'));
  return name.find_first_of(" \t/@\\") == std::string_view::npos ? name : "";
}

bool HostAllowed(const OriginRules& rules, std::string_view header) {
  if (!rules.loopback && rules.hosts.empty()) return true;
  const std::string_view name = HostName(header);
  if (rules.loopback && IsLoopbackHost(name)) return true;
  return !name.empty() &&
         std::any_of(rules.hosts.begin(), rules.hosts.end(),
                     [&](const std::string& host) { return EqualIgnoringCase(name, host); });
}

bool CorsAllowed(const OriginRules& rules, std::string_view origin) {
  return !origin.empty() &&
         std::any_of(rules.cors.begin(), rules.cors.end(), [&](const std::string& allowed) {
           return allowed == "*" || origin == allowed;
         });
}

bool OriginAllowed(const OriginRules& rules, std::string_view origin, std::string_view host) {
  if (origin.empty() || CorsAllowed(rules, origin)) return true;
  const size_t scheme_end = origin.find("://");
  if (scheme_end == std::string_view::npos) return false;  // "null": a page without an origin
  return EqualIgnoringCase(origin.substr(scheme_end + 3), host);
}

}  // namespace tinyserve
