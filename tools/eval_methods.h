// `tinyserve eval --method`: how selectors trade quality for bytes and speed.
#ifndef TINYSERVE_TOOLS_EVAL_METHODS_H_
#define TINYSERVE_TOOLS_EVAL_METHODS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "tinyserve/status.h"
#include "tools/engine_flags.h"
#include "tools/json_output.h"

namespace tinyserve {

struct MethodEvalFlags {
  std::string text, plot;            // files
  std::vector<std::string> methods;  // as ParseMethods reads them
  std::vector<uint32_t> contexts;    // tokens of a window; none: kContextDefault, where no long run
                                     // is asked for
  uint32_t window_scored = 256;      // tokens at the end of a window
  uint32_t long_tokens = 0;          // decoded tokens of a long run; 0: none
  uint32_t long_prompt = 4096;
  std::vector<std::string> tasks;  // of retrieval, in place of the text's own tokens
  uint32_t trials = 4;             // of each depth
  bool layers = false;
  double shadow_check = 1;  // share of the tokens; none of those that are timed
  uint32_t tokens = 0;      // scored at each context; 0: kScoredDefault

  static constexpr uint32_t kContextDefault = 4096, kScoredDefault = 4096;
};

// Prints a table, or JSON lines where `output` is standard output. Errors: kInvalidArgument (a
// method, a context that does not fit the model or the text), what loading and files report.
Result<int> EvaluateMethods(const MethodEvalFlags& flags, const EngineFlags& engine,
                            JsonOutput* output);

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_EVAL_METHODS_H_
