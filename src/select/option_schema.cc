#include "select/option_schema.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/parse.hpp>
#include <charconv>
#include <cmath>
#include <cstring>
#include <optional>
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

std::optional<double> Number(std::string_view text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value)) return {};
  return value;
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

json::object PropertiesOf(const char* config_schema) {
  return json::parse(config_schema).as_object().at("properties").as_object();
}

Result<SpecParts> SplitSpec(std::string_view text) {
  const size_t colon = text.find(':');
  SpecParts parts{.name = text.substr(0, colon), .options = {}};
  if (colon == std::string_view::npos) return parts;
  std::string_view rest = text.substr(colon + 1);
  if (rest.empty()) return Bad("options are missing after ':'");
  while (!rest.empty()) {
    const size_t comma = std::min(rest.find(','), rest.size());
    const std::string_view pair = rest.substr(0, comma);
    const size_t equals = pair.find('=');
    if (equals == std::string_view::npos || equals == 0) {
      return Bad(fmt::format("'{}' is not of the form key=value", pair));
    }
    parts.options.emplace_back(pair.substr(0, equals), pair.substr(equals + 1));
    if (comma + 1 == rest.size()) return Bad("an option is missing after the last ','");
    rest.remove_prefix(std::min(comma + 1, rest.size()));
  }
  return parts;
}

Result<double> NumberIn(std::string_view key, std::string_view text, double low, double high,
                        bool whole) {
  const std::optional<double> value = Number(text);
  if (!value || *value < low || *value > high || (whole && *value != std::floor(*value))) {
    return Bad(fmt::format("{} is '{}': allowed is {} from {} to {}", key, text,
                           whole ? "a whole number" : "a number", low, high));
  }
  return *value;
}

Result<json::value> OptionValue(std::string_view key, std::string_view text,
                                const json::object& option) {
  const std::string_view type = option.at("type").as_string();
  if (type == "string") {
    const json::value* allowed = option.if_contains("enum");
    if (allowed == nullptr) return json::value(text);
    std::string names;
    for (const json::value& name : allowed->as_array()) {
      if (name.as_string() == text) return name;
      names += (names.empty() ? "" : ", ") + std::string(name.as_string());
    }
    return Bad(fmt::format("{} is '{}': allowed are {}", key, text, names));
  }
  const bool whole = type == "integer";
  const auto [low, high] = BoundsOf(option);
  TS_ASSIGN_OR_RETURN(const double value, NumberIn(key, text, low, high, whole));
  if (whole) return json::value(static_cast<int64_t>(value));
  return json::value(value);
}

json::value DefaultOf(const json::object& option) {
  const json::value& value = option.at("default");
  const std::string_view type = option.at("type").as_string();
  if (type == "number") return json::value(value.to_number<double>());
  if (type == "integer") return json::value(value.to_number<int64_t>());
  return value;
}

std::string ShownOption(const json::value& value) {
  if (value.is_string()) return std::string(value.as_string());
  return value.is_int64() ? fmt::format("{}", value.as_int64())
                          : fmt::format("{}", value.to_number<double>());
}

}  // namespace tinyserve
