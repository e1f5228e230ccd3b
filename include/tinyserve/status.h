// Status and Result: how TinyServe reports what the world did wrong.
//
// Files, requests, plugins and the network return a Status with a message that says what was wrong,
// where, and what is allowed. Our own bugs are asserted instead (src/base/check.h). Nothing here
// throws.
#ifndef TINYSERVE_STATUS_H_
#define TINYSERVE_STATUS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

namespace tinyserve {

enum class Code : uint8_t {
  kOk,
  kInvalidArgument,    // the caller's value is outside what is allowed
  kNotFound,           // a file, tensor, metadata key or request does not exist
  kOutOfMemory,        // it would need more memory than this process may use
  kResourceExhausted,  // a fixed pool or queue is full
  kUnsupported,        // well-formed, but a kind that this build does not know
  kCorrupt,            // a file or message breaks its own format
  kCancelled,
  kDeadlineExceeded,
  kIo,        // the operating system said no
  kInternal,  // a foreign component failed (a caught panic, a failed plugin)
};

const char* CodeName(Code code);

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == Code::kOk; }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  Code code_ = Code::kOk;
  std::string message_;
};

// A value or the Status that explains its absence.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}  // NOLINT: implicit, so `return value;` works
  Result(Status status) : status_(std::move(status)) {}  // NOLINT: implicit, REQUIRES: !status.ok()

  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }
  // REQUIRES: ok().
  T& value() & { return *value_; }
  const T& value() const& { return *value_; }
  T value() && { return *std::move(value_); }  // by value: `for (x : *F())` must not dangle
  T& operator*() & { return *value_; }
  const T& operator*() const& { return *value_; }
  T operator*() && { return *std::move(value_); }
  T* operator->() { return &*value_; }
  const T* operator->() const { return &*value_; }

 private:
  Status status_;
  std::optional<T> value_;
};

// Propagates a failed Status (or Result's Status) to the caller.
#define TS_RETURN_IF_ERROR(expr)                                                      \
  do {                                                                                \
    if (::tinyserve::Status ts_status_ = (expr); !ts_status_.ok()) return ts_status_; \
  } while (0)

#define TS_CONCAT_INNER_(a, b) a##b
#define TS_CONCAT_(a, b) TS_CONCAT_INNER_(a, b)
// TS_ASSIGN_OR_RETURN(auto file, OpenFile(path));
#define TS_ASSIGN_OR_RETURN(lhs, expr) \
  TS_ASSIGN_OR_RETURN_(TS_CONCAT_(ts_result_, __LINE__), lhs, expr)
#define TS_ASSIGN_OR_RETURN_(result, lhs, expr) \
  auto result = (expr);                         \
  if (!result.ok()) return result.status();     \
  lhs = *std::move(result)

}  // namespace tinyserve

#endif  // TINYSERVE_STATUS_H_
