// `tinyserve eval --task`: whether methods still find what a long context hides.
#ifndef TINYSERVE_TOOLS_EVAL_TASKS_H_
#define TINYSERVE_TOOLS_EVAL_TASKS_H_

#include "tinyserve/status.h"
#include "tools/engine_flags.h"
#include "tools/eval_methods.h"
#include "tools/json_output.h"

namespace tinyserve {

// Prints a table, or JSON lines where `output` is standard output. Errors: kInvalidArgument (a
// method, a task, a context or a text that is too short), what loading and files report.
Result<int> EvaluateTasks(const MethodEvalFlags& flags, const EngineFlags& engine,
                          JsonOutput* output);

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_EVAL_TASKS_H_
