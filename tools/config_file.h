// A configuration file (TOML) with the same options as the command line, which wins.
#ifndef TINYSERVE_TOOLS_CONFIG_FILE_H_
#define TINYSERVE_TOOLS_CONFIG_FILE_H_

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <boost/json/object.hpp>
#include <string>

#include "tinyserve/status.h"

namespace tinyserve {

// Gives the options of `app` that the command line left out the values of the file: `port = 8080`
// is --port 8080; an option that may be repeated takes a list. Values are checked as the command
// line's are. No path: nothing to do. Errors: kNotFound, kIo, kInvalidArgument (no TOML, an unknown
// option, a wrong value).
Status ApplyConfigFile(const std::string& path, CLI::App* app);

// Options as such a file spells them. REQUIRES: strings, whole numbers, and arrays of strings.
std::string ConfigText(const boost::json::object& options);

// Every option of `app` with the value that it has now.
boost::json::object EffectiveConfig(const CLI::App& app);

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_CONFIG_FILE_H_
