#include "tools/interrupt.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

#include "base/check.h"

namespace tinyserve {
namespace {

// Lock-free atomics are what a signal handler may touch.
std::atomic<bool> progress_line{false};
std::atomic<bool> raised{false};
std::atomic<bool> flag_mode{false};
static_assert(std::atomic<bool>::is_always_lock_free);
int wake_pipe[2] = {-1, -1};  // made once, before flag_mode is first set

void Leave() {
  static constexpr char kWipe[] = "\r\x1b[K";
  if (progress_line.load()) {
    // Best effort: there is nobody left to tell.
    [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, kWipe, sizeof kWipe - 1);
  }
  _exit(kExitInterrupted);
}

void OnInterrupt(int) {
  const int error = errno;
  if (!flag_mode.load() || raised.exchange(true)) Leave();
  // A full pipe is as good: it is readable.
  [[maybe_unused]] const ssize_t written = write(wake_pipe[1], "", 1);
  errno = error;
}

void Install() {
  struct sigaction action = {};
  action.sa_handler = OnInterrupt;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
}

}  // namespace

void ExitOnInterrupt() {
  flag_mode = false;
  Install();
}

InterruptFlag::InterruptFlag() {
  if (wake_pipe[0] < 0) TS_CHECK(pipe2(wake_pipe, O_CLOEXEC | O_NONBLOCK) == 0);
  raised = false;
  flag_mode = true;
  Install();
}

InterruptFlag::~InterruptFlag() { flag_mode = false; }

bool InterruptFlag::Take() {
  char drained[16];
  while (read(wake_pipe[0], drained, sizeof drained) > 0) {
  }
  return raised.exchange(false);
}

int InterruptFlag::wake_fd() const { return wake_pipe[0]; }

void NoteProgressLine(bool visible) { progress_line = visible; }

}  // namespace tinyserve
