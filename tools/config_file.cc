#include "tools/config_file.h"

#include <fmt/format.h>
#define TOML_HEADER_ONLY 0  // Debian has the parser as a library
#include <toml++/toml.h>

#include <boost/json/array.hpp>
#include <charconv>
#include <sstream>
#include <string_view>
#include <vector>

#include "base/file.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

constexpr uint64_t kConfigBytesMax = 1 << 20;

Status Wrong(const std::string& path, const std::string& message) {
  return Status(Code::kInvalidArgument, fmt::format("{}: {}", path, message));
}

// A plain value as the command line would spell it; nothing for others.
std::optional<std::string> Spelled(const toml::node& node) {
  if (const auto text = node.value_exact<std::string>()) return *text;
  if (const auto flag = node.value_exact<bool>()) return *flag ? "true" : "false";
  if (const auto whole = node.value_exact<int64_t>()) return fmt::format("{}", *whole);
  if (const auto real = node.value_exact<double>()) return fmt::format("{}", *real);
  return std::nullopt;
}

Result<std::vector<std::string>> Values(const std::string& path, const std::string& key,
                                        const toml::node& node) {
  std::vector<std::string> values;
  const auto add = [&](const toml::node& element) {
    std::optional<std::string> text = Spelled(element);
    if (text) values.push_back(*std::move(text));
    return text.has_value();
  };
  bool plain = true;
  if (const toml::array* list = node.as_array()) {
    for (const toml::node& element : *list) plain = plain && add(element);
  } else {
    plain = add(node);
  }
  if (!plain) {
    return Wrong(path, fmt::format("line {}: {} must be a string, number or boolean, or a list "
                                   "of them",
                                   node.source().begin.line, key));
  }
  return values;
}

Status ApplyOne(const std::string& path, const std::string& key, const toml::node& node,
                CLI::App* app) {
  CLI::Option* option =
      key == "config" || key == "help" ? nullptr : app->get_option_no_throw("--" + key);
  if (option == nullptr) {
    return Wrong(path, fmt::format("line {}: there is no option '{}'; `tinyserve {} --help` lists "
                                   "them",
                                   node.source().begin.line, key, app->get_name()));
  }
  TS_ASSIGN_OR_RETURN(const std::vector<std::string> values, Values(path, key, node));
  if (option->count() > 0 || values.empty()) return Status();  // the command line wins
  try {
    for (const std::string& value : values) option->add_result(value);
    option->run_callback();
  } catch (const CLI::Error& e) {
    return Wrong(path, fmt::format("line {}: {}", node.source().begin.line, e.what()));
  }
  return Status();
}

json::value Typed(const std::string& text) {
  if (text == "true") return true;
  if (text == "false") return false;
  int64_t whole = 0;
  double real = 0;
  const char* end = text.data() + text.size();
  if (const auto [last, error] = std::from_chars(text.data(), end, whole);
      error == std::errc() && last == end)
    return whole;
  if (const auto [last, error] = std::from_chars(text.data(), end, real);
      error == std::errc() && last == end)
    return real;
  return json::value(text);
}

json::value ValueOf(const CLI::Option& option) {
  const bool flag = option.get_items_expected_max() == 0, list = option.get_expected_max() > 1;
  if (flag) return option.count() > 0 && option.results().back() != "false";
  if (option.count() == 0 && !list) return Typed(option.get_default_str());
  if (!list) return Typed(option.results().back());
  json::array values;
  if (option.count() > 0) {
    for (const std::string& value : option.results()) values.push_back(Typed(value));
  }
  return values;
}

}  // namespace

Status ApplyConfigFile(const std::string& path, CLI::App* app) {
  if (path.empty()) return Status();
  TS_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kConfigBytesMax));
  try {
    const toml::table table = toml::parse(text, path);
    for (const auto& [key, node] : table) {
      TS_RETURN_IF_ERROR(ApplyOne(path, std::string(key.str()), node, app));
    }
  } catch (const toml::parse_error& e) {
    return Wrong(path,
                 fmt::format("line {}: {}", e.source().begin.line, std::string(e.description())));
  }
  return Status();
}

std::string ConfigText(const json::object& options) {
  toml::table table;
  for (const auto& [key, value] : options) {
    if (value.is_string()) {
      table.insert(std::string(key), std::string(value.as_string()));
    } else if (value.is_array()) {
      toml::array list;
      for (const json::value& element : value.as_array())
        list.push_back(std::string(element.as_string()));
      table.insert(std::string(key), std::move(list));
    } else {
      table.insert(std::string(key), value.to_number<int64_t>());
    }
  }
  std::ostringstream out;
  out << table << "\n";
  return out.str();
}

json::object EffectiveConfig(const CLI::App& app) {
  json::object config;
  for (const CLI::Option* option : app.get_options()) {
    if (option->get_lnames().empty()) continue;
    const std::string& name = option->get_lnames().front();
    if (name != "help") config[name] = ValueOf(*option);
  }
  return config;
}

}  // namespace tinyserve
