#include "text/json_text.h"

#include <fmt/format.h>

#include <boost/json/serialize.hpp>
#include <cmath>
#include <utility>

#include "text/tokenizer.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

void AppendString(std::string_view text, std::string* out) {
  Utf8Stream valid;
  std::string clean = valid.Push(text);
  clean += valid.Finish();
  *out += json::serialize(json::string_view(clean.data(), clean.size()));
}

void AppendDouble(double value, std::string* out) {
  if (std::isfinite(value)) {
    *out += fmt::format("{}", value);
  } else {
    *out += "null";
  }
}

// Boost writes every double with an exponent (9.1E1), which people have to read too.
void Append(const json::value& value, std::string* out) {
  if (const json::object* object = value.if_object()) {
    *out += '{';
    bool first = true;
    for (const auto& [key, member] : *object) {
      if (!std::exchange(first, false)) *out += ", ";
      AppendString({key.data(), key.size()}, out);
      *out += ": ";
      Append(member, out);
    }
    *out += '}';
  } else if (const json::array* array = value.if_array()) {
    *out += '[';
    bool first = true;
    for (const json::value& element : *array) {
      if (!std::exchange(first, false)) *out += ", ";
      Append(element, out);
    }
    *out += ']';
  } else if (const double* number = value.if_double()) {
    AppendDouble(*number, out);
  } else if (const json::string* text = value.if_string()) {
    AppendString({text->data(), text->size()}, out);
  } else {
    *out += json::serialize(value);
  }
}

}  // namespace

std::string ToJson(const json::value& value) {
  std::string out;
  Append(value, &out);
  return out;
}

}  // namespace tinyserve
