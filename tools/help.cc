#include "tools/help.h"

#include <fmt/format.h>

namespace tinyserve {
namespace {

constexpr size_t kColumns = 96;
constexpr size_t kDescriptionColumn = 30;

}  // namespace

std::string Wrap(std::string_view text, size_t columns, size_t indent) {
  std::string out;
  size_t used = 0;
  while (!text.empty()) {
    const size_t space = text.find(' ');
    const std::string_view word = text.substr(0, space);
    if (used > 0 && used + 1 + word.size() > columns) {
      out += "\n" + std::string(indent, ' ');
      used = 0;
    } else if (used > 0) {
      out += ' ';
      ++used;
    }
    out += word;
    used += word.size();
    text.remove_prefix(space == std::string_view::npos ? text.size() : space + 1);
  }
  return out;
}

std::string HelpFormatter::make_option(const CLI::Option* option, bool is_positional) const {
  std::string out = "  " + make_option_name(option, is_positional) + make_option_opts(option);
  std::string description = make_option_desc(option);
  std::string standard = option->get_default_str();
  if (standard.starts_with('[')) standard = standard.substr(1, standard.size() - 2);  // a list
  if (!standard.empty()) description += fmt::format(" [{}]", standard);
  if (out.size() + 2 > kDescriptionColumn) {
    out += "\n" + std::string(kDescriptionColumn, ' ');
  } else {
    out.resize(kDescriptionColumn, ' ');
  }
  return out + Wrap(description, kColumns - kDescriptionColumn, kDescriptionColumn) + "\n";
}

std::string HelpFormatter::make_option_opts(const CLI::Option* option) const {
  std::string out;
  if (option->get_type_size() != 0 && !option->get_type_name().empty())
    out = " " + option->get_type_name();
  if (option->get_required()) out += " (required)";
  return out;
}

}  // namespace tinyserve
