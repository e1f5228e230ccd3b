#include "tools/program.h"

#include <fmt/format.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <cstdio>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "base/machine.h"
#include "kernels/cuda/device.h"
#include "kernels/targets.h"
#include "tools/commands.h"
#include "tools/help.h"
#include "tools/interrupt.h"
#include "tools/options.h"

namespace tinyserve {
namespace {

constexpr int kExitFailed = 1;
constexpr int kExitUsage = 2;

std::string Version() {
  std::string compiled, available;
  for (const std::string& name : CompiledTargets()) compiled += " " + name;
  for (const Kernels* kernels : AvailableTargets()) available += fmt::format(" {}", kernels->name);
  return fmt::format(
      "tinyserve {}\ncompiled targets: {}\non this machine:  {}\n{}, {} usable cores\n{}",
      TINYSERVE_VERSION, compiled, available, CpuName(), UsableCores(), cuda::DescribeDevices());
}

int Report(const Status& status) {
  fmt::print(stderr, "tinyserve: {}\n", status.message());
  return status.code() == Code::kInvalidArgument ? kExitUsage : kExitFailed;
}

int ReportUsage(const CLI::App& app, int argc, char** argv, const CLI::ParseError& error) {
  if (argc < 2) {
    fmt::print(stderr, "{}", app.help());
    return kExitUsage;
  }
  const std::vector<CLI::App*> chosen = app.get_subcommands();
  if (chosen.empty() && argv[1][0] != '-') {
    std::string names;
    for (const CLI::App* sub : app.get_subcommands({})) {
      names += (names.empty() ? "" : ", ") + sub->get_name();
    }
    fmt::print(stderr, "tinyserve: there is no subcommand '{}'; there are {}\n", argv[1], names);
    return kExitUsage;
  }
  const std::string name = chosen.empty() ? "tinyserve" : "tinyserve " + chosen.front()->get_name();
  fmt::print(stderr, "{}: {}\n`{} --help` lists what is possible.\n", name, error.what(), name);
  return kExitUsage;
}

int ParseAndRun(int argc, char** argv) {
  CLI::App app("TinyServe runs small language models on the processor you have.", "tinyserve");
  app.set_version_flag("-V,--version", Version);
  app.set_help_flag("-h,--help", "Print this help and exit");
  app.formatter(std::make_shared<HelpFormatter>());
  app.get_formatter()->column_width(12);
  app.require_subcommand(1);
  AddExample(&app, "tinyserve run --model model.gguf --prompt \"What is a cache?\"");
  Command command;
  AddRun(&app, &command);
  AddChat(&app, &command);
  AddServe(&app, &command);
  AddBench(&app, &command);
  AddEval(&app, &command);
  AddTune(&app, &command);
  AddInspect(&app, &command);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);  // --help, --version
    return ReportUsage(app, argc, argv, e);
  }
  const Result<int> result = command();
  if (result.ok()) return *result;
  const Status& failed = result.status();
  return Report(Status(failed.code(), NameFlags(failed.message(), *app.get_subcommands().front())));
}

}  // namespace

int RunProgram(int argc, char** argv) {
  ExitOnInterrupt();
  try {
    return ParseAndRun(argc, argv);
  } catch (const std::bad_alloc&) {
    return Report(Status(Code::kOutOfMemory, "out of memory"));
  } catch (const std::exception& e) {
    return Report(Status(Code::kInternal, e.what()));
  }
}

}  // namespace tinyserve
