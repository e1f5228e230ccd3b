// The subcommands. Each Add function declares its options on `app` and leaves in `*run` what the
// program is to do when that subcommand was chosen.
#ifndef TINYSERVE_TOOLS_COMMANDS_H_
#define TINYSERVE_TOOLS_COMMANDS_H_

#include <CLI/App.hpp>
#include <functional>

#include "tinyserve/status.h"

namespace tinyserve {

// Returns the exit status; a Status becomes a message and exit status 1 (2 for kInvalidArgument).
using Command = std::function<Result<int>()>;

void AddRun(CLI::App* app, Command* run);
void AddChat(CLI::App* app, Command* run);
void AddServe(CLI::App* app, Command* run);
void AddBench(CLI::App* app, Command* run);
void AddEval(CLI::App* app, Command* run);
void AddTune(CLI::App* app, Command* run);
void AddInspect(CLI::App* app, Command* run);

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_COMMANDS_H_
