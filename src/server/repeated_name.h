// Finds members of JSON objects that are given twice: of them parsers keep one, and say nothing.
#ifndef TINYSERVE_SERVER_REPEATED_NAME_H_
#define TINYSERVE_SERVER_REPEATED_NAME_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace tinyserve {

// The first member of an object in `text` whose name that object has already, as a path of names
// ("stream_options.include_usage"; lists have no part in it). Nothing: there is none, or `text` is
// no JSON nested at most `depth_max` deep.
std::optional<std::string> RepeatedName(std::string_view text, uint32_t depth_max);

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_REPEATED_NAME_H_
