// Specifications, NAME[:key=value,...], and options as a table's config_schema declares them.
#ifndef TINYSERVE_SELECT_OPTION_SCHEMA_H_
#define TINYSERVE_SELECT_OPTION_SCHEMA_H_

#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tinyserve/status.h"

namespace tinyserve {

// Whether a config_schema can be used: an object of properties, each with a type that
// specifications can write, and a default that could have been written. Errors: kInvalidArgument,
// naming the property and what is wrong.
Status CheckOptionSchema(const char* schema);

struct OptionBounds {
  double low, high;
};
// What a number may be: within its minimum and maximum, finite; a whole one is exact in a double.
// REQUIRES: CheckOptionSchema accepts the option.
OptionBounds BoundsOf(const boost::json::object& option);

// The properties of a config_schema. REQUIRES: CheckOptionSchema accepts it.
boost::json::object PropertiesOf(const char* config_schema);

// A specification's parts, which point into it.
struct SpecParts {
  std::string_view name;
  std::vector<std::pair<std::string_view, std::string_view>> options;  // key, value
};
// Errors: kInvalidArgument (what is not of the form).
Result<SpecParts> SplitSpec(std::string_view text);

// `text` as a number in [low, high], whole if asked for. Errors: kInvalidArgument, naming `key` and
// what is allowed.
Result<double> NumberIn(std::string_view key, std::string_view text, double low, double high,
                        bool whole);
// `text` as an option wants it. Errors: as above.
Result<boost::json::value> OptionValue(std::string_view key, std::string_view text,
                                       const boost::json::object& option);
// An option's default, in the form that a typed value has.
boost::json::value DefaultOf(const boost::json::object& option);
// A value as it is typed.
std::string ShownOption(const boost::json::value& value);

}  // namespace tinyserve

#endif  // TINYSERVE_SELECT_OPTION_SCHEMA_H_
