#include "base/trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <iterator>
#include <utility>

#include "base/clock.h"

namespace tinyserve {
namespace {

// How long records wait for company: the writer wakes seldom, so that it takes no core from a step.
constexpr std::chrono::milliseconds kWriteInterval(250);

struct KindNames {
  const char* name;
  const char* args[3];  // null: unused
};

const KindNames& NamesOf(TraceKind kind) {
  static constexpr KindNames kNames[] = {
      {"work", {"value"}},
      {"schedule", {"rows"}},
      {"step", {"prompt_tokens", "generated_tokens", "sequences"}},
      {"plan", {}},
      {"forward", {}},
      {"part", {"tokens", "first_sublayer", "end_sublayer"}},
      {"attention", {"layer"}},
      {"logits", {"rows"}},
      {"answer", {"sequences"}},
  };
  return kNames[static_cast<size_t>(kind)];
}

// Labels come from command lines: quotes, control characters and bytes beyond ASCII.
std::string Quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20 || byte >= 0x7f) {
      out += '?';
    } else {
      out += c;
    }
  }
  return out + '"';
}

}  // namespace

Trace::Trace(std::FILE* file, std::string path, size_t pending_max)
    : file_(file), path_(std::move(path)), pending_max_(pending_max), opened_ns_(NowNs()) {
  pending_.reserve(pending_max_);
  Write(
      "[\n"
      R"({"name":"process_name","ph":"M","pid":1,"tid":1,"args":{"name":"tinyserve"}},)"
      "\n"
      R"({"name":"thread_name","ph":"M","pid":1,"tid":1,"args":{"name":"steps"}})");
  writer_ = std::thread([this] { WriteLoop(); });
}

Result<std::unique_ptr<Trace>> Trace::Open(const std::string& path, size_t pending_max) {
  std::FILE* file = std::fopen(path.c_str(), "we");
  if (file == nullptr) {
    return Status(Code::kIo, fmt::format("trace: cannot write {}: {}", path, std::strerror(errno)));
  }
  return std::unique_ptr<Trace>(new Trace(file, path, pending_max));
}

Trace::~Trace() { (void)Close(); }

void Trace::AddRecord(const Record& record) {
  bool wake = false;
  {
    std::lock_guard lock(mutex_);
    if (closing_)
      return;  // a step may still be on its way: it is not missing from what was asked for
    if (pending_.size() >= pending_max_) {
      ++report_.dropped;
      return;
    }
    pending_.push_back(record);
    wake = pending_.size() == pending_max_ / 2;
  }
  if (wake) wake_.notify_one();
}

const char* Trace::Keep(std::string_view label) {
  std::lock_guard lock(mutex_);
  const auto at = std::find(labels_.begin(), labels_.end(), label);
  return at != labels_.end() ? at->c_str() : labels_.emplace_back(label).c_str();
}

void Trace::WriteLoop() {
  std::vector<Record> taken;
  taken.reserve(pending_max_);
  std::string text;
  for (bool last = false; !last;) {
    {
      std::unique_lock lock(mutex_);
      wake_.wait_for(lock, kWriteInterval,
                     [this] { return closing_ || pending_.size() >= pending_max_ / 2; });
      last = closing_;
      taken.swap(pending_);
    }
    text.clear();
    for (const Record& record : taken) Format(record, &text);
    Write(text);
    std::lock_guard lock(mutex_);
    (error_ == 0 ? report_.records : report_.dropped) += taken.size();
    taken.clear();
  }
}

void Trace::Write(const std::string& text) {
  if (error_ != 0 || text.empty()) return;
  errno = 0;
  const bool written = std::fwrite(text.data(), 1, text.size(), file_) == text.size();
  if (!written || std::fflush(file_) != 0) error_ = errno != 0 ? errno : EIO;
}

Result<TraceReport> Trace::Close() {
  std::lock_guard close(close_mutex_);
  if (writer_.joinable()) {
    {
      std::lock_guard lock(mutex_);
      closing_ = true;
    }
    wake_.notify_one();
    writer_.join();
    Write(fmt::format(
        ",\n{{\"name\":\"trace_end\",\"ph\":\"i\",\"s\":\"g\",\"pid\":1,\"tid\":1,\"ts\":{},"
        "\"args\":{{\"records\":{},\"dropped\":{}}}}}\n]\n",
        Time(NowNs()), report_.records, report_.dropped));
    if (std::fclose(file_) != 0 && error_ == 0) error_ = errno;
  }
  if (error_ != 0) {
    return Status(Code::kIo,
                  fmt::format("trace: cannot write {}: {}", path_, std::strerror(error_)));
  }
  std::lock_guard lock(mutex_);
  return report_;
}

uint64_t Trace::SinceOpened(uint64_t ns) const { return ns > opened_ns_ ? ns - opened_ns_ : 0; }

