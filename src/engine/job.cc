#include "engine/job.h"

namespace tinyserve {
namespace {

// 0 stays 0: it has not happened.
uint64_t NsOf(double seconds) { return static_cast<uint64_t>(seconds * 1e9); }

const char* NameOf(FinishReason reason) {
  constexpr const char* kNames[] = {"none", "stop", "length", "cancelled", "deadline", "error"};
  return kNames[static_cast<size_t>(reason)];
}

}  // namespace

TraceRequest LifeOf(const Job& job, FinishReason reason, uint64_t now_ns) {
  return {.id = job.id,
          .submitted_ns = NsOf(job.submitted),
          .started_ns = NsOf(job.started),
          .first_token_ns = NsOf(job.first_token),
          .finished_ns = now_ns,
          .prompt_tokens = job.prompt_tokens,
          .generated_tokens = job.generated(),
          .finish = NameOf(reason)};
}

}  // namespace tinyserve
