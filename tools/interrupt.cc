#include "tools/interrupt.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>

namespace tinyserve {
namespace {

// Lock-free atomics are what a signal handler may touch.
std::atomic<bool> progress_line{false};
std::atomic<bool> raised{false};
std::atomic<bool> flag_mode{false};
static_assert(std::atomic<bool>::is_always_lock_free);

void Leave() {
  static constexpr char kWipe[] = "\r\x1b[K";
  if (progress_line.load()) {
    // Best effort: there is nobody left to tell.
    [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, kWipe, sizeof kWipe - 1);
  }
  _exit(kExitInterrupted);
}

void OnInterrupt(int) {
  if (!flag_mode.load() || raised.exchange(true)) Leave();
}

// Without SA_RESTART: reading a line must end when Ctrl-C is pressed.
void Install() {
  struct sigaction action = {};
  action.sa_handler = OnInterrupt;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
}

}  // namespace

void ExitOnInterrupt() {
  flag_mode = false;
  Install();
}

InterruptFlag::InterruptFlag() {
  raised = false;
  flag_mode = true;
  Install();
}

InterruptFlag::~InterruptFlag() { flag_mode = false; }

bool InterruptFlag::Take() { return raised.exchange(false); }

void NoteProgressLine(bool visible) { progress_line = visible; }

}  // namespace tinyserve
