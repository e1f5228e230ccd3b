// From where a browser may reach the server: against pages that rebind a name to this machine (DNS
// rebinding) and pages of other sites that send requests.
#ifndef TINYSERVE_SERVER_REQUEST_ORIGIN_H_
#define TINYSERVE_SERVER_REQUEST_ORIGIN_H_

#include <string>
#include <string_view>
#include <vector>

namespace tinyserve {

struct OriginRules {
  bool loopback = true;            // the listener is: only names of this machine are hosts
  std::vector<std::string> hosts;  // further ones, without a port
  std::vector<std::string> cors;   // origins whose pages may read replies; "*": all
};

// Whether `host` is an address or name of the machine itself: 127.0.0.0/8, ::1, localhost.
bool IsLoopbackHost(std::string_view host);

// The name or address of a Host header, without port and brackets. "": it is none.
std::string_view HostName(std::string_view header);

// A Host header. Any is fine where the listener is not loopback and no hosts are named.
bool HostAllowed(const OriginRules& rules, std::string_view header);

// An Origin header: absent (no browser), this server's own, or one that rules.cors names.
bool OriginAllowed(const OriginRules& rules, std::string_view origin, std::string_view host);
// Whether pages of this origin may read replies.
bool CorsAllowed(const OriginRules& rules, std::string_view origin);

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_REQUEST_ORIGIN_H_
