// Bytes as text (RFC 4648, section 4).
#ifndef TINYSERVE_SERVER_BASE64_H_
#define TINYSERVE_SERVER_BASE64_H_

#include <cstdint>
#include <span>
#include <string>

namespace tinyserve {

// With padding.
std::string Base64(std::span<const uint8_t> bytes);

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_BASE64_H_
