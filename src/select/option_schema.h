// Options as a table's config_schema declares them.
#ifndef TINYSERVE_SELECT_OPTION_SCHEMA_H_
#define TINYSERVE_SELECT_OPTION_SCHEMA_H_

#include <boost/json/value.hpp>

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

}  // namespace tinyserve

#endif  // TINYSERVE_SELECT_OPTION_SCHEMA_H_