std::string Trace::Time(uint64_t ns) const {
  const uint64_t since = SinceOpened(ns);
  return fmt::format("{}.{:03}", since / 1000, since % 1000);
}

void Trace::Format(const Record& record, std::string* out) const {
  if (const auto* span = std::get_if<TraceSpan>(&record)) return FormatSpan(*span, out);
  if (const auto* request = std::get_if<TraceRequest>(&record)) return FormatRequest(*request, out);
  FormatLoad(std::get<TraceLoad>(record), out);
}

// Most records are spans: no memory is taken for one.
void Trace::FormatSpan(const TraceSpan& span, std::string* out) const {
  const KindNames& names = NamesOf(span.kind);
  const auto append = [out](const auto&... parts) { (out->append(parts), ...); };
  const auto number = [&](uint64_t value) {
    const fmt::format_int text(value);
    append(std::string_view(text.data(), text.size()));
  };
  const auto time = [&](uint64_t ns) {
    number(ns / 1000);
    const uint64_t rest = ns % 1000;
    const char digits[] = {'.', static_cast<char>('0' + rest / 100),
                           static_cast<char>('0' + rest / 10 % 10),
                           static_cast<char>('0' + rest % 10)};
    append(std::string_view(digits, sizeof digits));
  };
  append(",\n{\"name\":");
  if (span.label != nullptr) {
    append(Quoted(span.label));
  } else {
    append("\"", names.name, "\"");
  }
  append(R"(,"cat":")", names.name, R"(","ph":"X","pid":1,"tid":1,"ts":)");
  time(SinceOpened(span.begin_ns));
  append(",\"dur\":");
  time(span.end_ns > span.begin_ns ? span.end_ns - span.begin_ns : 0);
  append(",\"args\":{");
  for (size_t i = 0; i < std::size(names.args) && names.args[i] != nullptr; ++i) {
    append(i == 0 ? "\"" : ",\"", names.args[i], "\":");
    number(span.args[i]);
  }
  append("}}");
}

// All its phases at once, the outer ones begun first and ended last: readers order events by time,
// and equal times by the file.
void Trace::FormatRequest(const TraceRequest& r, std::string* out) const {
  const auto event = [&](char phase, const std::string& name, uint64_t ns,
                         const std::string& args) {
    fmt::format_to(std::back_inserter(*out),
                   ",\n{{\"name\":\"{}\",\"cat\":\"request\",\"ph\":\"{}\",\"id\":{},\"pid\":1,"
                   "\"tid\":1,\"ts\":{},\"args\":{{{}}}}}",
                   name, phase, r.id, Time(ns), args);
  };
  const auto phase = [&](const char* name, uint64_t begin_ns, uint64_t next_ns) {
    if (begin_ns == 0) return;
    event('b', name, begin_ns, "");
    event('e', name, next_ns != 0 ? next_ns : r.finished_ns, "");
  };
  const std::string name = fmt::format("request {}", r.id);
  event('b', name, r.submitted_ns,
        fmt::format("\"prompt_tokens\":{},\"generated_tokens\":{},\"finish\":{}", r.prompt_tokens,
                    r.generated_tokens, Quoted(r.finish)));
  phase("queued", r.submitted_ns, r.started_ns);
  phase("prefill", r.started_ns, r.first_token_ns);
  phase("decode", r.first_token_ns, 0);
  event('e', name, r.finished_ns, "");
}

void Trace::FormatLoad(const TraceLoad& load, std::string* out) const {
  const std::string time = Time(load.at_ns);
  const auto counter = [&](const char* name, const std::string& args) {
    fmt::format_to(std::back_inserter(*out),
                   ",\n{{\"name\":\"{}\",\"ph\":\"C\",\"pid\":1,\"ts\":{},\"args\":{{{}}}}}", name,
                   time, args);
  };
  counter("requests", fmt::format("\"running\":{},\"waiting\":{}", load.running, load.waiting));
  counter("kv_blocks", fmt::format("\"used\":{}", load.blocks_used));
}

TraceScope::TraceScope(Trace* trace, TraceKind kind, uint64_t arg0, uint64_t arg1, uint64_t arg2)
    : trace_(trace) {
  if (trace_ == nullptr) return;
  span_ = {
      .kind = kind, .label = nullptr, .begin_ns = NowNs(), .end_ns = 0, .args = {arg0, arg1, arg2}};
}

TraceScope::TraceScope(Trace* trace, std::string_view label, uint64_t value)
    : TraceScope(trace, TraceKind::kWork, value) {
  if (trace_ != nullptr) span_.label = trace_->Keep(label);
}

TraceScope::~TraceScope() {
  if (trace_ == nullptr) return;
  span_.end_ns = NowNs();
  trace_->Add(span_);
}

}  // namespace tinyserve
