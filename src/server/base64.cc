#include "server/base64.h"

namespace tinyserve {

std::string Base64(std::span<const uint8_t> bytes) {
  static constexpr char kDigits[] =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const size_t n = bytes.size() - i < 3 ? bytes.size() - i : 3;
    uint32_t bits = uint32_t{bytes[i]} << 16;
    if (n > 1) bits |= uint32_t{bytes[i + 1]} << 8;
    if (n > 2) bits |= bytes[i + 2];
    for (size_t digit = 0; digit < 4; ++digit)
      text += digit <= n ? kDigits[bits >> (18 - 6 * digit) & 63] : '=';
  }
  return text;
}

}  // namespace tinyserve
