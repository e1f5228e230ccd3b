#include "server/base64.h"

#include <gtest/gtest.h>

#include <string_view>
#include <utility>

namespace tinyserve {
namespace {

// The vectors of RFC 4648, section 10, and bytes of every digit.
TEST(Base64, IsTheStandards) {
  const std::pair<std::string_view, std::string_view> cases[] = {{"", ""},
                                                                 {"f", "Zg=="},
                                                                 {"fo", "Zm8="},
                                                                 {"foo", "Zm9v"},
                                                                 {"foob", "Zm9vYg=="},
                                                                 {"fooba", "Zm9vYmE="},
                                                                 {"foobar", "Zm9vYmFy"},
                                                                 {"\xff\xef\xbe", "/+++"}};
  for (const auto& [bytes, text] : cases) {
    EXPECT_EQ(Base64({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}), text);
  }
}

}  // namespace
}  // namespace tinyserve
