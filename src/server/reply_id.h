// Names of things that replies tell of.
#ifndef TINYSERVE_SERVER_REPLY_ID_H_
#define TINYSERVE_SERVER_REPLY_ID_H_

#include <string>
#include <string_view>

namespace tinyserve {

// `prefix` and 32 random digits: unique over restarts, not only within this process.
std::string NewReplyId(std::string_view prefix);

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_REPLY_ID_H_
