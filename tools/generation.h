// One answer, from request to last token, as `run` and `chat` show it.
#ifndef TINYSERVE_TOOLS_GENERATION_H_
#define TINYSERVE_TOOLS_GENERATION_H_

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tinyserve/engine.h"
#include "tools/interrupt.h"

namespace tinyserve {

// Opens the engine with a progress bar on the terminal.
Result<std::unique_ptr<Engine>> OpenEngine(EngineOptions options);

struct SampledToken {
  int32_t token;
  float logprob;                  // where the request asked for it
  std::vector<TokenLogprob> top;  // likewise
};

struct GeneratedAnswer {
  std::string text;
  std::vector<SampledToken> tokens;
  std::vector<float> prompt_logprobs;
  FinishReason finish = FinishReason::kNone;
  Usage usage;               // prompt_tokens: those that were read
  bool interrupted = false;  // by Ctrl-C
};

// "stop", "length", "cancelled" ...
const char* FinishName(FinishReason reason);

// Runs a request to its end and hands complete pieces of text to `show` on the calling thread. A
// progress bar stands while a long prompt is read. Ctrl-C, through `interrupt`, cancels the
// request; what was generated until then is returned. `prompt_progress`, where given, takes the
// place of the bar. Errors: what Submit and the request report.
struct GenerateHooks {
  std::function<void(std::string_view text)> show;
  std::function<void(uint32_t done, uint32_t total)> prompt_progress;
  InterruptFlag* interrupt = nullptr;
};
Result<GeneratedAnswer> Generate(Engine* engine, const Request& request,
                                 const GenerateHooks& hooks);

// Writes text to standard output at once; control characters are spelled out on a terminal, so that
// a model cannot steer it. Errors: kIo.
Status ShowText(std::string_view text);

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_GENERATION_H_
