#include "server/json_fields.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/parse_options.hpp>
#include <boost/json/parser.hpp>
#include <cmath>

#include "server/field_names.h"
#include "server/repeated_name.h"
#include "text/json_text.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

constexpr size_t kShownBytesMax = 80;  // of a wrong value or name, in messages

std::string Shown(const json::value& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "a list";
  if (value.is_double() && !std::isfinite(value.get_double())) return "beyond all numbers";
  // Cut before it is made text: it may be megabytes. ToJson mends a character cut in two.
  if (const json::string* text = value.if_string(); text && text->size() > kShownBytesMax)
    return ToJson(json::value(text->subview(0, kShownBytesMax))) + "...";
  return ToJson(value);
}

// In quotes.
std::string ShownName(std::string_view name) {
  return ToJson(json::value(json::string_view(name.data(), std::min(name.size(), kShownBytesMax))));
}

}  // namespace

std::optional<int64_t> WholeNumber(const json::value& value, int64_t low, int64_t high) {
  int64_t number = 0;
  if (const int64_t* whole = value.if_int64()) {
    number = *whole;
  } else if (const double* real = value.if_double()) {
    // 2^53: beyond it, not every whole number is a double.
    if (!(std::abs(*real) <= 9007199254740992.0) || std::trunc(*real) != *real) return std::nullopt;
    number = static_cast<int64_t>(*real);
  } else {
    return std::nullopt;  // also an uint64 beyond int64
  }
  if (number < low || number > high) return std::nullopt;
  return number;
}

std::optional<double> RealNumber(const json::value& value, double low, double high) {
  const double number = value.is_double()   ? value.get_double()
                        : value.is_int64()  ? static_cast<double>(value.get_int64())
                        : value.is_uint64() ? static_cast<double>(value.get_uint64())
                                            : NAN;
  if (!(number >= low && number <= high)) return std::nullopt;
  return number;
}

void Fields::Fail(ApiError error) {
  if (!failed()) *error_ = std::move(error);
}

void Fields::Fail(std::string_view name, std::string message) {
  Fail(BadField(Path(name), std::move(message)));
}

const json::value* Fields::Find(std::string_view name) {
  FieldNames::Ask(prefix_, name);
  seen_.push_back(name);
  if (failed()) return nullptr;
  const json::value* value = object_.if_contains(json::string_view(name.data(), name.size()));
  return value == nullptr || value->is_null() ? nullptr : value;
}

void Fields::Bool(std::string_view name, bool* out) {
  const json::value* value = Find(name);
  if (value == nullptr) return;
  if (!value->is_bool()) {
    return Fail(name,
                fmt::format("'{}' is {}: true or false is expected", Path(name), Shown(*value)));
  }
  *out = value->get_bool();
}

void Fields::Number(std::string_view name, double low, double high, float* out) {
  const json::value* value = Find(name);
  if (value == nullptr) return;
  const std::optional<double> number = RealNumber(*value, low, high);
  if (!number) {
    return Fail(name, fmt::format("'{}' is {}: a number from {} to {} is expected", Path(name),
                                  Shown(*value), low, high));
  }
  *out = static_cast<float>(*number);
}

void Fields::Integer(std::string_view name, int64_t low, int64_t high, int64_t* out) {
  const json::value* value = Find(name);
  if (value == nullptr) return;
  const std::optional<int64_t> number = WholeNumber(*value, low, high);
  if (!number) {
    return Fail(name, fmt::format("'{}' is {}: a whole number from {} to {} is expected",
                                  Path(name), Shown(*value), low, high));
  }
  *out = *number;
}

void Fields::Count(std::string_view name, uint32_t low, uint32_t high, uint32_t* out) {
  int64_t number = *out;
  Integer(name, low, high, &number);
  *out = static_cast<uint32_t>(number);
}

