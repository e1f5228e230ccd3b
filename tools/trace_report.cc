#include "tools/trace_report.h"

#include <fmt/format.h>

#include <cstdio>

#include "tools/format.h"

namespace tinyserve {

std::string TraceLine(const std::string& path, const TraceCounts& counts) {
  const std::string dropped =
      counts.dropped == 0
          ? ""
          : fmt::format(", {} were dropped because the disk was too slow", counts.dropped);
  return fmt::format("trace: {} records in {}{}: open it at https://ui.perfetto.dev",
                     counts.records, PrintableLine(path, 200), dropped);
}

Status EndTrace(Engine* engine, const EngineFlags& flags, bool quiet) {
  if (flags.trace.empty()) return Status();
  TS_ASSIGN_OR_RETURN(const TraceCounts counts, engine->EndTrace());
  if (!quiet || counts.dropped > 0) fmt::print(stderr, "{}\n", TraceLine(flags.trace, counts));
  return Status();
}

Status EndTrace(const LoadedModel& model, const EngineFlags& flags) {
  if (model.trace == nullptr) return Status();
  TS_ASSIGN_OR_RETURN(const TraceReport report, model.trace->Close());
  fmt::print(stderr, "{}\n",
             TraceLine(flags.trace, {.records = report.records, .dropped = report.dropped}));
  return Status();
}

}  // namespace tinyserve
