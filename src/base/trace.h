// What a program did and when, as a file that https://ui.perfetto.dev and chrome://tracing open:
// Chrome's JSON trace format, "JSON array" form, which they read even when its end is missing.
//
// A record is a finished span, a finished request or a count at one time, so begins and ends are
// always paired, whatever is dropped. Adding one costs a copy under a mutex; a thread of the
// trace's own makes JSON of them. Where it or the disk is too slow, records are dropped and
// counted, never waited for.
#ifndef TINYSERVE_BASE_TRACE_H_
#define TINYSERVE_BASE_TRACE_H_

#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <variant>
#include <vector>

#include "tinyserve/status.h"

namespace tinyserve {

// What a span is; the comment names its args.
enum class TraceKind : uint8_t {
  kWork,       // of the caller's own, by its label; args: one figure
  kSchedule,   // rows planned
  kStep,       // prompt tokens, generated tokens, sequences
  kPlan,       // of attention
  kForward,    // all layers
  kPart,       // some sublayers of a prompt row; its tokens, the first one, the end
  kAttention,  // of one layer, its keys and values appended first; layer
  kLogits,     // rows
  kAnswer,     // tokens are sampled and given to their sinks; sequences
};

// Times are NowNs().
struct TraceSpan {
  TraceKind kind = TraceKind::kWork;
  const char* label = nullptr;  // of kWork; lives as long as the trace (Trace::Keep)
  uint64_t begin_ns = 0, end_ns = 0;
  uint64_t args[3] = {};
};

// A request's life. What it never came to is 0.
struct TraceRequest {
  uint64_t id = 0;
  uint64_t submitted_ns = 0, started_ns = 0, first_token_ns = 0, finished_ns = 0;
  uint64_t prompt_tokens = 0, generated_tokens = 0;
  const char* finish = "";  // why it ended; static
};

// What the engine holds after a step.
struct TraceLoad {
  uint64_t at_ns = 0;
  uint64_t running = 0, waiting = 0, blocks_used = 0;
};

struct TraceReport {
  uint64_t records = 0;  // written
  uint64_t dropped = 0;  // that found no room
};

class Trace {
 public:
  // Records that may wait for the writer: some seconds of steps.
  static constexpr size_t kPendingDefault = 1 << 15;

  // Creates the file at once. Errors: kIo (path and reason).
  static Result<std::unique_ptr<Trace>> Open(const std::string& path,
                                             size_t pending_max = kPendingDefault);
  ~Trace();

  // From any thread. After Close has begun, nothing is written, nor counted as dropped.
  void Add(const TraceSpan& span) { AddRecord(span); }
  void Add(const TraceRequest& request) { AddRecord(request); }
  void Add(const TraceLoad& load) { AddRecord(load); }
  // A copy of `label` for TraceSpan; for names of which there are few: it stays to the end.
  const char* Keep(std::string_view label);

  // Writes what waits and ends the file; a second call answers like the first. Errors: kIo (a full
  // disk: the file then ends early).
  Result<TraceReport> Close();

 private:
  using Record = std::variant<TraceSpan, TraceRequest, TraceLoad>;

  Trace(std::FILE* file, std::string path, size_t pending_max);
  void AddRecord(const Record& record);
  void WriteLoop();
  void Write(const std::string& text);
  void Format(const Record& record, std::string* out) const;
  void FormatSpan(const TraceSpan& span, std::string* out) const;
  void FormatRequest(const TraceRequest& request, std::string* out) const;
  void FormatLoad(const TraceLoad& load, std::string* out) const;
  uint64_t SinceOpened(uint64_t ns) const;
  // Microseconds since the file was opened, with three decimals.
  std::string Time(uint64_t ns) const;

  std::FILE* file_;
  const std::string path_;
  const size_t pending_max_;
  const uint64_t opened_ns_;
  int error_ = 0;  // errno of the first failed write; the writer's, then Close's

  std::mutex mutex_;
  std::condition_variable wake_;
  bool closing_ = false;
  std::vector<Record> pending_;
  std::deque<std::string> labels_;
  TraceReport report_;
  std::mutex close_mutex_;
  std::thread writer_;
};

// Times a scope as a span; nothing where `trace` is null.
class TraceScope {
 public:
  TraceScope(Trace* trace, TraceKind kind, uint64_t arg0 = 0, uint64_t arg1 = 0, uint64_t arg2 = 0);
  // Of kWork. There may be a few hundred labels, not more: the trace keeps them.
  TraceScope(Trace* trace, std::string_view label, uint64_t value = 0);
  ~TraceScope();
  TraceScope(const TraceScope&) = delete;
  TraceScope& operator=(const TraceScope&) = delete;

 private:
  Trace* trace_;
  TraceSpan span_;
};

}  // namespace tinyserve

#endif  // TINYSERVE_BASE_TRACE_H_
