// Ends what --trace asked for, and says what became of it.
#ifndef TINYSERVE_TOOLS_TRACE_REPORT_H_
#define TINYSERVE_TOOLS_TRACE_REPORT_H_

#include <string>

#include "tinyserve/engine.h"
#include "tools/loaded_model.h"

namespace tinyserve {

// "trace: 812 records in t.json: open it at https://ui.perfetto.dev".
std::string TraceLine(const std::string& path, const TraceCounts& counts);

// Print that line on standard error where there is a trace, and something was dropped or `quiet`
// is not wished for. Errors: kIo (the file is not whole).
Status EndTrace(Engine* engine, const EngineFlags& flags, bool quiet = false);
Status EndTrace(const LoadedModel& model, const EngineFlags& flags);

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_TRACE_REPORT_H_
