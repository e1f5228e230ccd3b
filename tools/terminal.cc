#include "tools/terminal.h"

#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>

namespace tinyserve {

bool StdinIsTerminal() { return isatty(STDIN_FILENO) == 1; }
bool StdoutIsTerminal() { return isatty(STDOUT_FILENO) == 1; }
bool StderrIsTerminal() { return isatty(STDERR_FILENO) == 1; }

uint32_t TerminalColumns() {
  winsize size = {};
  const bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1;
  return known ? size.ws_col : 80;
}

LineReader::Outcome LineReader::Read(std::string* line, int wake_fd) {
  for (;;) {
    const size_t newline = pending_.find('\n');
    if (newline != std::string::npos || pending_.size() >= kLineBytesMax) {
      const bool whole = newline != std::string::npos;
      line->assign(pending_, 0, whole ? newline : kLineBytesMax);
      pending_.erase(0, line->size() + (whole ? 1 : 0));
      return Outcome::kLine;
    }
    if (ended_) {
      if (pending_.empty()) return Outcome::kEnd;
      line->swap(pending_);
      pending_.clear();
      return Outcome::kLine;
    }
    pollfd inputs[2] = {{.fd = STDIN_FILENO, .events = POLLIN, .revents = 0},
                        {.fd = wake_fd, .events = POLLIN, .revents = 0}};
    if (poll(inputs, 2, -1) < 0 && errno == EINTR) continue;
    if (inputs[1].revents != 0) return Outcome::kInterrupted;
    char buffer[4096];
    const ssize_t got = read(STDIN_FILENO, buffer, sizeof buffer);
    if (got > 0) {
      pending_.append(buffer, static_cast<size_t>(got));
    } else if (got == 0 || errno != EINTR) {
      ended_ = true;
    }
  }
}

}  // namespace tinyserve
