#include "server/reply_id.h"

#include <fmt/format.h>
#include <sys/random.h>

#include "base/check.h"

namespace tinyserve {

std::string NewReplyId(std::string_view prefix) {
  uint64_t bits[2] = {};
  TS_CHECK(getrandom(bits, sizeof bits, 0) == sizeof bits);
  return fmt::format("{}{:016x}{:016x}", prefix, bits[0], bits[1]);
}

}  // namespace tinyserve
