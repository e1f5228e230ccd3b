#include "server/prompt_fields.h"

#include <fmt/format.h>

#include <boost/json/array.hpp>
#include <string>

namespace tinyserve {
namespace {

namespace json = boost::json;

void FailForm(Fields* fields, std::string_view name) {
  fields->Fail(name, fmt::format("'{}' must be a string, a list of token ids, a list of strings or "
                                 "a list of lists of token ids",
                                 fields->Path(name)));
}

// A string, or a list of token ids.
void ReadPrompt(Fields* fields, std::string_view name, const json::value& value,
                const RequestLimits& limits, std::vector<Prompt>* prompts) {
  if (const json::string* text = value.if_string()) {
    prompts->emplace_back(std::string(text->data(), text->size()));
  } else if (const json::array* list = value.if_array()) {
    if (list->empty()) {
      return fields->Fail(
          name, fmt::format("'{}' is empty: give at least one token", fields->Path(name)));
    }
    prompts->emplace_back(ReadTokens(fields, name, *list, limits));
  } else {
    FailForm(fields, name);
  }
}

}  // namespace

std::vector<Prompt> ReadPrompts(Fields* fields, std::string_view name, uint32_t count_max,
                                const RequestLimits& limits) {
  std::vector<Prompt> prompts;
  const json::value* value = fields->Find(name);
  if (fields->failed()) return prompts;
  if (value == nullptr) {
    fields->Fail(name, fmt::format("'{}' is missing", fields->Path(name)));
    return prompts;
  }
  const json::array* list = value->if_array();
  const bool several = list != nullptr && !list->empty() && !list->front().is_number();
  if (!several) {
    ReadPrompt(fields, name, *value, limits, &prompts);
    return prompts;
  }
  if (list->size() > count_max) {
    fields->Fail(name, fmt::format("'{0}' has {1} members: at most {2} are allowed",
                                   fields->Path(name), list->size(), count_max));
    return prompts;
  }
  for (const json::value& element : *list) {
    if (element.is_string() != list->front().is_string()) {
      FailForm(fields, name);
    } else {
      ReadPrompt(fields, name, element, limits, &prompts);
    }
    if (fields->failed()) return prompts;
  }
  return prompts;
}

}  // namespace tinyserve
