#include "select/option_schema.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/parse.hpp>
#include <cstring>
#include <string>
#include <string_view>

namespace tinyserve {
namespace {

namespace json = boost::json;

constexpr size_t kSchemaMax = 64 << 10;

Status Bad(std::string what) { return Status(Code::kInvalidArgument, std::move(what)); }

double BoundOf(const json::object& option, const char* name, double fallback) {
  const json::value* bound = option.if_contains(name);
  return bound != nullptr ? bound->to_number<double>() : fallback;
}

// One property of config_schema: a type that specifications can write, and a default of that type.
Status CheckOption(std::string_view name, const json::value& value) {
  const auto bad = [&](const char* what) {
    return Bad(fmt::format("config_schema: property '{}' {}", name, what));
  };
  if (name.empty() ||
      name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_-") != std::string_view::npos) {
    return bad("has a name that is not of a-z, 0-9, _ and -");
  }
  const json::object* option = value.if_object();
  const json::value* type = option != nullptr ? option->if_contains("type") : nullptr;
  const json::value* fallback = option != nullptr ? option->if_contains("default") : nullptr;
  if (type == nullptr || !type->is_string() || fallback == nullptr) {
    return bad("must be an object with a type and a default");
  }
  const std::string_view kind = type->as_string();
  if (kind != "string" && kind != "number" && kind != "integer") {
    return bad("has another type than string, number and integer");
  }
  if ((kind == "string") != fallback->is_string() || (kind != "string" && !fallback->is_number()) ||
      (kind == "integer" && !fallback->is_int64() && !fallback->is_uint64())) {
    return bad("has a default of another type");
  }
  for (const char* bound : {"minimum", "maximum"}) {
    const json::value* limit = option->if_contains(bound);
    if (limit != nullptr && !limit->is_number()) return bad("has a bound that is no number");
  }
  if (kind != "string") {
    const OptionBounds bounds = BoundsOf(*option);
    const double number = fallback->to_number<double>();
    if (!(number >= bounds.low && number <= bounds.high)) return bad("has a default out of range");
    return Status();
  }
  const auto can_be_typed = [](const json::value& word) {
    return word.is_string() && word.as_string().find(',') == json::string::npos;
  };
  if (!can_be_typed(*fallback)) return bad("has a default with a comma");
  if (const json::value* words = option->if_contains("enum")) {
    const json::array* list = words->if_array();
    if (list == nullptr || !std::all_of(list->begin(), list->end(), can_be_typed)) {
      return bad("has an enum that is no list of strings without commas");
    }
    if (std::find(list->begin(), list->end(), *fallback) == list->end()) {
      return bad("has a default that is not in its enum");
    }
  }
  return Status();
}

}  // namespace

OptionBounds BoundsOf(const json::object& option) {
  const double most = option.at("type").as_string() == "integer" ? 0x1p53 : 1e300;
  return {.low = std::max(BoundOf(option, "minimum", -most), -most),
          .high = std::min(BoundOf(option, "maximum", most), most)};
}

Status CheckOptionSchema(const char* schema) {
  if (schema == nullptr || ::strnlen(schema, kSchemaMax) == kSchemaMax) {
    return Bad(fmt::format("config_schema must be a string of less than {} bytes", kSchemaMax));
  }
  boost::system::error_code error;
  const json::value value = json::parse(schema, error);
  const json::object* object = error ? nullptr : value.if_object();
  const json::value* properties = object != nullptr ? object->if_contains("properties") : nullptr;
  if (properties == nullptr || !properties->is_object()) {
    return Bad("config_schema must be a JSON object with an object of properties");
  }
  for (const auto& [name, option] : properties->as_object()) {
    TS_RETURN_IF_ERROR(CheckOption(name, option));
  }
  return Status();
}

}  // namespace tinyserve
