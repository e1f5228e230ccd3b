#include "tools/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "tools/interrupt.h"
#include "tools/terminal.h"

namespace tinyserve {
namespace {

constexpr uint32_t kBarColumnsMax = 30;
constexpr double kRedrawSeconds = 0.1;

double Seconds(std::chrono::steady_clock::duration d) {
  return std::chrono::duration<double>(d).count();
}

}  // namespace

std::string RenderBar(const std::string& label, double fraction, double elapsed_seconds,
                      uint32_t columns) {
  fraction = std::isfinite(fraction) ? std::clamp(fraction, 0.0, 1.0) : 0.0;
  std::string left;
  if (fraction > 0.01 && fraction < 1) {
    const auto seconds =
        static_cast<uint64_t>(std::ceil(elapsed_seconds * (1 - fraction) / fraction));
    left = fmt::format("  {}:{:02} left", seconds / 60, seconds % 60);
  }
  const std::string percent = fmt::format("{:3.0f} %", std::floor(fraction * 100));
  const size_t others = label.size() + percent.size() + left.size() + 6;  // brackets and spaces
  if (columns < others + 4) return fmt::format("{}  {}", label, percent).substr(0, columns);
  const size_t width = std::min<size_t>(kBarColumnsMax, columns - others);
  const auto full = static_cast<size_t>(fraction * static_cast<double>(width));
  return fmt::format("{}  [{}{}]  {}{}", label, std::string(full, '#'),
                     std::string(width - full, '.'), percent, left);
}

Progress::Progress(std::string label, double after_seconds, double long_seconds)
    : label_(std::move(label)),
      after_seconds_(after_seconds),
      long_seconds_(long_seconds),
      enabled_(StderrIsTerminal()),
      start_(Clock::now()) {}

void Progress::Update(double fraction) {
  if (!enabled_) return;
  const Clock::time_point now = Clock::now();
  const double elapsed = Seconds(now - start_);
  if (!visible_) {
    const bool is_long = fraction <= 0 || elapsed / fraction >= long_seconds_;
    if (elapsed < after_seconds_ || !is_long || fraction >= 1) return;
  } else if (Seconds(now - drawn_) < kRedrawSeconds) {
    return;
  }
  NoteProgressLine(true);
  visible_ = true;
  drawn_ = now;
  const std::string bar = RenderBar(label_, fraction, elapsed, TerminalColumns() - 1);
  fmt::print(stderr, "\r{}\x1b[K", bar);
  std::fflush(stderr);
}

void Progress::Clear() {
  if (!visible_) return;
  std::fputs("\r\x1b[K", stderr);
  std::fflush(stderr);
  visible_ = false;
  NoteProgressLine(false);
}

}  // namespace tinyserve
