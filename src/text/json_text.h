// JSON as text for programs and people.
#ifndef TINYSERVE_TEXT_JSON_TEXT_H_
#define TINYSERVE_TEXT_JSON_TEXT_H_

#include <boost/json/value.hpp>
#include <string>

namespace tinyserve {

// One line. Numbers are written the short way that reads back exactly; what JSON cannot hold (an
// infinity, a NaN) becomes null; invalid UTF-8 becomes U+FFFD.
std::string ToJson(const boost::json::value& value);

}  // namespace tinyserve

#endif  // TINYSERVE_TEXT_JSON_TEXT_H_
