// A step plugin of one's own, as a shared object: copy this file, change End, build it against
// include/tinyserve/plugin.h alone, and name it:
//
//   c++ -std=c++20 -O3 -march=native -shared -fPIC -I include -o mine.so examples/skeleton_step.cc
//   tinyserve run --model model.gguf --plugin ./mine.so --step-plugin skeleton_end:tokens=32 -p "…"
//
// This one ends answers like the built-in `low_entropy_end` does: where each of an answer's last
// tokens was all but certain, it has come into a loop, or copies.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "tinyserve/plugin.h"

namespace {

struct Rule {
  uint32_t tokens;  // in a row
  double entropy;   // nats, of each
};

// What the engine keeps of each answer for this table, zeros at first.
struct Answer {
  uint32_t certain;  // tokens in a row
};

// A number of the options, which the engine has checked against the schema below; NaN: none.
double Option(const char* config_json, const char* name) {
  const char* at = std::strstr(config_json, name);
  at = at != nullptr ? std::strchr(at, ':') : nullptr;
  return at != nullptr ? std::strtod(at + 1, nullptr) : NAN;
}

// -sum p log p of softmax(logits), nats. Not finite where a logit is not.
double Entropy(const float* logits, uint32_t n) {
  const float top = *std::max_element(logits, logits + n);
  double sum = 0, weighted = 0;
  for (uint32_t i = 0; i < n; ++i) {
    const double x = logits[i] - top, e = std::exp(x);
    sum += e;
    weighted += x * e;
  }
  return std::log(sum) - weighted / sum;
}

int Open(const tinyserve_step_shape*, const char* config_json, void** self,
         tinyserve_error* error) {
  const double tokens = Option(config_json, "\"tokens\""),
               entropy = Option(config_json, "\"entropy\"");
  if (!std::isfinite(tokens + entropy)) {
    std::snprintf(error->message, sizeof error->message, "tokens or entropy is missing");
    return 1;
  }
  *self = std::make_unique<Rule>(Rule{static_cast<uint32_t>(tokens), entropy}).release();
  return 0;
}

void Close(void* self) { std::unique_ptr<Rule>(static_cast<Rule*>(self)); }

// Called from several threads at once: what it changes is the answer's own state.
int End(void* self, const tinyserve_answer_in* in, uint32_t* end) {
  const Rule& rule = *static_cast<const Rule*>(self);
  const double entropy = Entropy(in->logits, in->vocab);
  if (!std::isfinite(entropy)) return 1;  // counted as an error; the answer goes on
  Answer& answer = *static_cast<Answer*>(in->state);
  answer.certain = entropy < rule.entropy ? answer.certain + 1 : 0;
  *end = answer.certain >= rule.tokens ? 1 : 0;
  return 0;
}

constexpr tinyserve_step_v2 kTable = {.abi_version = TINYSERVE_STEP_ABI_VERSION,
                                      .struct_size = sizeof(tinyserve_step_v2),
                                      .name = "skeleton_end",
                                      .config_schema = R"({"type":"object","properties":{
      "tokens":{"type":"integer","minimum":1,"maximum":1048576,"default":64},
      "entropy":{"type":"number","minimum":0,"maximum":20,"default":0.2}}})",
                                      .priority = 300,
                                      .answer_bytes = sizeof(Answer),
                                      .open = Open,
                                      .close = Close,
                                      .asks_after = nullptr,
                                      .leave = nullptr,
                                      .end = End,
                                      .measures_every = nullptr,
                                      .prune = nullptr};

}  // namespace

extern "C" const tinyserve_step_v2* tinyserve_step() { return &kTable; }