void Fields::String(std::string_view name, size_t bytes_max, std::string* out) {
  const json::value* value = Find(name);
  if (value == nullptr) return;
  const json::string* text = value->if_string();
  if (text == nullptr) {
    return Fail(name, fmt::format("'{}' is {}: a string is expected", Path(name), Shown(*value)));
  }
  if (text->size() > bytes_max) {
    return Fail(name, fmt::format("'{}' has {} bytes: at most {} are allowed", Path(name),
                                  text->size(), bytes_max));
  }
  *out = {text->data(), text->size()};
}

const json::object* Fields::Object(std::string_view name) {
  const json::value* value = Find(name);
  if (value == nullptr) return nullptr;
  if (!value->is_object()) {
    Fail(name, fmt::format("'{}' is {}: an object is expected", Path(name), Shown(*value)));
    return nullptr;
  }
  return &value->get_object();
}

void Fields::Accept(std::initializer_list<std::string_view> names) {
  for (const std::string_view name : names) FieldNames::Ask(prefix_, name);
  seen_.insert(seen_.end(), names);
}

void Fields::RefuseUnsupported(std::initializer_list<std::string_view> names) {
  for (const std::string_view name : names) {
    FieldNames::Refuse(prefix_, name);
    if (Find(name) != nullptr) {
      Fail(name, fmt::format("'{}' is not supported by this server", Path(name)));
    }
  }
}

void Fields::RefuseUnlessEmpty(std::initializer_list<std::string_view> names) {
  for (const std::string_view name : names) {
    FieldNames::Refuse(prefix_, name);
    const json::value* value = Find(name);
    if (value == nullptr) continue;
    const bool empty = (value->is_array() && value->get_array().empty()) ||
                       (value->is_object() && value->get_object().empty());
    if (!empty) Fail(name, fmt::format("'{}' is not supported by this server", Path(name)));
  }
}

void Fields::RefuseUnless(std::string_view name, const json::value& harmless) {
  FieldNames::Refuse(prefix_, name);
  const json::value* value = Find(name);
  if (value == nullptr || *value == harmless) return;
  // 1 may be written as 1.0.
  if (const int64_t* whole = harmless.if_int64(); whole && WholeNumber(*value, *whole, *whole))
    return;
  Fail(name, fmt::format("'{}' other than {} is not supported by this server", Path(name),
                         Shown(harmless)));
}

void Fields::RefuseOthers() {
  if (failed()) return;
  for (const auto& member : object_) {
    const std::string_view name(member.key().data(), member.key().size());
    if (std::find(seen_.begin(), seen_.end(), name) != seen_.end()) continue;
    const std::string shown = ShownName(name);
    return Fail(BadField(
        prefix_ + shown.substr(1, shown.size() - 2),
        fmt::format("the field {} is unknown{}", shown,
                    prefix_.empty() ? "" : " in '" + prefix_.substr(0, prefix_.size() - 1) + "'")));
  }
}

std::optional<json::object> ParseBody(std::string_view body, uint32_t depth_max,
                                      std::optional<ApiError>* error) {
  json::parse_options options;
  options.max_depth = depth_max;
  json::parser parser({}, options);
  json::error_code failed;
  const size_t read = parser.write_some(body.data(), body.size(), failed);
  if (!failed && read < body.size()) failed = json::error::extra_data;
  if (failed) {
    *error = BadField("", fmt::format("the body is no JSON: {} after {} of {} bytes",
                                      failed.message(), read, body.size()));
    (*error)->code = "invalid_json";
    return std::nullopt;
  }
  json::value value = parser.release();
  if (!value.is_object()) {
    *error = BadField("", "the body must be a JSON object");
    return std::nullopt;
  }
  if (const std::optional<std::string> name = RepeatedName(body, depth_max)) {
    const std::string shown = ShownName(*name);
    *error = BadField(shown.substr(1, shown.size() - 2),
                      fmt::format("the field {} is given twice", shown));
    return std::nullopt;
  }
  return std::move(value.get_object());
}

}  // namespace tinyserve
