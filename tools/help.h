// How --help looks: one line of names and value, then the description, wrapped.
#ifndef TINYSERVE_TOOLS_HELP_H_
#define TINYSERVE_TOOLS_HELP_H_

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <string>
#include <string_view>

namespace tinyserve {

// `text` broken at spaces so that no line has more than `columns`, every line after the first
// indented.
std::string Wrap(std::string_view text, size_t columns, size_t indent);

class HelpFormatter : public CLI::Formatter {
 public:
  std::string make_option(const CLI::Option* option, bool is_positional) const override;
  std::string make_option_opts(const CLI::Option* option) const override;
};

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_HELP_H_
