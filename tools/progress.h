// A progress bar on standard error: on a terminal only, and only for what takes a while.
#ifndef TINYSERVE_TOOLS_PROGRESS_H_
#define TINYSERVE_TOOLS_PROGRESS_H_

#include <chrono>
#include <cstdint>
#include <string>

namespace tinyserve {

// "Loading  [#####...............]  25 %  0:06 left", at most `columns` wide. `fraction` 0..1.
std::string RenderBar(const std::string& label, double fraction, double elapsed_seconds,
                      uint32_t columns);

class Progress {
 public:
  // Appears once `after_seconds` have passed and the whole is likely to take `long_seconds`.
  Progress(std::string label, double after_seconds, double long_seconds);
  ~Progress() { Clear(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // One thread at a time. Drawn at most ten times a second.
  void Update(double fraction);
  void SetLabel(std::string label) { label_ = std::move(label); }
  // Wipes the bar, so that other output can follow. A later Update draws it again.
  void Clear();

 private:
  using Clock = std::chrono::steady_clock;

  std::string label_;
  double after_seconds_, long_seconds_;
  bool enabled_;
  bool visible_ = false;
  Clock::time_point start_, drawn_;
};

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_PROGRESS_H_
